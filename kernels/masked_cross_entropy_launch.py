"""How the kernels of the masked cross-entropy are started: tile sizes, operands, outputs.

Letters in shapes: N rows (tokens), V vocabulary. Logits come as [outer, inner, V] with stride 1 in V.
"""
# mypy: disable-error-code="import-untyped"
# Triton ships neither stubs nor py.typed.

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from assay.kernels import masked_cross_entropy_triton as kernels

INTERPRETED = bool(kernels.INTERPRETED)
"""Whether the kernels were decorated for Triton's CPU interpreter."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a row is scored; `softcap` 0 stands for none."""

    ignore_index: int = -100
    softcap: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    length: int = 0
    """The sequence length where labels are shifted; 0 where they are not."""

    def arguments(self) -> dict[str, Any]:
        """The kernels' arguments of these names."""
        return {
            "length": max(self.length, 1), "ignore_index": self.ignore_index,
            "numbers": (self.softcap, self.label_smoothing, self.z_loss), "SHIFT": self.length > 0,
            "CAPPED": self.softcap != 0.0, "SMOOTHED": self.label_smoothing != 0.0, "SQUARED": self.z_loss != 0.0,
        }  # fmt: skip


_STREAMED = 8192
_RESIDENT = 16384
_REDUCED = 4096
SCALERS = 1024
"""The most programs that scale rows; each takes its share of all blocks."""


def _cut(x: Tensor, rules: Rules, most: int) -> tuple[int, int]:
    """(block, warps) for the rows of x.

    A kernel that reads its rows twice takes `_RESIDENT`, all threads of a multiprocessor for one row: the rows in
    flight (132 of 300 kB, for 150,000 logits in bf16) then stay in the second-level cache for the second read. Each
    thread has 16 logits, or 8 in fp32 and under the soft-cap: a block in fp32 and the next one as it is stored then fit
    the 64 registers of a thread.
    """
    half = x.element_size() == 4 or bool(rules.softcap)
    block = min(triton.next_power_of_2(x.shape[-1]), most // 2 if half else most)
    return block, max(1, block // (256 if half else 512))


def block_of(x: Tensor, *, gradient: bool) -> int:
    """How many columns of x [..., V] a program takes at a time; `gradient`: where it reads its rows twice."""
    return _cut(x, Rules(), _RESIDENT if gradient else _STREAMED)[0]


def _operand(x: Tensor) -> tuple[Any, ...]:
    """(pointer, rows per outer step, outer stride, inner stride) of x [outer, inner, V]."""
    return x, max(x.shape[1], 1), x.stride(0), x.stride(1)


def _here(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def count_labels(
    labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, rules: Rules, *, vocabulary: int, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(scored labels int64, those of them outside the vocabulary int64, divisor fp32), each 0-d on the device.

    labels [N] int64 and weight [N] are contiguous; normaliser has one element.
    """
    count, strangers = (torch.zeros((), dtype=torch.int64, device=labels.device) for _ in range(2))
    divisor = torch.ones((), dtype=torch.float32, device=labels.device)
    arguments = rules.arguments()
    block = min(triton.next_power_of_2(max(labels.numel(), 1)), _REDUCED)
    with _here(labels):
        kernels.count_kernel[(1,)](
            labels, weight, normaliser, count, strangers, divisor, labels.numel(), arguments["length"],
            rules.ignore_index, vocabulary, SHIFT=arguments["SHIFT"], MEAN=mean, BLOCK=block, num_warps=16,
        )  # fmt: skip
    return count, strangers, divisor


def score_rows(
    logits: Tensor, labels: Tensor, weight: Tensor | None, divisor: Tensor | None, rules: Rules, *,
    gradient: bool = False, statistics: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(losses fp32 [N], peaks, masses) of logits; the rest as for `rows_kernel`."""
    rows, vocabulary = labels.numel(), logits.shape[-1]
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    peaks, masses = (torch.empty_like(losses), torch.empty_like(losses)) if statistics else (None, None)
    if rows:
        block, warps = _cut(logits, rules, _RESIDENT if gradient else _STREAMED)
        with _here(logits):
            kernels.rows_kernel[(rows,)](
                _operand(logits), labels, weight, divisor, losses, peaks, masses, **rules.arguments(), V=vocabulary,
                BLOCK=block, GRADIENT=gradient, num_warps=warps,
            )  # fmt: skip
    return losses, peaks, masses


def fill_gradient(
    logits: Tensor, gradient: Tensor, labels: Tensor, weight: Tensor | None, divisor: Tensor, upstream: Tensor,
    statistics: tuple[Tensor, Tensor], rules: Rules,
) -> None:  # fmt: skip
    """Fill gradient [outer, inner, V], which may be logits, from the statistics (peaks, masses) of `score_rows`.

    upstream: contiguous fp32, [N] or one element for all rows.
    """
    rows, vocabulary = labels.numel(), logits.shape[-1]
    if not rows:
        return
    block, warps = _cut(logits, rules, _STREAMED)
    with _here(logits):
        kernels.gradient_kernel[(rows * triton.cdiv(vocabulary, block),)](
            _operand(logits), _operand(gradient), labels, weight, divisor, upstream, *statistics,
            upstream_stride=int(upstream.dim() > 0), **rules.arguments(), V=vocabulary, BLOCK=block, num_warps=warps,
        )  # fmt: skip


def sum_losses(losses: Tensor, divisor: Tensor) -> Tensor:
    """The sum of the losses [N] over the divisor, fp32 0-d."""
    value = torch.empty((), dtype=torch.float32, device=losses.device)
    block = min(triton.next_power_of_2(max(losses.numel(), 1)), _REDUCED)
    with _here(losses):
        kernels.sum_kernel[(1,)](losses, divisor, value, losses.numel(), BLOCK=block, num_warps=8)
    return value


def scale_rows(x: Tensor, factor: Tensor) -> None:
    """Multiply x [outer, inner, V] where it is by factor, one fp32 element on the device."""
    if not x.numel():
        return
    block, warps = _cut(x, Rules(), _STREAMED)
    blocks = x.shape[0] * x.shape[1] * triton.cdiv(x.shape[-1], block)
    with _here(x):
        kernels.scale_kernel[(min(blocks, SCALERS),)](
            _operand(x), factor, blocks, V=x.shape[-1], BLOCK=block, num_warps=warps
        )
