"""``mrope.positions``: the (time, height, width) ids of every token of a batch, by a family's rule.

Letters: A axes, B samples, S tokens with padding, N images, M videos, K audio clips.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.candidates import of_family, of_reference
from assay.audits.components.mrope import position_manual, stream
from assay.audits.components.mrope.position_cases import CASES, Case, strategy, supports
from assay.audits.families import samples
from assay.audits.terms import Candidate, Exact, Family, Form, Inexpressible, Operation, Outputs
from assay.reference import mrope_positions as reference_positions
from assay.reference.mrope_rules import RULES, PositionRule

NAME = "mrope.positions"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch as a processor hands it over, and the family's rule with what a configuration may change.

    ``input_ids``, ``token_types`` (0 text, 1 image, 2 video, 3 audio) and ``attention_mask`` are int64 [B,S]; grids
    int64 [N,3] and [M,3] (time, height, width) in patches; ``seconds_per_grid`` float32 [M]; ``audio_lengths`` int64
    [K] in tokens. Absent modalities have no rows.

    ``absent`` names optional inputs that the call is made without; what they hold says what that must amount to.
    Grids without rows are handed over as None, those named in ``empty`` as they are.
    """

    rule: str
    spatial_merge: int
    ids_per_second: float
    temporal_merge: int
    input_ids: Tensor
    token_types: Tensor
    attention_mask: Tensor
    image_grids: Tensor
    video_grids: Tensor
    seconds_per_grid: Tensor
    audio_lengths: Tensor
    absent: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    def given(self, name: str) -> Tensor | None:
        """An optional input as it is handed over, None where it is not; seconds and audio by rules that have them."""
        value: Tensor = getattr(self, name)
        rule = RULES[self.rule]
        used = {"seconds_per_grid": rule.video_time == "seconds", "audio_lengths": rule.audio}.get(name, True)
        here = name == "attention_mask" or name in self.empty or len(value) > 0
        return value if used and here and name not in self.absent else None

    @property
    def position_rule(self) -> PositionRule:
        """The family's rule with this batch's settings."""
        return dataclasses.replace(
            RULES[self.rule],
            spatial_merge=self.spatial_merge,
            ids_per_second=self.ids_per_second,
            temporal_merge=self.temporal_merge,
        )


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """The batch of a case. ``ids_per_second`` of zero takes the rule's own."""
    rule = RULES[case.rule]
    scale = 4 if rule.spatial_merge == 4 else 1
    rows = [
        stream.write(_scaled(samples.parse(text), scale), case.rule, wrap=case.wrap, seed=case.seed + place)
        for place, text in enumerate(case.samples)
    ]
    tokens, mask = stream.padded([row.tokens for row in rows], case.padding, stream.PAD)
    types, _ = stream.padded([row.types for row in rows], case.padding, 0)

    def integers(values: list[Any], *shape: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device).reshape(*shape)

    shape = (len(rows), len(mask[0]))
    return Inputs(
        rule=case.rule,
        spatial_merge=rule.spatial_merge,
        ids_per_second=case.ids_per_second or rule.ids_per_second,
        temporal_merge=rule.temporal_merge,
        input_ids=integers(tokens, *shape),
        token_types=integers(types, *shape),
        attention_mask=integers(mask, *shape),
        image_grids=integers([grid for row in rows for grid in row.image_grids], -1, 3),
        video_grids=integers([grid for row in rows for grid in row.video_grids], -1, 3),
        seconds_per_grid=torch.tensor([s for row in rows for s in row.seconds], dtype=torch.float32, device=device),
        audio_lengths=integers([n for row in rows for n in row.audio_lengths], -1),
    )


def _scaled(sample: samples.Sample, scale: int) -> samples.Sample:
    """The notation counts in patches that merge two by two; families that merge more get larger grids."""
    return sample if scale == 1 else samples.Sample(
        tuple(
            dataclasses.replace(item, height=item.height * scale, width=item.width * scale)
            if isinstance(item, samples.Image | samples.Video) else item
            for item in sample.segments
        )
    )  # fmt: skip


def reference(inputs: Inputs) -> Outputs:
    """The specification's answer."""
    ids, deltas = reference_positions.positions(inputs.position_rule, inputs.token_types, **_optional(inputs))
    return answer(inputs, ids, deltas, counts_padding=False)


def _optional(inputs: Inputs) -> dict[str, Any]:
    """The specification's optional arguments, which have the names of our inputs."""
    names = ("attention_mask", "image_grids", "video_grids", "seconds_per_grid", "audio_lengths")
    return {name: inputs.given(name) for name in names}


def answer(inputs: Inputs, ids: Tensor, deltas: Tensor, *, counts_padding: bool) -> Outputs:
    """Ids and the first id after each sample, in one convention whatever the implementation's.

    Ids at padding are set to zero: nothing may read them. ``next`` [B] is the id with which decoding continues:
    delta plus the sample's length, with or without padding as the implementation counts.
    """
    real = inputs.attention_mask.bool()
    if ids.ndim == 2:
        ids = ids[None].expand(3, -1, -1)
    if ids.shape[1:] != real.shape:
        message = f"position ids have shape {tuple(ids.shape)}, expected [axes, {real.shape[0]}, {real.shape[1]}]"
        raise ValueError(message)
    length = inputs.attention_mask.shape[1] if counts_padding else inputs.attention_mask.sum(-1)
    return {"positions": torch.where(real, ids, 0), "next": deltas.reshape(-1).to(ids.dtype) + length}


def _as_configured(inputs: Inputs) -> str | None:
    """A function called in Hugging Face's way has its rate in its configuration: only that rate can be judged."""
    own = RULES[inputs.rule].ids_per_second
    if inputs.ids_per_second != own:
        return f"the form cannot be told another rate than {own:g} ids per second"
    return "the form has no audio" if len(inputs.audio_lengths) else None


def unmarked(inputs: Inputs) -> str | None:
    """Why a function that finds images and videos by the marker before them cannot be given a batch, if it cannot."""
    visual = (inputs.token_types == 1) | (inputs.token_types == 2)
    opened = inputs.input_ids.roll(1, dims=-1) == stream.START
    first = visual & ~visual.roll(1, dims=-1)
    first[:, :1], opened[:, :1] = visual[:, :1], False
    return None if bool(opened[first].all()) else "the form finds visual blocks by the markers before them"


def _as_configured_and_marked(inputs: Inputs) -> str | None:
    return _as_configured(inputs) or unmarked(inputs)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _left_out(function: Callable[..., Any], inputs: Inputs, ours: str, theirs: str) -> bool:
    """Whether an input is to be left out of a call. :class:`Inexpressible` where the function cannot do without."""
    parameter = _parameters(function).get(theirs)
    if ours in inputs.absent and parameter is not None and parameter.default is parameter.empty:
        raise Inexpressible(f"the function requires {theirs}")
    return ours in inputs.absent


def _seconds(function: Callable[..., Any], inputs: Inputs) -> dict[str, Tensor | None]:
    """The interval between frames, for functions that take it: Qwen2-VL's own does not."""
    known = _parameters(function)
    takes = "second_per_grid_ts" in known or any(item.kind is item.VAR_KEYWORD for item in known.values())
    left_out = _left_out(function, inputs, "seconds_per_grid", "second_per_grid_ts")
    if left_out and not takes:
        raise Inexpressible("the function takes no second_per_grid_ts")
    return {"second_per_grid_ts": inputs.given("seconds_per_grid")} if takes and not left_out else {}


def _grids(function: Callable[..., Any], inputs: Inputs) -> dict[str, Tensor | None]:
    """Both grids. One that is left out is None where the function requires it: so it says that there are none."""
    known, grids = _parameters(function), {}
    for ours, theirs in (("image_grids", "image_grid_thw"), ("video_grids", "video_grid_thw")):
        optional = theirs in known and known[theirs].default is not inspect.Parameter.empty
        if ours not in inputs.absent or not optional:
            grids[theirs] = inputs.given(ours)
    return grids


def _hugging_face(function: Callable[..., Any], inputs: Inputs, *leading: Tensor) -> tuple[Tensor, Tensor]:
    """Grids by position where both are given, so that they may have other names; by name where one is left out."""
    grids = _grids(function, inputs)
    placed, named = (tuple(grids.values()), {}) if len(grids) == 2 else ((), grids)
    if not _left_out(function, inputs, "attention_mask", "attention_mask"):
        named["attention_mask"] = inputs.attention_mask
    ids, deltas = function(*leading, *placed, **named, **_seconds(function, inputs))
    return ids, deltas


def _hf_5_3(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    ids, deltas = _hugging_face(function, inputs, inputs.input_ids, inputs.token_types)
    return answer(inputs, ids, deltas, counts_padding=False)


def _hf_4_57(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    ids, deltas = _hugging_face(function, inputs, inputs.input_ids)
    return answer(inputs, ids, deltas, counts_padding=True)


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    given = {name: x for name, x in _optional(inputs).items() if not _left_out(function, inputs, name, name)}
    ids, deltas = function(inputs.position_rule, inputs.token_types, **given)
    return answer(inputs, ids, deltas, counts_padding=False)


FORMS = (
    Form(
        name="hf-5.3",
        summary="get_rope_index(input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, second_per_grid_ts, "
        "attention_mask) -> ids [3,B,S], deltas that count real tokens",
        parameters=("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask"),
        call=_hf_5_3,
        accepts=_as_configured,
    ),
    Form(
        name="hf-4.57",
        summary="get_rope_index(input_ids, image_grid_thw, video_grid_thw, second_per_grid_ts, attention_mask) -> "
        "ids [3,B,S], deltas that count padding too; the ids of Qwen's vocabulary, <|image_pad|> 151655",
        parameters=("input_ids", "image_grid_thw", "video_grid_thw", "attention_mask"),
        call=_hf_4_57,
        accepts=_as_configured_and_marked,
    ),
    Form(
        name="assay",
        summary="positions(rule, token_types, *, attention_mask, image_grids, video_grids, seconds_per_grid, "
        "audio_lengths) -> ids [A,B,S], deltas",
        parameters=("rule", "token_types", "attention_mask", "image_grids", "video_grids"),
        call=_assay,
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="(time, height, width) ids of every token of a batch, and the id with which decoding continues",
    params=Case,
    build=build,
    outputs=("positions", "next"),
    expect=Exact(reference),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("int64",),
    manual=position_manual.sections,
)

CANDIDATES = (of_reference(NAME, f"{__name__}:reference", origin="assay.reference.mrope_positions"),)


def for_family(family: Family, patch: str) -> Candidate | None:
    """``get_rope_index`` of a family; None where its rule needs more than token types."""
    if RULES[family.rule].kind in {"plain", "canvas"}:
        return None
    return of_family(
        NAME, family.name, patch, factory="assay.audits.families.adapt:implementation", scope={"rule": family.rule},
        site="positions",
    )  # fmt: skip
