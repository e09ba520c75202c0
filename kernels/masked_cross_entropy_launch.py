"""How the kernels of the masked cross-entropy are started: tile sizes, operands, outputs.

Letters in shapes: N rows (tokens), V vocabulary. Logits come as [outer, inner, V] with stride 1 in V.
"""
# mypy: disable-error-code="import-untyped"
# Triton ships neither stubs nor py.typed.

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from assay.kernels import choices
from assay.kernels import masked_cross_entropy_triton as kernels
from assay.kernels.masked_cross_entropy_teams import MOST, teams_kernel

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
_SHARED = 8192
_TEAM_WARPS = 16
_REDUCED = 4096
SCALERS = 1024
"""The most programs that scale rows; each takes its share of all blocks."""


ELSEWHERE = 132
"""Multiprocessors that are assumed where there is no GPU: by the offline compiler, and in the interpreter."""
_REGISTERS = 65536
"""Of one multiprocessor, for all programs that it holds."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How one launch cuts the rows; the names are those of `choices.ALLOWED`."""

    block: int
    """Columns that a program takes at a time."""
    warps: int
    form: str = choices.TWO_READS
    residents: int = 1
    """Programs that one multiprocessor holds, where teams share rows."""


def shape_class(x: Tensor, rules: Rules) -> str:
    """What `choices` calls rows like those of x: the size of a logit, the power of two that V fits, what slows them."""
    anywhere = ", beginning anywhere" if x.shape[-1] % 8 else ""
    capped = ", soft-cap" if rules.softcap else ""
    return f"{x.element_size()} bytes, {triton.next_power_of_2(x.shape[-1])} columns{anywhere}{capped}"


def cut(kernel: str, x: Tensor, rules: Rules) -> Cut:
    """How `cross_entropy.KERNEL` cuts the rows of x: as was chosen for its chip, else by a formula.

    A kernel that reads its rows twice takes `_RESIDENT`, all threads of a multiprocessor for one row: the rows in
    flight (132 of 300 kB, for 150,000 logits in bf16) then stay in the second-level cache for the second read. Each
    thread has 16 logits, or 8 in fp32 and under the soft-cap: a block in fp32 and the next one as it is stored then fit
    the 64 registers of a thread. Where teams share rows, a thread has 128 registers, for twice as many logits: of the
    row before what its gradient is made of, of the next one as they are stored. Half as many also where rows begin
    anywhere, and 16 bytes cannot be read at once.
    """
    chosen = choices.look_up(f"cross_entropy.{kernel}", shape_class(x, rules), x)
    half = x.element_size() == 4 or bool(rules.softcap)
    if chosen.get("form") == choices.ONE_READ:
        block = min(triton.next_power_of_2(x.shape[-1]), chosen.get("block", _SHARED))
        warps = max(1, min(32, block // (512 if half or x.shape[-1] % 8 else 1024)))
        formula = Cut(block=block, warps=warps, residents=max(1, _TEAM_WARPS // chosen.get("warps", warps)))
    else:
        most = _RESIDENT if kernel == "fused" else _STREAMED
        block = min(triton.next_power_of_2(x.shape[-1]), chosen.get("block", most // 2 if half else most))
        formula = Cut(block=block, warps=max(1, min(32, block // (256 if half else 512))))
    return replace(formula, **{name: value for name, value in chosen.items() if name != "block"})


def block_of(x: Tensor, *, gradient: bool) -> int:
    """How many columns of x [..., V] a program takes at a time; `gradient`: where it reads its rows twice."""
    return cut("fused" if gradient else "rows", x, Rules()).block


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
        sizes = cut("fused" if gradient else "rows", logits, rules)
        teams = teams_for(logits, rows, sizes) if gradient and sizes.form == choices.ONE_READ else None
        if teams:
            _share_rows(logits, labels, weight, divisor, losses, rules, sizes, teams)
            return losses, None, None
        with _here(logits):
            kernels.rows_kernel[(rows,)](
                _operand(logits), labels, weight, divisor, losses, peaks, masses, **rules.arguments(), V=vocabulary,
                BLOCK=sizes.block, GRADIENT=gradient, num_warps=sizes.warps,
            )  # fmt: skip
    return losses, peaks, masses


@dataclass(frozen=True, kw_only=True)
class Teams:
    """How programs share rows: `count` teams of `size` programs, each with `width` columns of its team's rows."""

    size: int
    width: int
    count: int


def teams_for(logits: Tensor, rows: int, sizes: Cut) -> Teams | None:
    """The teams of one launch; None where not even one of them would run at a time, or be able to meet.

    Slices are equal, so that no program of a team waits for one that has more to do, and begin at multiples of 16.
    """
    vocabulary, most = logits.shape[-1], _most_programs(logits, sizes)
    width = triton.cdiv(triton.cdiv(vocabulary, triton.cdiv(vocabulary, sizes.block)), 16) * 16
    size = triton.cdiv(vocabulary, width)
    return Teams(size=size, width=width, count=min(most // size, rows)) if size <= min(most, int(MOST)) else None


def _most_programs(x: Tensor, sizes: Cut) -> int:
    """How many programs the chip of x holds at a time, which is all that may wait for each other."""
    count = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else ELSEWHERE
    return count * sizes.residents


def _share_rows(
    logits: Tensor, labels: Tensor, weight: Tensor | None, divisor: Tensor | None, losses: Tensor, rules: Rules,
    sizes: Cut, teams: Teams,
) -> None:  # fmt: skip
    """Fill losses [N] and write the gradient over logits by `teams_kernel`."""
    rows = losses.numel()
    words = 2 if rules.label_smoothing else 1
    meeting = torch.zeros(rows * int(MOST) * words, dtype=torch.int64, device=logits.device)
    phases = ((True, False), (False, True)) if INTERPRETED else ((True, True),)
    with _here(logits):
        for publish, finish in phases:
            teams_kernel[(teams.count * teams.size,)](
                _operand(logits), labels, weight, divisor, losses, meeting, rows, **rules.arguments(),
                V=logits.shape[-1], SLICE=teams.width, BLOCK=sizes.block, TEAM=teams.size, PUBLISH=publish,
                FINISH=finish, num_warps=sizes.warps, **_cooperative(sizes),
            )  # fmt: skip


def _cooperative(sizes: Cut) -> dict[str, Any]:
    """Options of a launch whose programs wait for each other.

    The driver starts all of them or refuses. Few enough registers that a multiprocessor holds `residents` programs at
    a time, so that it does not refuse what `_most_programs` allows: their shared memory is some hundred bytes.
    """
    threads = 32 * sizes.warps * sizes.residents
    return {"launch_cooperative_grid": True, "maxnreg": min(255, _REGISTERS // threads // 8 * 8)}


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
    sizes = cut("gradient", logits, rules)
    with _here(logits):
        kernels.gradient_kernel[(rows * triton.cdiv(vocabulary, sizes.block),)](
            _operand(logits), _operand(gradient), labels, weight, divisor, upstream, *statistics,
            upstream_stride=int(upstream.dim() > 0), **rules.arguments(), V=vocabulary, BLOCK=sizes.block,
            num_warps=sizes.warps,
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
    sizes = cut("scale", x, Rules())
    blocks = x.shape[0] * x.shape[1] * triton.cdiv(x.shape[-1], sizes.block)
    with _here(x):
        kernels.scale_kernel[(min(blocks, SCALERS),)](
            _operand(x), factor, blocks, V=x.shape[-1], BLOCK=sizes.block, num_warps=sizes.warps
        )
