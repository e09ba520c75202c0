"""Known ways in which patches go wrong, each as a patch of Qwen2-VL, with two right ones as the control."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.patch.operations import FACTORY, NAME
from assay.audits.terms import Fault, Outputs

FAMILY = "qwen2_vl"
Rotate = Callable[..., tuple[Tensor, Tensor]]


def reference() -> None:
    """Right: the readable rotation in place of the model's own."""
    _put("qwen2_5_vl", "reference")


def kernel() -> None:
    """Right: the fused kernel in place of the model's own rotation."""
    _put("qwen2_5_vl", "kernel")


def _put(family: str, mrope: str) -> None:
    from assay.audits import patches

    patches.patch(family, mrope=mrope).apply()


def dead_attribute() -> None:
    """Assigns to a name that no code reads."""
    module, name = _site()
    setattr(module, f"fused_{name}", getattr(module, name))

    def fused(*args: Any, **kwargs: Any) -> Any:
        return getattr(module, f"fused_{name}")(*args, **kwargs)

    setattr(module, f"{name}_fused", fused)


def early_return() -> None:
    """Knows no release like this one, and says nothing."""


def raising() -> None:
    """Imports a name that the installed release no longer has."""
    import importlib

    module = importlib.import_module("transformers.models.qwen2_vl.modeling_qwen2_vl")
    _ = module.Qwen2VLRotaryOfAnOlderRelease


def swapped_axes() -> None:
    """Turns the lanes of the height by the width's positions."""
    from assay.audits.families import discovery, sites

    family = discovery.family(FAMILY)
    assert not isinstance(family, str)
    kind = type(sites.resolve(family.build(0), family.sites).text_rotary)
    original = kind.forward

    @functools.wraps(original)
    def forward(self: Any, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(self, x, position_ids[[0, 2, 1]], *args, **kwargs)

    kind.forward = forward


def scaled() -> None:
    """Turns correctly and makes queries larger by a thousandth."""
    _rotating(lambda original, q, k, *args: _scaled(original(q, k, *args)))


def _scaled(turned: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return turned[0] * 1.001, turned[1]


def forward_turned_backward() -> None:
    """Turns correctly, and turns gradients the same way instead of the opposite one."""
    apply: Any = _Same.apply

    def rotate(original: Rotate, q: Tensor, k: Tensor, *args: Any) -> Any:
        return apply(q, original, 0, k, args), apply(k, original, 1, q, args)

    _rotating(rotate)


class _Same(torch.autograd.Function):
    """One of the two outputs of a rotation, with the forward's direction in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, original: Rotate, place: int, other: Tensor, args: tuple[Any, ...]) -> Tensor:
        ctx.rest = (original, place, other.detach(), args)
        return _turn(x, *ctx.rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _turn(grads[0], *ctx.rest), None, None, None, None


def _turn(x: Tensor, original: Rotate, place: int, other: Tensor, args: tuple[Any, ...]) -> Tensor:
    return original(*((x, other) if place == 0 else (other, x)), *args)[place]


def detached() -> None:
    """Turns keys outside autograd, as a kernel without a backward does."""
    _rotating(lambda original, q, k, *args: (original(q, k, *args)[0], original(q, k.detach(), *args)[1]))


def stale_tables() -> None:
    """Keeps the first tables it is given for each shape, and uses them ever after."""
    kept: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def rotate(original: Rotate, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any) -> Any:
        tables = kept.setdefault(tuple(cos.shape[-2:]), (cos[..., :1, :, :], sin[..., :1, :, :]))
        return original(q, k, *(table.expand_as(cos) for table in tables), *args)

    _rotating(rotate)


def frozen_copy(model: Any) -> None:
    """Copies the output projection when it is applied, and computes with the copy from then on."""
    head = model.lm_head
    weight = head.weight.detach().clone().requires_grad_()
    head.forward = lambda x: torch.nn.functional.linear(x, weight) + 0 * head.weight.sum()


def _site() -> tuple[ModuleType, str]:
    import importlib

    module = importlib.import_module("transformers.models.qwen2_vl.modeling_qwen2_vl")
    older = "apply_multimodal_rotary_pos_emb"
    return module, older if hasattr(module, older) else "apply_rotary_pos_emb"


def _rotating(wrong: Callable[..., Any]) -> None:
    """Put ``wrong(original, q, k, cos, sin, ...)`` into the rotary site."""
    module, name = _site()
    original = getattr(module, name)
    replacement = functools.wraps(original)(lambda q, k, *args, **kwargs: wrong(_bound(original, kwargs), q, k, *args))
    setattr(module, name, replacement)


def _bound(original: Rotate, kwargs: dict[str, Any]) -> Rotate:
    return functools.partial(original, **kwargs) if kwargs else original


def _run(name: str, inputs: Any) -> Outputs:
    from assay.audits import patches

    ref = f"{__name__}:{name}"
    return patches.implementation({"ref": FACTORY, "family": FAMILY, "patch": ref})(inputs)


LIGER = "https://github.com/huggingface/transformers/pull/48105"


def _fault(
    function: Callable[..., None], effect: str, caught_by: tuple[str, ...], link: str = "", also: tuple[str, ...] = ()
) -> Fault:
    name = function.__name__
    return Fault(
        name=name.replace("_", "-"), operation=NAME, why=inspect.cleandoc(function.__doc__ or ""), effect=effect,
        link=link, wrong=functools.partial(_run, name), caught_by=caught_by, also=also,
    )  # fmt: skip


FAULTS = (
    _fault(
        dead_attribute,
        "training goes on without the patch, and nobody is told",
        ("never-ran",),
        LIGER,
        also=("https://github.com/linkedin/Liger-Kernel",),  # 0.8.5
    ),
    _fault(early_return, "training goes on without the patch, and nobody is told", ("changed-nothing",)),
    _fault(raising, "training does not start", ("raises",)),
    _fault(swapped_axes, "images are read transposed", ("equal", "backward", "steps")),
    _fault(scaled, "attention is sharper than the checkpoint was trained with", ("equal", "backward")),
    _fault(forward_turned_backward, "the loss of the first step is right and training is not", ("backward", "steps")),
    _fault(detached, "key projections are never trained", ("backward", "steps")),
    _fault(stale_tables, "every sample but the first is turned by another sample's positions", ("equal",)),
    _fault(frozen_copy, "the head that is saved is not the one that was trained", ("backward", "steps")),
)
