"""Puts samples one after the other into one row, with all that a model must know to keep them apart.

A packed sample is to be what it would be alone: its ids, its labels, its positions on every axis. Only its first label
is lost, since the token before it belongs to another sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from assay.reference.arguments import of_dtype
from assay.reference.mrope_positions import positions
from assay.reference.mrope_rules import PositionRule
from assay.reference.packed_boundaries import cumulative_lengths, segments_of_lengths
from assay.reference.packed_shards import aligned

__all__ = ["Pack", "Sample", "pack"]

MEDIA = ("image_grids", "video_grids", "seconds_per_grid", "audio_lengths")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample before packing.

    Attributes:
        input_ids: int64 [S], S above 0.
        labels: int64 [S]; None: the ids.
        token_types: int64 [S], 0 text, 1 image, 2 video, 3 audio; needed where positions have several axes.
        image_grids, video_grids, seconds_per_grid, audio_lengths: as `mrope_positions.positions` takes them, for this
            sample alone.
        further: other tensors with an entry for each token, [S, ...]; all samples have the same names.
        features: other tensors whose rows are no tokens, such as the patches of images; not all samples need have them.
    """

    input_ids: Tensor
    labels: Tensor | None = None
    token_types: Tensor | None = None
    image_grids: Tensor | None = None
    video_grids: Tensor | None = None
    seconds_per_grid: Tensor | None = None
    audio_lengths: Tensor | None = None
    further: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Samples in one row of T tokens.

    Attributes:
        input_ids, labels: int64 [T].
        position_ids: int64 [T], from 0 in each sample.
        axis_ids: [A, T], those of each sample alone by its family's rule; None without one.
        segments: int64 [T], 1 for the first sample; 0 for what was appended for alignment.
        cu_seqlens: int32 [N + 1], from 0 to T; what was appended counts as one more sample.
        max_length: the largest difference of `cu_seqlens`.
        image_grids, video_grids: [M, 3], those of all samples in their order, None where no sample has any.
        further: [T, ...] by name.
        features: those of all samples, one under another in the samples' order.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    axis_ids: Tensor | None
    segments: Tensor
    cu_seqlens: Tensor
    max_length: int
    image_grids: Tensor | None = None
    video_grids: Tensor | None = None
    further: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def text_and_axes(self) -> Tensor:
        """[1 + A, 1, T]: the text's row, then the axes, for families that take both. ValueError without axes."""
        if self.axis_ids is None:
            raise ValueError("axis_ids: the samples were packed without a rule of several axes")
        return torch.cat([self.position_ids[None].to(self.axis_ids.dtype), self.axis_ids])[:, None]


def pack(
    samples: Sequence[Sample],
    *,
    rule: PositionRule | None = None,
    ignore_index: int = -100,
    multiple: int = 1,
    pad_id: int = 0,
) -> Pack:
    """Put samples into one row, in their order.

    Args:
        samples: at least one, none of them empty.
        rule: how the family numbers the tokens of a sample on several axes; None for families with one axis.
        ignore_index: the label of the first token of each sample, and of what is appended.
        multiple: tokens are appended until there are a multiple of this many: `pad_id`, segment 0, position ids from 0,
            0 in all further tensors.
        pad_id: see `multiple`.

    Raises:
        TypeError, ValueError: by the name of the argument, and the number of the sample.
    """
    _checked(samples)
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    ids = aligned(torch.cat([sample.input_ids for sample in samples]), multiple, pad_id)
    segments = segments_of_lengths(lengths, len(ids)).to(ids.device)
    cu_seqlens, longest = cumulative_lengths(segments[None])
    place = torch.cat([torch.arange(count) for count in cu_seqlens.diff().tolist()])
    labels = aligned(torch.cat([_labels(sample, ignore_index) for sample in samples]), multiple, ignore_index)
    return Pack(
        input_ids=ids,
        labels=labels,
        position_ids=place.to(ids.device),
        axis_ids=None if rule is None else _axis_ids(rule, samples, place, int(lengths.sum())).to(ids.device),
        segments=segments,
        cu_seqlens=cu_seqlens,
        max_length=longest,
        image_grids=_joined(samples, "image_grids"),
        video_grids=_joined(samples, "video_grids"),
        further={
            name: aligned(torch.cat([sample.further[name] for sample in samples]), multiple, 0, dim=0)
            for name in samples[0].further
        },
        features={
            name: torch.cat([sample.features[name] for sample in samples if name in sample.features])
            for name in dict.fromkeys(name for sample in samples for name in sample.features)
        },
    )


def _labels(sample: Sample, ignore_index: int) -> Tensor:
    own = sample.input_ids if sample.labels is None else sample.labels
    return torch.cat([torch.full_like(own[:1], ignore_index), own[1:]])


def _axis_ids(rule: PositionRule, samples: Sequence[Sample], place: Tensor, total: int) -> Tensor:
    """[A, T]: each sample's own; what was appended counts on all axes alike."""
    own = [_alone(rule, i, sample) for i, sample in enumerate(samples)]
    rest = place[total:].to(own[0]).expand(len(own[0]), -1)
    return torch.cat([*own, rest], dim=1)


def _alone(rule: PositionRule, number: int, sample: Sample) -> Tensor:
    if sample.token_types is None:
        raise ValueError(f"samples[{number}].token_types: a rule of several axes needs them, got None")
    media: dict[str, Any] = {name: getattr(sample, name) for name in MEDIA}
    try:
        ids, _ = positions(rule, sample.token_types[None], **media)
    except ValueError as error:
        raise ValueError(f"samples[{number}].{error}") from error
    return ids[:, 0]


def _joined(samples: Sequence[Sample], name: str) -> Tensor | None:
    found = [grids for sample in samples if (grids := getattr(sample, name)) is not None]
    return torch.cat(found) if found else None


def _checked(samples: Sequence[Sample]) -> None:
    if not samples:
        raise ValueError("samples: expected at least one")
    names = set(samples[0].further)
    for i, sample in enumerate(samples):
        of_dtype(f"samples[{i}].input_ids", sample.input_ids, torch.int64)
        if sample.input_ids.ndim != 1 or not len(sample.input_ids):
            shape = list(sample.input_ids.shape)
            raise ValueError(f"samples[{i}].input_ids: expected the shape [S] with S above 0, got {shape}")
        if set(sample.further) != names:
            raise ValueError(f"samples[{i}].further: expected {sorted(names)}, got {sorted(sample.further)}")
        for name, x in (("labels", sample.labels), ("token_types", sample.token_types)):
            if x is not None and (of_dtype(f"samples[{i}].{name}", x, torch.int64).shape != sample.input_ids.shape):
                wanted = list(sample.input_ids.shape)
                raise ValueError(f"samples[{i}].{name}: expected the shape {wanted}, got {list(x.shape)}")
        for name, x in sample.further.items():
            if len(x) != len(sample.input_ids):
                raise ValueError(f"samples[{i}].further[{name!r}]: expected {len(sample.input_ids)} rows, got {len(x)}")
