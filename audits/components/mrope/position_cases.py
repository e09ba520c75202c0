"""The batches that are put to ``mrope.positions``: named ones, and a strategy for more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from assay.audits.families import samples
from assay.audits.fields import Amount, Count, Samples, one_of
from assay.audits.strategies import st
from assay.reference.mrope_rules import RULES


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: samples in the notation of ``audits.families.samples``, under one family's rule.

    ``wrap=False`` leaves out the markers around visual blocks, so that a block may be the first or the last of its
    sample. ``ids_per_second`` of zero takes the rule's own.
    """

    seed: Count = 0
    rule: Annotated[str, one_of(RULES)] = "qwen2_5_vl"
    samples: Samples = ("t5 i4x6 t3",)
    padding: Annotated[str, one_of(("right", "left", "none"))] = "right"
    wrap: bool = True
    ids_per_second: Amount = 0.0

    @property
    def modalities(self) -> frozenset[str]:
        """What the samples hold besides text."""
        return frozenset().union(*(samples.parse(sample).modalities for sample in self.samples))


def supports(case: Case) -> str | None:
    """Which samples a family's rule has positions for."""
    rule = RULES[case.rule]
    if rule.kind in {"plain", "canvas"}:
        return f"{case.rule} has no positions by token types"
    has = {"image"} | ({"video"} if rule.kind == "blocks" else set()) | ({"audio"} if rule.audio else set())
    lacking = sorted(case.modalities - has)
    return f"{case.rule} has no {' or '.join(lacking)} positions" if lacking else None


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
    "tall-video": Case(samples=("t2 v4x10x4@2 t1", "t1 v6x2x8@1 t3")),  # rows and columns differ, both ways
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
    "bare-images": Case(samples=("i4x6 t9", "t2 i6x2", "i6x4"), padding="left", wrap=False),  # blocks beside padding
    "bare-videos": Case(samples=("v4x4x6@2 t1 i6x2", "t3 v6x4x4@1"), padding="left", wrap=False),
    "bare-right": Case(samples=("t2 i6x4", "v8x4x4@0.5", "i4x4 t2 v4x2x6@1"), wrap=False),
    "audio": Case(samples=("t2 a1.4 t3 i4x4 t1", "t5 a0.6")),
    "fractional-interval": Case(samples=("t2 v6x4x6@2.9 t5",), ids_per_second=2.0),  # 1.38 ids a step
}


def strategy() -> st.SearchStrategy[Case]:
    """Batches of one to three samples of one to five segments in any order, with and without markers.

    Without, a token of text stands between two blocks: what merely touches is the business of a law of its own.
    Frame rates are such that no product of interval and index comes near an integer unless it is one: there, two
    right implementations may differ.
    """
    parts = st.lists(_segment(), min_size=1, max_size=5)
    return st.booleans().flatmap(
        lambda bare: st.builds(
            Case,
            seed=st.integers(0, 1000),
            samples=st.lists(parts.map((" t1 " if bare else " ").join), min_size=1, max_size=3).map(tuple),
            padding=st.sampled_from(["right", "left"]),
            wrap=st.just(not bare),
            ids_per_second=st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0]),
        )
    )


def _segment() -> st.SearchStrategy[str]:
    even = st.integers(1, 4).map(lambda half: 2 * half)
    return st.one_of(
        st.builds("t{}".format, st.integers(1, 6)),
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
