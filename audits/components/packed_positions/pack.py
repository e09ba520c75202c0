"""``packed_positions.pack``: what becomes of samples that are put into one row.

Letters: T tokens of the row, A position axes, N samples, S tokens of a sample, M images.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from assay.audits.candidates import of_function, of_reference
from assay.audits.components.mrope import stream
from assay.audits.components.packed_positions import collated
from assay.audits.families import samples
from assay.audits.fields import Count, Samples, Size, one_of
from assay.audits.strategies import st
from assay.audits.terms import Candidate, Exact, Form, Operation, Outputs
from assay.reference import packed_positions
from assay.reference.mrope_rules import RULES, PositionRule

NAME = "packed_positions.pack"
TEXT = "text"
"""The rule of families whose positions have one axis."""
NUMBERED = tuple(name for name, rule in RULES.items() if rule.kind in {"blocks", "sequence"})
LABELS = ("answers", "all", "none")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Samples as a data set hands them over, each field a tuple with one tensor for each sample.

    ``input_ids``, ``labels`` and ``token_types`` (0 text, 1 image, 2 video) int64 [S]; ``weights`` float32 [S], some
    other tensor with an entry for each token; grids int64 [M,3], ``seconds`` float32 [M]; ``pixels`` and
    ``video_pixels`` float32 [P,2], a row for each patch of the grids. ``labelled`` is false where the samples come
    without labels. ``rule`` is the name of the family's position rule.
    """

    input_ids: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    token_types: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    image_grids: tuple[Tensor, ...]
    video_grids: tuple[Tensor, ...]
    seconds: tuple[Tensor, ...]
    pixels: tuple[Tensor, ...]
    video_pixels: tuple[Tensor, ...]
    rule: str
    labelled: bool
    ignore_index: int
    multiple: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(ids) for ids in self.input_ids]

    @property
    def starts(self) -> list[int]:
        """The first token of each sample, and the end."""
        return [0, *torch.tensor(self.lengths).cumsum(0).tolist()]

    @property
    def position_rule(self) -> PositionRule | None:
        """The family's rule; None where positions have one axis."""
        return None if self.rule == TEXT else RULES[self.rule]

    def of(self, *chosen: int) -> Inputs:
        """The same with these samples alone, in this order."""
        own: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in chosen) for name in PER_SAMPLE}
        return dataclasses.replace(self, **own)

    def sample(self, number: int) -> packed_positions.Sample:
        """A sample in the specification's form."""
        rule = self.position_rule
        timed = rule is not None and rule.video_time == "seconds"
        return packed_positions.Sample(
            input_ids=self.input_ids[number],
            labels=self.labels[number] if self.labelled else None,
            token_types=self.token_types[number],
            image_grids=_some(self.image_grids[number]),
            video_grids=_some(self.video_grids[number]),
            seconds_per_grid=_some(self.seconds[number]) if timed else None,
            further={"weights": self.weights[number]},
            features={name: x for name in FEATURES if len(x := getattr(self, name)[number])},
        )


FEATURES = ("pixels", "video_pixels")
PER_SAMPLE = ("input_ids", "labels", "token_types", "weights", "image_grids", "video_grids", "seconds", *FEATURES)


def _some(x: Tensor) -> Tensor | None:
    return x if len(x) else None


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: samples in the notation of ``audits.families.samples``.

    ``labels``: ``answers`` (every second sample has a prompt that is not trained on), ``all``, or ``none`` (the samples
    have no labels, and the ids are taken). The row is aligned to a ``multiple`` of tokens. Ids of text are moved up by
    ``first_id``.
    """

    seed: Count = 0
    rule: Annotated[str, one_of((TEXT, *NUMBERED))] = TEXT
    samples: Samples = ("t5", "t1", "t7")
    labels: Annotated[str, one_of(LABELS)] = "answers"
    ignore_index: int = -100
    multiple: Size = 1
    first_id: Count = 0

    @property
    def modalities(self) -> frozenset[str]:
        """What the samples hold besides text."""
        return frozenset().union(*(samples.parse(sample).modalities for sample in self.samples))


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """The samples of a case, as a processor of the rule's family writes them."""
    family = "exaone4_5" if case.rule == TEXT else case.rule
    rows = [
        stream.write(samples.parse(text), family, wrap=True, seed=case.seed + place)
        for place, text in enumerate(case.samples)
    ]
    generator = torch.Generator().manual_seed(case.seed)

    def each(name: str, *shape: int, dtype: torch.dtype = torch.int64) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(getattr(row, name), dtype=dtype, device=device).reshape(*shape) for row in rows)

    def patches(name: str) -> tuple[Tensor, ...]:
        counts = [int(torch.tensor(getattr(row, name)).reshape(-1, 3).prod(-1).sum()) for row in rows]
        return tuple(torch.rand(count, 2, generator=generator).to(device) for count in counts)

    first = case.first_id if case.rule == TEXT else 0  # media have ids of their own
    ids = tuple(own + first for own in each("tokens", -1))
    return Inputs(
        input_ids=ids,
        labels=tuple(_labels(case, place, own) for place, own in enumerate(ids)),
        token_types=each("types", -1),
        weights=tuple(torch.rand(len(own), generator=generator).to(device) for own in ids),
        image_grids=each("image_grids", -1, 3),
        video_grids=each("video_grids", -1, 3),
        seconds=each("seconds", -1, dtype=torch.float32),
        pixels=patches("image_grids"),
        video_pixels=patches("video_grids"),
        rule=case.rule,
        labelled=case.labels != "none",
        ignore_index=case.ignore_index,
        multiple=case.multiple,
    )


def _labels(case: Case, place: int, ids: Tensor) -> Tensor:
    prompt = len(ids) // 2 if place % 2 and case.labels == "answers" else 0
    return torch.where(torch.arange(len(ids), device=ids.device) < prompt, case.ignore_index, ids)


def supports(case: Case) -> str | None:
    """Which samples a rule has positions for. Each has a token at least: empty ones have a law of their own."""
    if any(all(part == samples.Text(0) for part in samples.parse(text).segments) for text in case.samples):
        return "a sample without tokens"
    if case.rule == TEXT:
        return "the rule is that of text alone" if case.modalities else None
    taken = {"image", "video"} if RULES[case.rule].kind == "blocks" else {"image"}
    lacking = sorted(case.modalities - taken)
    return f"{case.rule} has no {' or '.join(lacking)} positions here" if lacking else None


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return _assay(packed_positions.pack, inputs)


def _assay(function: Any, inputs: Inputs) -> Outputs:
    made = function(
        [inputs.sample(number) for number in range(len(inputs.input_ids))],
        rule=inputs.position_rule, ignore_index=inputs.ignore_index, multiple=inputs.multiple,
    )  # fmt: skip
    own = made.position_ids[None] if made.axis_ids is None else made.axis_ids
    further = {
        name: value
        for name, value in (
            ("image_grids", made.image_grids),
            ("video_grids", made.video_grids),
            *made.further.items(),
            *made.features.items(),
        )
        if value is not None
    }
    return {
        "input_ids": made.input_ids,
        "labels": made.labels,
        "positions": own,
        "text_positions": made.position_ids,
        "segments": made.segments,
        "cu_seqlens": made.cu_seqlens,
        "max_length": torch.tensor(made.max_length),
        "told:position_ids": packed_positions.segments_of_positions(made.position_ids[None])[0],
        "told:cu_seqlens": collated.numbered(made.cu_seqlens, len(made.input_ids)),
        **{f"carried:{name}": value for name, value in further.items()},
    }


def _collator(function: Any, inputs: Inputs) -> Outputs:
    return collated.called(function, inputs, as_lists=True)


def _collator_of_tensors(function: Any, inputs: Inputs) -> Outputs:
    return collated.called(function, inputs, as_lists=False)


def _as_it_comes(inputs: Inputs) -> str | None:
    if inputs.multiple != 1:
        return "the form cannot be told a multiple"
    return None if inputs.ignore_index == -100 else "the form cannot be told another ignore index"


FORMS = (
    Form(
        name="assay",
        summary="pack(samples, *, rule, ignore_index, multiple) -> a Pack, from Samples of assay.reference",
        parameters=("samples", "rule", "ignore_index", "multiple"),
        call=_assay,
    ),
    Form(
        name="collator",
        summary="function(features) -> batch: a list of dicts of lists in, a dict of one row out, as Hugging Face's",
        parameters=("features",),
        call=_collator,
        accepts=_as_it_comes,
    ),
    Form(
        name="collator-tensors",
        summary="function(examples) -> batch: the same with tensors in the dicts",
        parameters=("examples",),
        call=_collator_of_tensors,
        accepts=_as_it_comes,
    ),
)

CASES = {
    "text": Case(),
    "equal": Case(samples=("t4", "t4", "t4")),
    "one": Case(samples=("t6",), labels="all"),
    "ones": Case(samples=("t1", "t1", "t3", "t1"), labels="all"),
    "rising": Case(samples=("t2", "t3", "t9"), seed=4),
    "unlabelled": Case(samples=("t3", "t5"), labels="none"),
    "twins": Case(samples=("t5", "t2", "t5"), labels="all", seed=2),
    "images": Case(rule="qwen2_5_vl", samples=("t3 i4x6 t2", "t2", "i6x4 t1 i2x8 t4")),
    "equal-images": Case(rule="qwen2_vl", samples=("t3 i4x4 t2", "t1 i4x4 t4"), labels="all"),
    "videos": Case(rule="qwen2_5_vl", samples=("t2 v4x4x6@1 t2", "t1 v6x6x2@3 t1 i2x4 t1")),
    "frames": Case(rule="qwen3_vl", samples=("t2 v3x4x6@2 t2", "t4 i8x4", "t3")),
    "text-on-axes": Case(rule="qwen3_vl", samples=("t4", "t6")),
    "sequence": Case(rule="hunyuan_vl", samples=("t3 i4x6 t2", "t2 i2x4 t1")),
    "aligned": Case(samples=("t5", "t4"), multiple=8),
    "aligned-images": Case(rule="qwen2_5_vl", samples=("t3 i4x6 t2", "t4"), multiple=16),
    "vocabulary": Case(samples=("t5", "t4"), first_id=200_001, seed=3),  # ids that two bytes do not hold
    "long": Case(samples=("t3", "t2100", "t2"), labels="all", seed=6),  # positions that half precision rounds
    "crowd": Case(samples=("t1",) * 270, labels="all", seed=7),  # more samples than a byte counts
    "ignore-index": Case(samples=("t5", "t4"), ignore_index=-1),
}


def strategy() -> st.SearchStrategy[Case]:
    """One to five samples of text, or of text, images and videos under some rule."""
    even = st.integers(1, 3).map(lambda half: 2 * half)
    text = st.builds("t{}".format, st.integers(1, 6))
    image = st.builds("i{}x{}".format, even, even)
    video = st.builds(
        "v{}x{}x{}@{}".format, st.integers(1, 3).map(lambda n: 2 * n), even, even, st.sampled_from([1, 2])
    )
    mixed = st.lists(st.one_of(text, text, image, video), min_size=1, max_size=4).map(" ".join)
    shared = {"seed": st.integers(0, 1000), "labels": st.sampled_from(LABELS)}

    def of(rule: str, sample: st.SearchStrategy[str]) -> st.SearchStrategy[Case]:
        several = st.lists(sample, min_size=1, max_size=5).map(tuple)
        return st.builds(Case, rule=st.just(rule), samples=several, **shared)

    return st.one_of(of(TEXT, text), of("qwen2_5_vl", mixed), of("qwen3_vl", mixed), of("qwen2_vl", mixed))


MANUAL = {
    "Features (collator, collator-tensors)": (
        "input_ids, labels, attention_mask (of ones)  S numbers each; labels are left out in some cases",
        "weights  S numbers: stands for whatever else there is for each token",
        "mm_token_type_ids  S numbers, 0 text, 1 image, 2 video, under a rule with several axes",
        "image_grid_thw, video_grid_thw, pixel_values, pixel_values_videos, second_per_grid_ts  where there are any",
    ),
    "Batch": (
        "input_ids, labels (or shift_labels)  [1,T]; what fills the row up may follow, with labels of -100",
        "position_ids  [1,T]; for several axes [A,1,T], or [1+A,1,T] with a row for the text in front",
        "where samples begin: ids that restart, cu_seq_lens_q (cu_seqlens) and max_length_q (max_seqlen), seq_idx,",
        "or an attention_mask of sample numbers or of four dimensions; a mask of ones hides all others",
        "weights [1,T], grids and pixels under the names that they had",
    ),
}

OPERATION = Operation(
    name=NAME,
    summary="samples put into one row: ids, labels, positions, and what tells them apart",
    params=Case,
    build=build,
    outputs=("input_ids", "labels", "positions", "text_positions", "segments", "cu_seqlens", "max_length"),
    expect=Exact(reference),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("int64",),
    manual=lambda: MANUAL,
)

_UPSTREAM = "assay.audits.components.packed_positions.upstream"


def _released(name: str, function: str, rule: str = TEXT) -> Candidate:
    made = of_function(NAME, name, f"{_UPSTREAM}:{function}", origin="transformers", form="collator")
    return dataclasses.replace(made, scope={"rule": rule})


CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.packed_samples"),
    _released("transformers.flattening", "flattening"),
    _released("transformers.flattening-flash", "flattening_flash"),
    _released("transformers.flattening-seq-idx", "flattening_seq_idx"),
    _released("transformers.flattening-images", "flattening", rule="qwen2_5_vl"),
)
