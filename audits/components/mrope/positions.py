"""``mrope.positions``: the (time, height, width) ids of every token of a batch, by a family's rule.

Letters: A axes, B samples, S tokens with padding, N images, M videos, K audio clips.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from assay.audits.components.mrope import stream
from assay.audits.components.mrope.rotate import family_name
from assay.audits.families import samples
from assay.audits.terms import Candidate, Exact, Family, Form, Operation, Outputs
from assay.reference import mrope_positions as reference_positions
from assay.reference.mrope_rules import RULES, PositionRule

NAME = "mrope.positions"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch as a processor hands it over, and the family's rule with what a configuration may change.

    ``input_ids``, ``token_types`` (0 text, 1 image, 2 video, 3 audio) and ``attention_mask`` are int64 [B,S]; grids
    int64 [N,3] and [M,3] (time, height, width) in patches; ``seconds_per_grid`` float32 [M]; ``audio_lengths`` int64
    [K] in tokens. Absent modalities have no rows.
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

    @property
    def position_rule(self) -> PositionRule:
        """The family's rule with this batch's settings."""
        return dataclasses.replace(
            RULES[self.rule],
            spatial_merge=self.spatial_merge,
            ids_per_second=self.ids_per_second,
            temporal_merge=self.temporal_merge,
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: samples in the notation of ``audits.families.samples``, under one family's rule."""

    seed: int = 0
    rule: str = "qwen2_5_vl"
    samples: tuple[str, ...] = ("t5 i4x6 t3",)
    padding: str = "right"
    wrap: bool = True
    ids_per_second: float = 0.0

    @property
    def modalities(self) -> frozenset[str]:
        """What the samples hold besides text."""
        return frozenset().union(*(samples.parse(sample).modalities for sample in self.samples))


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

    count = len(rows)
    return Inputs(
        rule=case.rule,
        spatial_merge=rule.spatial_merge,
        ids_per_second=case.ids_per_second or rule.ids_per_second,
        temporal_merge=rule.temporal_merge,
        input_ids=integers(tokens, count, -1),
        token_types=integers(types, count, -1),
        attention_mask=integers(mask, count, -1),
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
    rule = inputs.position_rule
    ids, deltas = reference_positions.positions(
        rule,
        inputs.token_types,
        attention_mask=inputs.attention_mask,
        image_grids=inputs.image_grids if len(inputs.image_grids) else None,
        video_grids=inputs.video_grids if len(inputs.video_grids) else None,
        seconds_per_grid=inputs.seconds_per_grid if rule.video_time == "seconds" and len(inputs.video_grids) else None,
        audio_lengths=inputs.audio_lengths if rule.audio and len(inputs.audio_lengths) else None,
    )
    return answer(inputs, ids, deltas, counts_padding=False)


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


def _given(grids: Tensor) -> Tensor | None:
    return grids if len(grids) else None


def _own_rate(inputs: Inputs) -> str | None:
    """A function called in Hugging Face's way has its rate in its configuration: only that rate can be judged."""
    own = RULES[inputs.rule].ids_per_second
    return None if inputs.ids_per_second == own else f"the form cannot be told another rate than {own:g} ids per second"


def _timed(function: Callable[..., Any], inputs: Inputs) -> dict[str, Any]:
    """The interval between frames, for functions that take it: Qwen2-VL's own does not."""
    parameters = inspect.signature(function).parameters
    takes = "second_per_grid_ts" in parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    return {"second_per_grid_ts": _given(inputs.seconds_per_grid)} if takes else {}


def _hf_5_3(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    ids, deltas = function(
        inputs.input_ids, inputs.token_types, _given(inputs.image_grids), _given(inputs.video_grids),
        attention_mask=inputs.attention_mask, **_timed(function, inputs),
    )  # fmt: skip
    return answer(inputs, ids, deltas, counts_padding=False)


def _hf_4_57(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    ids, deltas = function(
        inputs.input_ids, _given(inputs.image_grids), _given(inputs.video_grids),
        attention_mask=inputs.attention_mask, **_timed(function, inputs),
    )  # fmt: skip
    return answer(inputs, ids, deltas, counts_padding=True)


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    ids, deltas = function(
        inputs.position_rule, inputs.token_types, attention_mask=inputs.attention_mask,
        image_grids=_given(inputs.image_grids), video_grids=_given(inputs.video_grids),
        seconds_per_grid=_given(inputs.seconds_per_grid), audio_lengths=_given(inputs.audio_lengths),
    )  # fmt: skip
    return answer(inputs, ids, deltas, counts_padding=False)


def _segment() -> st.SearchStrategy[str]:
    even = st.integers(1, 4).map(lambda half: 2 * half)
    return st.one_of(
        st.builds("t{}".format, st.integers(0, 6)),
        st.builds("i{}x{}".format, even, even),
        st.builds("i{}x{}".format, even, even),
        st.builds(
            "v{}x{}x{}@{}".format,
            st.integers(1, 5).map(lambda n: 2 * n),
            even,
            even,
            st.sampled_from([0.37, 1, 2, 5.3, 8]),
        ),
    )


def supports(case: Case) -> str | None:
    """Which samples a family's rule has positions for."""
    rule = RULES[case.rule]
    if rule.kind in {"plain", "canvas"}:
        return f"{case.rule} has no positions by token types"
    has = {"image"} | ({"video"} if rule.kind == "blocks" else set()) | ({"audio"} if rule.audio else set())
    lacking = sorted(case.modalities - has)
    return f"{case.rule} has no {' or '.join(lacking)} positions" if lacking else None


def strategy() -> st.SearchStrategy[Case]:
    """Batches of one to three samples of one to five segments in any order.

    Frame rates are such that no product of interval and index comes near an integer unless it is one: there, two
    right implementations may differ.
    """
    sample = st.lists(_segment(), min_size=1, max_size=5).map(lambda parts: "t1 " + " ".join(parts))
    return st.builds(
        Case,
        seed=st.integers(0, 1000),
        samples=st.lists(sample, min_size=1, max_size=3).map(tuple),
        padding=st.sampled_from(["right", "left"]),
        ids_per_second=st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0]),
    )


CASES = {
    "image": Case(),
    "two-images": Case(samples=("t2 i4x6 t3 i8x2 t1",)),
    "adjacent-images": Case(samples=("t1 i4x6 i2x8 t2",)),  # only their markers stand between
    "image-first": Case(samples=("i4x8 t5",)),
    "image-last": Case(samples=("t5 i8x4",)),
    "wide-image": Case(samples=("t1 i2x32 t4",)),
    "text": Case(samples=("t7", "t3")),
    "one-token": Case(samples=("t1", "t3")),  # shorter than any value that padding may be given
    "ragged-right": Case(samples=("t5 i4x6 t3", "t2", "t1 i2x4 i6x4 t9")),
    "ragged-left": Case(samples=("t5 i4x6 t3", "t2", "t1 i2x4 i6x4 t9"), padding="left"),
    "video": Case(samples=("t3 v4x4x6@2 t4",)),
    "long-video": Case(samples=("t3 v16x4x4@2 t4",)),  # longer than its frames are wide
    "video-then-image": Case(samples=("t1 v8x4x4@1 t2 i4x6 t2",)),
    "slow-video": Case(samples=("t2 v6x4x4@0.37 t2", "t4 v2x2x2@8 i4x4 t1")),  # steps of 5.4 s and of 0.25 s
    "two-videos": Case(samples=("t1 v4x4x4@2 t1 v6x2x4@5 t3",), padding="left"),
    "long-text": Case(samples=("t300 i4x6 t3", "t2 i6x4 t270")),  # ids beyond 256, which bfloat16 lacks
    "wide": Case(samples=("t1 i2x160 t2", "t2 i160x2 t1")),  # 80 columns, 80 rows
    "long-clip": Case(samples=("t2 v48x2x4@2 t3",)),
    "many": Case(  # more samples and images than anyone would write out by hand
        samples=("t1 i4x6 t1 i6x4 t2", "t3", "i4x4 t1", "t2 i6x6 t1 i4x8 t1", "t1 i8x4 t4", "t2 i8x6 t1 i4x6")
    ),
    "four-videos": Case(samples=("t1 v2x2x4@1 t1 v4x4x2@5.3 t2", "t1 v4x2x2@8 t1 v2x4x4@0.37 t1")),
    "audio": Case(samples=("t2 a1.4 t3 i4x4 t1", "t5 a0.6")),
    "fractional-interval": Case(samples=("t2 v6x4x6@2.9 t5",), ids_per_second=2.0),  # 1.38 ids a step
}

FORMS = (
    Form(
        name="hf-5.3",
        summary="get_rope_index(input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, second_per_grid_ts, "
        "attention_mask) -> ids [3,B,S], deltas that count real tokens",
        parameters=("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask"),
        call=_hf_5_3,
        accepts=_own_rate,
    ),
    Form(
        name="hf-4.57",
        summary="get_rope_index(input_ids, image_grid_thw, video_grid_thw, second_per_grid_ts, attention_mask) -> "
        "ids [3,B,S], deltas that count padding too; the ids of Qwen's vocabulary, <|image_pad|> 151655",
        parameters=("input_ids", "image_grid_thw", "video_grid_thw", "attention_mask"),
        call=_hf_4_57,
        accepts=_own_rate,
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
)

CANDIDATES = (
    Candidate(
        operation=NAME, name="reference", trusted=True, origin="assay.reference.mrope_positions",
        target={"kind": "import", "ref": "assay.audits.components.mrope.positions:reference", "operation": NAME},
    ),
)  # fmt: skip


def for_family(family: Family, patch: str) -> Candidate | None:
    """``get_rope_index`` of a family; None where its rule needs more than token types."""
    if RULES[family.rule].kind in {"plain", "canvas"}:
        return None
    return Candidate(
        operation=NAME, name=family_name(family.name, patch), origin="transformers", scope={"rule": family.rule},
        target={
            "kind": "factory", "ref": "assay.audits.families.adapt:implementation", "operation": NAME,
            "family": family.name, "site": "positions", "patch": patch,
        },
    )  # fmt: skip
