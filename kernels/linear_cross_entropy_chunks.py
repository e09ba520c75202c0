"""Cross-entropy through a language-model head in chunks of scored rows: no more logits exist than one chunk's.

Letters in shapes: N tokens, n scored tokens, R rows of one chunk, H hidden width, V vocabulary.

A chunk costs one product for its logits, the cross-entropy that turns them into their gradient where they are, and one
product for each of the two gradients that is wanted. On a GPU the cross-entropy is the Triton kernel; elsewhere, and
in float64, it is the same arithmetic in plain torch. The gradient of the head is summed over the chunks in fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.kernels import masked_cross_entropy_launch as launch
from assay.kernels.loss_arguments import raise_stranger
from assay.kernels.masked_cross_entropy_launch import Rules
from assay.kernels.operands import refuse

GPU_BUDGET = 3 << 30
"""Bytes: with 150,000 logits in bf16 a chunk has 8,448 rows or more, and most batches are one chunk."""
CPU_BUDGET = 256 << 20
_TILE = (128, 256)
"""Rows and columns of the product that one multiprocessor makes at a time."""
_ADDS_TO_FP32 = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
"""Whether addmm adds a bf16 product to an fp32 matrix; before, its summand had to be bf16 too."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The tokens that are scored, and what their losses are divided by."""

    places: Tensor
    """int64 [n]: which tokens; N where there are fewer than n."""
    targets: Tensor
    """int64 [n]; the ignore index where there is no token."""
    weights: Tensor | None
    """[n] in the dtype of the arithmetic."""
    count: Tensor
    """int64 0-d."""
    divisor: Tensor
    """0-d; infinite where nothing is to be read, NaN where there are more than n."""
    surplus: bool
    """Whether there may be fewer than n."""

    def weighted(self, upstream: Tensor) -> Scored:
        """The same with weights times an upstream gradient, 0-d or one for each of N tokens."""
        upstream = upstream.to(self.divisor.dtype)
        if upstream.dim():
            flat = upstream.reshape(-1)
            upstream = flat[self.places.clamp(max=len(flat) - 1)] if len(flat) else flat
        weights = torch.ones_like(self.targets) if self.weights is None else self.weights
        return replace(self, weights=weights * upstream)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which gradients are made."""

    hidden: bool = False
    head: bool = False
    bias: bool = False

    def __bool__(self) -> bool:
        return self.hidden or self.head or self.bias


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Losses fp32 or float64 [n], and the gradients that were wanted, [N + 1 or N, H], [V, H] and [V]."""

    losses: Tensor
    hidden: Tensor | None
    head: Tensor | None
    bias: Tensor | None


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and exponentials: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def uses_kernel(x: Tensor) -> bool:
    """Whether the Triton kernel scores logits like x."""
    return x.is_cuda and x.dtype != torch.float64


def find_scored(
    labels: Tensor, weight: Tensor | None, normaliser: Tensor | None, *, vocabulary: int, dtype: torch.dtype,
    ignore_index: int, shift: bool, mean: bool, num_valid: int | None, check: bool,
) -> Scored:  # fmt: skip
    """Pick the scored tokens. Waits for the device once, unless `num_valid` tells how many there are at most.

    ValueError for a label outside the vocabulary, and for more than num_valid, if checked.
    """
    targets, weights = _aligned(labels, weight, ignore_index, shift=shift)
    scored = targets != ignore_index
    count = scored.sum()
    divisor = _divisor(scored, None if weights is None else weights.to(dtype), normaliser, mean=mean, dtype=dtype)
    scored = scored & ~divisor.isinf()
    size = None if num_valid is None else min(num_valid, len(targets))
    if check or size is None:
        strangers = (scored & ((targets < 0) | (targets >= vocabulary))).sum()
        found, odd = torch.stack([scored.sum(), strangers]).tolist()
        if check and odd:
            raise_stranger(labels, vocabulary, ignore_index, shift=shift)
        if check and size is not None and found > size:
            refuse(ValueError, "num_valid", f"at least {found}, as many tokens are scored", num_valid)
        size = found if size is None else size
    if num_valid is not None:
        divisor = torch.where(count > size, math.nan, divisor)
    places = torch.nonzero_static(scored, size=size, fill_value=-1)[:, 0] if size else targets[:0]
    absent, read = places < 0, places.clamp(min=0)
    return Scored(
        places=torch.where(absent, len(targets), places), targets=torch.where(absent, ignore_index, targets[read]),
        weights=None if weights is None else weights[read].to(dtype), count=count, divisor=divisor,
        surplus=num_valid is not None,
    )  # fmt: skip


def _divisor(
    scored: Tensor, weights: Tensor | None, normaliser: Tensor | None, *, mean: bool, dtype: torch.dtype
) -> Tensor:
    """1 without a mean; infinite where nothing is scored, or where the weights of a mean sum to 0."""
    total = scored.sum() if weights is None or normaliser is not None else torch.where(scored, weights, 0).sum()
    divisor = torch.ones_like(total) if not mean else total if normaliser is None else normaliser
    return torch.where(total == 0 if mean else scored.sum() == 0, math.inf, divisor.to(dtype))


def _aligned(labels: Tensor, weight: Tensor | None, ignore_index: int, *, shift: bool) -> tuple[Tensor, Tensor | None]:
    """Labels and weights [N], each at the token that is scored."""
    if shift and labels.shape[-1]:
        labels = torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], ignore_index)], -1)
        weight = None if weight is None else torch.cat([weight[..., 1:], torch.zeros_like(weight[..., :1])], -1)
    return labels.reshape(-1), None if weight is None else weight.reshape(-1)


def rows_per_chunk(rows: int, vocabulary: int, width: int, bytes_per_logit: int, budget: int, processors: int) -> int:
    """How many rows to take at a time, at least one.

    All, if their logits fit the budget: one chunk needs no accumulator and reads the head twice. Else, on a GPU, as
    many as let the product with the head, which has few but long tiles, keep all multiprocessors busy to its end.
    """
    most = max(1, budget // (vocabulary * bytes_per_logit))
    blocks = most // _TILE[0]
    if rows <= most or not processors or not blocks:
        return max(1, min(rows, most))
    columns = math.ceil(width / _TILE[1])

    def busy(count: int) -> float:
        waves = count * columns / processors
        return round(waves / math.ceil(waves), 2)

    return _TILE[0] * max(range(blocks // 2 + 1, blocks + 1), key=lambda count: (busy(count), count))


def score(
    hidden: Tensor, head: Tensor, bias: Tensor | None, scored: Scored, rules: Rules, wanted: Wanted, budget: int | None
) -> Scores:
    """Losses and wanted gradients of hidden [..., H] under head [V, H] and bias [V], chunk by chunk."""
    rows, tokens = len(scored.targets), math.prod(hidden.shape[:-1])
    size = _chunk(rows, head, rules, wanted, budget)
    losses, buffer = scored.divisor.new_empty(rows), head.new_empty(min(size, rows), len(head))
    gradients = _Gradients(head, wanted, tokens=tokens + scored.surplus, whole=rows <= size)
    score_chunk = _score_fused if uses_kernel(head) else _score_plain
    for start in range(0, rows, size):
        part = slice(start, start + size)
        places = scored.places[part]
        taken, logits = _gather(hidden, places, surplus=scored.surplus), buffer[: len(places)]
        torch.mm(taken, head.t(), out=logits) if bias is None else torch.addmm(bias, taken, head.t(), out=logits)
        weights = None if scored.weights is None else scored.weights[part]
        arguments = (logits, scored.targets[part], weights, scored.divisor, rules)
        losses[part], slopes = score_chunk(*arguments, gradient=bool(wanted))
        if slopes is not None:
            gradients.add(slopes, logits, taken, places)
    return gradients.scores(losses)


def _chunk(rows: int, head: Tensor, rules: Rules, wanted: Wanted, budget: int | None) -> int:
    """Rows of one chunk; the budget is for all matrices of the size of its logits."""
    bytes_per_logit, processors = head.element_size(), 0
    if head.is_cuda:
        processors = torch.cuda.get_device_properties(head.device).multi_processor_count
    if not uses_kernel(head):
        wide = arithmetic(head.dtype).itemsize
        bytes_per_logit += wide * ((head.dtype.itemsize != wide) + bool(rules.softcap and wanted))
    budget = budget or (GPU_BUDGET if head.is_cuda else CPU_BUDGET)
    vocabulary, width = head.shape
    return rows_per_chunk(rows, vocabulary, width, bytes_per_logit, budget, processors)


def _gather(hidden: Tensor, places: Tensor, *, surplus: bool) -> Tensor:
    """Rows [R, H] of hidden [..., H] at flat places, of any strides; zeros for places past the end."""
    index: list[Tensor] = []
    left = places.clamp(max=math.prod(hidden.shape[:-1]) - 1) if surplus else places
    for size in reversed(hidden.shape[:-1]):
        index.insert(0, left % size)
        left = left // size
    rows = hidden[tuple(index)]
    return rows.masked_fill_((places == math.prod(hidden.shape[:-1]))[:, None], 0) if surplus else rows


def _score_fused(
    logits: Tensor, targets: Tensor, weights: Tensor | None, divisor: Tensor, rules: Rules, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """As `_score_plain`, with the gradient written over the logits."""
    losses, _, _ = launch.score_rows(logits[None], targets, weights, divisor, rules, gradient=gradient)
    return losses, logits if gradient else None


def _score_plain(
    logits: Tensor, targets: Tensor, weights: Tensor | None, divisor: Tensor, rules: Rules, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses [R] of logits [R, V], times their weights, and their gradient over the divisor in fp32 or float64.

    The steps of `masked_cross_entropy_triton`, each in place: the logits are lost.
    """
    x = logits.to(divisor.dtype)
    scored = targets != rules.ignore_index
    known = (targets >= 0) & (targets < x.shape[1])
    label = torch.where(known & scored, targets, 0)[:, None]
    bend = None
    if rules.softcap:
        x.div_(rules.softcap).tanh_()
        bend = 1 - x * x if gradient else None
        x.mul_(rules.softcap)
    peak = x.amax(1, keepdim=True)
    x.sub_(peak)
    at_label, lean = x.gather(1, label), x.mean(1, keepdim=True) if rules.label_smoothing else 0.0
    mass = x.exp_().sum(1, keepdim=True)
    lse = peak + mass.log()
    losses = mass.log() - at_label - rules.label_smoothing * (lean - at_label) + rules.z_loss * lse**2
    weight = torch.where(known, 1.0 if weights is None else weights, math.nan).to(x.dtype)[:, None]
    losses = torch.where(scored, (losses * weight)[:, 0], 0)
    if not gradient:
        return losses, None
    factor = weight / divisor
    x.mul_(factor / mass * (1 + 2 * rules.z_loss * lse))
    if rules.label_smoothing:
        x.sub_(factor * (rules.label_smoothing / x.shape[1]))
    rows = torch.arange(len(x), device=x.device)
    x[rows, label[:, 0]] -= (factor * (1 - rules.label_smoothing))[:, 0]
    if bend is not None:
        x.mul_(bend)
    return losses, x.masked_fill_(~scored[:, None], 0)


class _Gradients:
    """The gradients that are wanted, as they add up over chunks."""

    def __init__(self, head: Tensor, wanted: Wanted, *, tokens: int, whole: bool) -> None:
        self._weight, self._wanted, self._dtype = head, wanted, arithmetic(head.dtype)
        self._at_once = whole and uses_kernel(head)  # one product, which is summed in fp32 and rounded once
        self._hidden = head.new_zeros(tokens, head.shape[1]) if wanted.hidden else None
        self._head: Tensor | None = None
        self._bias = head.new_zeros(len(head), dtype=self._dtype) if wanted.bias else None

    def add(self, slopes: Tensor, logits: Tensor, taken: Tensor, places: Tensor) -> None:
        """Add a chunk's share: slopes [R, V] by rows taken [R, H] at their places; logits [R, V] is free memory."""
        if self._bias is not None:
            self._bias += slopes.sum(0, dtype=self._dtype)
        if self._wanted.head:
            self._head = slopes.t() @ taken if self._at_once else self._with_product(slopes.t(), taken)
        if self._hidden is not None:
            rounded = slopes if slopes.dtype == logits.dtype else logits.copy_(slopes)
            self._hidden.index_copy_(0, places, rounded @ self._weight)

    def _with_product(self, a: Tensor, b: Tensor) -> Tensor:
        """The head's gradient so far plus a @ b, in the dtype of sums."""
        total, dtype = self._head, self._dtype
        if not a.is_cuda or a.dtype == b.dtype == dtype:
            a, b = a.to(dtype), b.to(dtype)
            return a @ b if total is None else total.addmm_(a, b)
        if total is None:
            return torch.mm(a, b, out_dtype=dtype)
        if _ADDS_TO_FP32:
            return torch.addmm(total, a, b, out_dtype=dtype, out=total)
        return total.add_(torch.mm(a, b, out_dtype=dtype))

    def scores(self, losses: Tensor) -> Scores:
        """All together; only the short gradient of the bias is still in the dtype of sums."""
        head = self._head
        if self._wanted.head:
            head = torch.zeros_like(self._weight) if head is None else head.to(self._weight.dtype)
        return Scores(losses=losses, hidden=self._hidden, head=head, bias=self._bias)
