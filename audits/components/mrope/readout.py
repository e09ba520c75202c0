"""What a run of a model returned, read as a batch, as a rotation, and as logits to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from assay.audits.components.mrope import positions, rotate
from assay.audits.components.mrope.model import Case, family_of
from assay.audits.laws.limits import difference, excess, floor, relative
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Outputs
from assay.reference import mrope
from assay.reference.mrope_rules import RULES, PositionRule


def from_first(ids: Tensor, out: Outputs) -> Tensor:
    """Ids counted from each sample's first token, whatever stands before it, and zero at padding."""
    mask = out["attention_mask"].bool()
    first = mask.int().argmax(dim=1)
    start = ids[:1, torch.arange(ids.shape[1]), first][..., None] if ids.shape[1] == len(first) else ids[:1, :, :1]
    grown = torch.ones(len(mask), ids.shape[-1] - mask.shape[1], dtype=torch.bool)
    return torch.where(torch.cat([mask, grown], dim=1), ids - start, 0)


def position_inputs(out: Outputs, params: Case) -> positions.Inputs:
    """The batch that the processor made, as inputs of the position rule."""
    family = family_of(params)
    rule = RULES[family.rule]
    empty = torch.zeros(0, 3, dtype=torch.int64)
    return positions.Inputs(
        rule=family.rule,
        spatial_merge=int(out["setting.spatial_merge"]) if "setting.spatial_merge" in out else rule.spatial_merge,
        ids_per_second=float(out["setting.ids_per_second"]) if "setting.ids_per_second" in out else rule.ids_per_second,
        temporal_merge=rule.temporal_merge,
        input_ids=out["input_ids"],
        token_types=out["token_types"],
        attention_mask=out["attention_mask"],
        image_grids=out.get("image_grids", empty),
        video_grids=out.get("video_grids", empty),
        seconds_per_grid=out.get("seconds_per_grid", torch.zeros(0)).float(),
        audio_lengths=runs(out["token_types"], 3),
    )


def runs(types: Tensor, kind: int) -> Tensor:
    """Lengths of the runs of one token type, row after row."""
    lengths = []
    for row in types.tolist():
        count = 0
        for value in [*row, -1]:
            if value == kind:
                count += 1
            elif count:
                lengths.append(count)
                count = 0
    return torch.tensor(lengths, dtype=torch.int64)


def rule(trial: Trial) -> PositionRule:
    """The position rule of the trial's family."""
    return RULES[family_of(trial.params).rule]


def visual_axes(ids: Tensor, axes: int) -> Tensor:
    """Ids [A,B,S] without the text row that some families carry in front; one axis where there is but one."""
    ids = ids if ids.ndim == 3 else ids[None]
    return ids[1:] if len(ids) == axes + 1 else ids


def rotate_inputs(out: Outputs, layout: str, pairing: str) -> rotate.Inputs:
    """The first layer's queries and keys, and what they are to be rotated by."""
    sections = tuple(int(size) for size in out["rotary.sections"])
    axes = mrope.lane_axes(layout, sections)
    ids = visual_axes(out["positions"], int(axes.max()) + 1)
    return rotate.Inputs(
        q=out["site.q"], k=out["site.k"], positions=ids.expand(int(axes.max()) + 1, -1, -1).long(),
        inv_freq=out["rotary.inv_freq"],
        axes=axes, layout=layout, sections=sections, pairing=pairing,
        attention_scaling=float(out["rotary.scaling"]),
    )  # fmt: skip


def wide(inputs: rotate.Inputs) -> rotate.Inputs:
    """A rotation in float64."""
    return dataclasses.replace(inputs, q=inputs.q.double(), k=inputs.k.double(), inv_freq=inputs.inv_freq.double())


def narrow(inputs: rotate.Inputs) -> rotate.Inputs:
    """A rotation in float32."""
    return dataclasses.replace(inputs, q=inputs.q.float(), k=inputs.k.float(), inv_freq=inputs.inv_freq.float())


def same(trial: Trial, got: Outputs, want: Outputs, message: str) -> Iterator[Evidence]:
    """Logits at real tokens agree, up to what float32 costs this model on this batch."""
    wide = trial.outcome.values
    reach = tokens(wide["logits"], wide).abs().amax()

    def ordinary() -> list[Tensor]:
        narrow = trial.once("float32", lambda: trial.run(dataclasses.replace(trial.inputs, dtype="float32")))
        return [relative(tokens(difference(narrow["logits"], wide["logits"]), wide), reach)]

    error = difference(tokens(got["logits"], got), tokens(want["logits"], want))
    found = excess("logits", relative(error, reach), floor([], reach, torch.float32), ordinary, message)
    if found:
        yield found


def tokens(values: Tensor, out: Outputs) -> Tensor:
    """Values at real tokens, row after row."""
    return values[out["attention_mask"].bool()]
