"""The fused rotation as PyTorch operators, so that autograd, torch.compile and checkpointing know what it does.

Letters in shapes: B batch, H heads, S sequence, D head dimension, L lanes (pairs of dimensions), A position axes.

The operators trust their arguments; `assay.kernels.mrope` checks them. Tables come as two tensors: cos and sin
[A, B or 1, S, L or 2L], or (from_positions) positions [A, B or 1, S] and inverse frequencies [L].
"""

from typing import Any

import torch
from torch import Tensor, library

from assay.kernels import mrope_triton
from assay.kernels.operands import require_runnable


def is_token_major(x: Tensor) -> bool:
    """Whether x [B, H, S, D] is a transposed view of [B, S, H, D], the layout that projections give and take."""
    return x.stride(1) <= x.stride(2)


def _fresh(x: Tensor, token_major: bool) -> Tensor:
    """Memory for x in the asked-for layout, no view, since autograd restricts what may be done to an output that is."""
    batch, heads, tokens, dim = x.shape
    head, token = (dim, heads * dim) if token_major else (tokens * dim, dim)
    return x.new_empty_strided((batch, heads, tokens, dim), (heads * tokens * dim, head, token, 1))


@library.custom_op("assay::mrope_rotate", mutates_args=())
def rotate_op(
    q: Tensor, k: Tensor, first: Tensor, second: Tensor, axes: Tensor | None, half: int, adjacent: bool,
    conjugate: bool, from_positions: bool, exact: bool, scaling: float, q_token_major: bool, k_token_major: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rotated copies of q [B, Hq, S, D] and k [B, Hk, S, D] in the asked-for layouts; `conjugate` turns backwards."""
    require_runnable(q, "mrope", interpreted=bool(mrope_triton.INTERPRETED))
    q_out, k_out = _fresh(q, q_token_major), _fresh(k, k_token_major)
    mrope_triton.launch_rotate(
        q, k, q_out, k_out, (first, second), axes, half=half, adjacent=adjacent, conjugate=conjugate,
        from_positions=from_positions, exact=exact, scaling=scaling,
    )  # fmt: skip
    return q_out, k_out


@rotate_op.register_fake
def _(
    q: Tensor, k: Tensor, first: Tensor, second: Tensor, axes: Tensor | None, half: int, adjacent: bool,
    conjugate: bool, from_positions: bool, exact: bool, scaling: float, q_token_major: bool, k_token_major: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _fresh(q, q_token_major), _fresh(k, k_token_major)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    first, second, axes, half, adjacent, conjugate, *rest = inputs[2:]
    ctx.save_for_backward(first, second, axes)
    ctx.settings = (half, adjacent, not conjugate, *rest)
    ctx.set_materialize_grads(False)


def _turn_back(ctx: Any, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Tensor | None, ...]:
    """The same kernel with -sin. A gradient that nobody wants or nobody sent takes part with zero heads."""
    wanted_q, wanted_k = ctx.needs_input_grad[0] and grad_q is not None, ctx.needs_input_grad[1] and grad_k is not None
    nothing = (None,) * (2 + 3 + len(ctx.settings))
    if not wanted_q and not wanted_k:
        return nothing
    present = grad_q if wanted_q else grad_k
    assert present is not None
    q = grad_q if wanted_q and grad_q is not None else present[:, :0]
    k = grad_k if wanted_k and grad_k is not None else present[:, :0]
    turned_q, turned_k = rotate_op(q, k, *ctx.saved_tensors, *ctx.settings)
    return (turned_q if wanted_q else None, turned_k if wanted_k else None, *nothing[2:])


rotate_op.register_autograd(_turn_back, setup_context=_save)


@library.custom_op("assay::mrope_rotate_", mutates_args=("q", "k"))
def rotate_inplace_op(
    q: Tensor, k: Tensor, first: Tensor, second: Tensor, axes: Tensor | None, half: int, adjacent: bool,
    from_positions: bool, exact: bool, scaling: float,
) -> None:  # fmt: skip
    """Rotate q and k where they are; no autograd."""
    require_runnable(q, "mrope", interpreted=bool(mrope_triton.INTERPRETED))
    mrope_triton.launch_rotate(
        q, k, q, k, (first, second), axes, half=half, adjacent=adjacent, conjugate=False,
        from_positions=from_positions, exact=exact, scaling=scaling,
    )  # fmt: skip


@rotate_inplace_op.register_fake
def _(
    q: Tensor, k: Tensor, first: Tensor, second: Tensor, axes: Tensor | None, half: int, adjacent: bool,
    from_positions: bool, exact: bool, scaling: float,
) -> None:  # fmt: skip
    return None


class _RotateInPlace(torch.autograd.Function):
    """In-place rotation of one tensor under autograd.

    One tensor at a time, because PyTorch lets a function change a view in place only if it has a single output.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, second: Tensor, axes: Tensor | None, settings: tuple[Any, ...]
    ) -> Tensor:
        rotate_inplace_op(x, x[:, :0], first, second, axes, *settings)
        ctx.mark_dirty(x)
        ctx.save_for_backward(first, second, axes)
        ctx.settings, ctx.token_major = settings, is_token_major(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # out of place, because others may hold the gradient
        half, adjacent, *rest = ctx.settings
        layouts = (ctx.token_major, ctx.token_major)
        turned, _ = rotate_op(grad, grad[:, :0], *ctx.saved_tensors, half, adjacent, True, *rest, *layouts)
        return turned, None, None, None, None


def rotate_inplace(x: Tensor, first: Tensor, second: Tensor, axes: Tensor | None, settings: tuple[Any, ...]) -> Tensor:
    """Rotate x where it is, under autograd; `settings` are the last five arguments of `rotate_inplace_op`."""
    rotated: Tensor = _RotateInPlace.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        x, first, second, axes, settings
    )
    return rotated


@library.custom_op("assay::mrope_tables", mutates_args=())
def tables_op(
    positions: Tensor, inv_freq: Tensor, axes: Tensor | None, dtype: torch.dtype, exact: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    """Merged half tables [B, S, L] of positions [A, B, S] and inverse frequencies [L]."""
    require_runnable(positions, "mrope", interpreted=bool(mrope_triton.INTERPRETED))
    shape = (*positions.shape[1:], inv_freq.numel())
    cos, sin = (torch.empty(shape, dtype=dtype, device=positions.device) for _ in range(2))
    mrope_triton.launch_tables(positions, inv_freq, axes, cos, sin, exact=exact, scaling=scaling)
    return cos, sin


@tables_op.register_fake
def _(
    positions: Tensor, inv_freq: Tensor, axes: Tensor | None, dtype: torch.dtype, exact: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    shape = (*positions.shape[1:], inv_freq.shape[0])
    return positions.new_empty(shape, dtype=dtype), positions.new_empty(shape, dtype=dtype)
