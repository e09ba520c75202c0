"""What the losses on labels share: which tokens are scored, against what, and how row losses become one number.

Letters: B batch, S tokens.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from assay.audits.fields import Amount, Count, Positive, Size, one_of
from assay.audits.strategies import st
from assay.audits.terms import Outputs
from assay.reference import masked_loss

MASKED = ("some", "all", "none", "one", "ragged")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Labels and options of a case. ``masked``: some, all, none, all but one, or ragged (a prompt in front)."""

    seed: Count = 0
    batch: Count = 2
    length: Size = 7
    vocab: Size = 37
    masked: Annotated[str, one_of(MASKED)] = "some"
    shift: bool = False
    ignore_index: int = -100
    weighted: bool = False
    softcap: Positive | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    z_loss: Amount = 0.0
    reduction: Annotated[str, one_of(masked_loss.REDUCTIONS)] = "mean"
    normaliser: Positive | None = None


class Rows(ABC):
    """What laws ask of an inputs record: which tensor holds its rows, which are scored, and parts of it.

    ``ROWS`` names the tensor [B,S,...]; ``PER_SAMPLE`` the fields whose first dimension is the batch.
    """

    ROWS: ClassVar[str]
    PER_SAMPLE: ClassVar[tuple[str, ...]]
    reduction: str
    normaliser: float | None

    @abstractmethod
    def scored(self) -> Tensor:
        """[B,S] or [B,S,D] bool: what takes part in the loss."""

    @abstractmethod
    def amount(self) -> float:
        """What a mean over this record alone is divided by."""

    @abstractmethod
    def appended(self, count: int) -> Self:
        """The record with ``count`` masked tokens after each sample and a masked sample at the end."""

    @abstractmethod
    def emptied(self) -> Self:
        """The record with everything masked."""

    def samples(self, index: Tensor | slice) -> Self:
        """These samples of the batch."""
        own = {name: getattr(self, name) for name in self.PER_SAMPLE}
        return self.but(**{name: x[index] for name, x in own.items() if x is not None})

    def but(self, **changes: Any) -> Self:
        """The record with some fields replaced."""
        record: Any = self
        changed: Self = dataclasses.replace(record, **changes)
        return changed

    def reasonable_step(self) -> float:
        """How far all rows may be moved for the loss to be nearly straight."""
        return 1.0

    @property
    def batch(self) -> int:
        """How many samples there are."""
        return len(getattr(self, self.ROWS))

    def share(self, whole: Self) -> float:
        """By what the loss of this part is multiplied so that the parts of ``whole`` add up to it."""
        if self.reduction != "mean" or self.normaliser is not None:
            return 1.0
        return self.amount() / (whole.amount() or 1.0)


@dataclass(frozen=True, kw_only=True)
class Labelled(Rows):
    """The part of an inputs record that says how rows are scored.

    ``labels`` [B,S] int64; ``weight`` [B,S] float32 of each label's token, or None. ``shift``: row s is scored against
    ``labels[:, s + 1]``. ``normaliser`` is the divisor of the mean, None for the weights of this call's valid tokens.
    """

    labels: Tensor
    weight: Tensor | None
    shift: bool
    ignore_index: int
    softcap: float | None
    label_smoothing: float
    z_loss: float
    reduction: str
    normaliser: float | None

    def scored(self) -> Tensor:
        """[B,S] bool: which rows are scored."""
        return valid(self)

    def amount(self) -> float:
        """The sum of the weights of the scored rows."""
        return float(row_weights(self).sum())

    def appended(self, count: int) -> Self:
        """More tokens and one more sample, all with the ignore index for a label."""
        return self.but(
            labels=longer(self.labels, count, self.ignore_index),
            weight=None if self.weight is None else longer(self.weight, count, 1.5),
            **{self.ROWS: longer(getattr(self, self.ROWS), count, 0.75)},
        )

    def emptied(self) -> Self:
        """The record with the ignore index for every label."""
        return dataclasses.replace(self, labels=torch.full_like(self.labels, self.ignore_index))


def longer(x: Tensor, count: int, value: float) -> Tensor:
    """``x`` [B,S,...] with ``count`` more tokens and one more sample, filled with ``value``."""
    grown = x.new_full((x.shape[0] + 1, x.shape[1] + count, *x.shape[2:]), value)
    grown[: x.shape[0], : x.shape[1]] = x
    return grown


def pointed_at(indices: Tensor, valid: Tensor, places: int) -> Tensor:
    """[B,places] bool: what the valid ones among ``indices`` [B,M] point to, however often."""
    found = torch.zeros((len(indices), places), dtype=torch.int64, device=indices.device)
    return found.scatter_add(1, indices, valid.long()) > 0


def labels(case: Case, generator: torch.Generator) -> Tensor:
    """Labels [B,S] int64: the first and the last of the vocabulary among them, masked ones the ignore index."""
    shape = (case.batch, case.length)
    drawn = torch.randint(0, case.vocab, shape, generator=generator)
    ends = torch.rand(shape, generator=generator)
    drawn = torch.where(ends < 1 / 6, 0, torch.where(ends > 5 / 6, case.vocab - 1, drawn))
    if 0 <= case.ignore_index < case.vocab and case.vocab > 1:
        drawn = torch.where(drawn == case.ignore_index, (drawn + 1) % case.vocab, drawn)
    return torch.where(_masked(case, shape, generator), case.ignore_index, drawn)


def _masked(case: Case, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    if case.masked == "some":
        mask = torch.rand(shape, generator=generator) < torch.rand((shape[0], 1), generator=generator)
        return mask.index_fill(1, torch.tensor([shape[1] - 1]), value=False) if shape[1] else mask
    if case.masked == "ragged":  # prompts first, then what is trained on, then padding
        start = torch.randint(0, shape[1] + 1, (shape[0], 1), generator=generator)
        stop = start + torch.randint(0, shape[1] + 1, (shape[0], 1), generator=generator)
        place = torch.arange(shape[1])
        return (place < start) | (place >= stop)
    if case.masked == "one":
        keep = torch.zeros(shape, dtype=torch.bool)
        keep.view(-1)[-1:] = True
        return ~keep
    if case.masked in {"all", "none"}:
        return torch.full(shape, case.masked == "all")
    message = f"masked: expected one of {', '.join(MASKED)}, got {case.masked!r}"
    raise ValueError(message)


def options(case: Case, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The fields of an inputs record that say how the rows are scored. Weights differ from token to token."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.rand((case.batch, case.length), generator=generator) * 2 + 0.125 if case.weighted else None
    return {
        "weight": None if weight is None else weight.to(device, wide),
        "shift": case.shift,
        "ignore_index": case.ignore_index,
        "softcap": case.softcap,
        "label_smoothing": case.label_smoothing,
        "z_loss": case.z_loss,
        "reduction": case.reduction,
        "normaliser": case.normaliser,
    }


def targets(labels_BS: Tensor, ignore_index: int, *, shift: bool) -> Tensor:
    """Labels by the row that is scored against them: shifted by one where asked for."""
    if not shift:
        return labels_BS
    return torch.cat([labels_BS[:, 1:], torch.full_like(labels_BS[:, :1], ignore_index)], dim=1)


def valid(inputs: Labelled) -> Tensor:
    """[B,S] bool: which rows are scored."""
    return targets(inputs.labels, inputs.ignore_index, shift=inputs.shift) != inputs.ignore_index


def row_weights(inputs: Labelled) -> Tensor:
    """[B,S] float64: the weight of each row, 1 without weights, 0 where it is not scored."""
    mask = valid(inputs)
    if inputs.weight is None:
        return mask.double()
    own = inputs.weight.double()
    own = torch.cat([own[:, 1:], own[:, :1]], dim=1) if inputs.shift else own
    return torch.where(mask, own, 0.0)


def divisor(inputs: Labelled) -> float:
    """What the sum of weighted row losses is divided by; 1 where it is not."""
    if inputs.reduction != "mean":
        return 1.0
    own = float(row_weights(inputs).sum())
    return (inputs.normaliser if inputs.normaliser is not None else own) or 1.0


def reduced(rows_N: Tensor, valid_BS: Tensor, inputs: Labelled) -> Tensor:
    """Row losses of the valid tokens to what the case asks for, zeros where nothing is scored."""
    rows_N = rows_N * row_weights(inputs)[valid_BS].to(rows_N)
    if inputs.reduction == "none":
        return rows_N.new_zeros(valid_BS.shape).masked_scatter(valid_BS, rows_N)
    return rows_N.sum() / divisor(inputs)


def reach(inputs: Labelled, largest_BS: Tensor, upstream: Outputs | None, name: str) -> Outputs:
    """The magnitudes that enter the loss and the gradient of ``name`` [B,S,...], from that of each row."""
    entering = largest_BS * _additions(inputs, largest_BS) * row_weights(inputs).abs()
    whole = entering.sum() / divisor(inputs)
    found = {"loss": entering if inputs.reduction == "none" else whole}
    if upstream is not None:
        by_row = (upstream["loss"].detach().double().abs() * entering / divisor(inputs)).expand_as(entering)
        found[f"grad:{name}"] = by_row[..., None]
    return found


def _additions(inputs: Labelled, largest_BS: Tensor) -> Tensor:
    """What the square of the log-sum-exp adds to what enters a row."""
    return 1 + 2 * inputs.z_loss * largest_BS


def strategies() -> dict[str, st.SearchStrategy[Any]]:
    """Strategies of the labels and options, by field."""
    return {
        "seed": st.integers(0, 2**16),
        "batch": st.integers(0, 4),
        "length": st.integers(1, 9),
        "masked": st.sampled_from(["some", "some", "ragged", "one", "none", "all"]),
        "shift": st.booleans(),
        "ignore_index": st.sampled_from([-100, -100, -1, 0, 2]),
        "weighted": st.sampled_from([False, False, True]),
        "softcap": st.sampled_from([None, None, None, 2.5, 30.0]),
        "label_smoothing": st.sampled_from([0.0, 0.0, 0.0, 0.1]),
        "z_loss": st.sampled_from([0.0, 0.0, 0.0, 1e-2]),
        "reduction": st.sampled_from(["mean", "mean", "sum", "none"]),
        "normaliser": st.none(),
    }
