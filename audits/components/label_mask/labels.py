"""``label_mask.labels``: conversations and a processor to ids and labels, padded to a batch.

Letters: B conversations, S tokens of the longest.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.components.label_mask import conversations, label_forms, processors, templates, vocabularies
from assay.audits.components.label_mask.conversations import Conversations, Turn
from assay.audits.fields import Count, one_of
from assay.audits.strategies import st
from assay.audits.terms import Operation, Outputs, Relations
from assay.reference import label_mask

NAME = "label_mask.labels"
POLICIES = ("assistant", "last", "all")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Conversations, the images [H,W,3] uint8 that their turns point to, and how they are to be labelled.

    ``train`` is ``assistant`` (every turn of that role), ``last`` (the last of them) or ``all`` (every character).
    ``parts``: every message's content is a list of parts, as processors have it; else only where there are images.
    """

    conversations: tuple[tuple[Turn, ...], ...]
    images: tuple[Tensor, ...]
    vocabulary: str
    template: str
    train: str
    pad: str
    side: str
    parts: bool

    @property
    def style(self) -> templates.Template:
        """The chat template's facts."""
        return templates.TEMPLATES[self.template]

    def processor(self) -> Any:
        """A processor that nobody else has."""
        return processors.processor(self.vocabulary, self.template, pad=self.pad, side=self.side)

    def of(self, sample: int) -> Inputs:
        """One conversation alone."""
        return dataclasses.replace(self, conversations=(self.conversations[sample],))

    @property
    def texts(self) -> str:
        """All that anybody says."""
        return "\n".join(turn.text for turns in self.conversations for turn in turns)

    @property
    def pictured(self) -> bool:
        """Whether some turn has an image."""
        return any(turn.images for turns in self.conversations for turn in turns)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: conversations in the notation of ``conversations``, in which the seed chooses the words."""

    seed: Count = 0
    samples: Conversations = ("u a",)
    vocabulary: Annotated[str, one_of(vocabularies.NAMES)] = "small"
    template: Annotated[str, one_of(templates.TEMPLATES)] = "qwen2_5"
    train: Annotated[str, one_of(POLICIES)] = "assistant"
    pad: Annotated[str, one_of(("own", "eos"))] = "own"
    side: Annotated[str, one_of(("right", "left"))] = "right"
    parts: bool = False


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """The conversations of a case, with images of noise."""
    written: list[tuple[Turn, ...]] = []
    sizes: list[tuple[int, int]] = []
    for place, text in enumerate(case.samples):
        sketches = conversations.parse(text)
        written.append(conversations.write(sketches, 31 * case.seed + place, len(sizes)))
        sizes += [size for sketch in sketches for size in sketch.images]
    generator = torch.Generator().manual_seed(case.seed)
    return Inputs(
        conversations=tuple(written),
        images=tuple(picture(height, width, generator).to(device) for height, width in sizes),
        vocabulary=case.vocabulary,
        template=case.template,
        train=case.train,
        pad=case.pad,
        side=case.side,
        parts=case.parts,
    )


def picture(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Noise of so many patches."""
    shape = (height * processors.PATCH, width * processors.PATCH, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def supports(case: Case) -> str | None:
    """What a template or a vocabulary leaves out."""
    every = [conversations.parse(text) for text in case.samples]
    if case.vocabulary == "qwen" and (reason := vocabularies.missing()):
        return reason
    if any(not any(sketch.role == "assistant" for sketch in turns) for turns in every):
        return "a conversation has no turn of the assistant's: asked by the law of its own alone"
    typed = any("placeholder" in sketch.flavours for turns in every for sketch in turns)
    if typed and any(sketch.images for turns in every for sketch in turns):
        return "a processor takes a placeholder that is typed for one of its images"
    if not templates.TEMPLATES[case.template].calling and any(sketch.calls for turns in every for sketch in turns):
        return "the template writes no calls of tools"
    if case.template not in _THOUGHTLESS:
        return None
    tools = any(sketch.role == "tool" for turns in every for sketch in turns)
    return "the template leaves out thoughts before tools or not, by what comes later" if tools else None


_THOUGHTLESS = frozenset(name for name, template in templates.TEMPLATES.items() if template.thoughts)


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return label_forms.by_reference(label_mask.label, inputs)


CASES = {
    "one": Case(),
    "image": Case(samples=("s u.i4x6 a",)),
    "multi-turn": Case(samples=("s u a u a u a",), seed=1),
    "ragged": Case(samples=("u a u a.long", "s u.i4x6 a", "u a"), seed=2),
    "ragged-left": Case(samples=("u a u a.long", "s u.i4x6 a", "u a"), seed=2, side="left"),
    "pad-is-eos": Case(samples=("s u a u.i2x4 a", "u a"), seed=3, pad="eos"),
    "pad-is-eos-left": Case(samples=("u a", "u a u a"), seed=4, pad="eos", side="left", template="generation"),
    "echo": Case(samples=("u.echo a u a.same", "u.echo.i4x4 a"), seed=5),
    "role-words": Case(samples=("u.roles a.roles u a", "s.roles u a"), seed=6),
    "typed-markers": Case(samples=("u.marked a u a.marked", "s.marked u a"), seed=7),
    "typed-placeholder": Case(samples=("u a.placeholder u.placeholder a",), seed=8),
    "spaces": Case(samples=("u a.space u a.blank", "u a.newline u a"), seed=9),
    "empty": Case(samples=("u a.empty u a", "u.empty a u a.empty"), seed=10),
    "tool": Case(samples=("s u a t a u a", "u a t t a"), seed=11, template="generation"),
    "calls": Case(samples=("s u a.call t a", "u a.calls.empty t t t a u a.call.long t a"), seed=41),
    "calls-marked": Case(
        samples=("u a.calls t t t a.call.empty t a.wide", "u.i4x6 a.call"), seed=42, template="generation"
    ),
    "calls-text": Case(samples=("u a.call.empty t a", "u a.calls.space u a"), seed=43, pad="eos", side="left"),
    "calls-thoughts": Case(samples=("u a.think.call u a.calls.think",), seed=44, template="qwen3"),
    "blanks-in-front": Case(
        samples=("s u.echo a.space u a.blank", "u a.wide u a.marked u a.empty"), seed=45, vocabulary="llama"
    ),
    "blanks-in-front-plain": Case(
        samples=("u a.space u a.roles", "u.i4x6 a"), seed=46, vocabulary="llama", template="plain"
    ),
    "ends-of-lines-merge": Case(
        samples=("u.newline a.newline u.wide a.newline.wide", "s u.i2x4 a.space u a"),
        seed=47,
        vocabulary="gemma",
        template="gemma",
        pad="eos",
        side="left",
    ),
    "sentence-calls": Case(
        samples=("u a.calls t t t a.wide", "u a"), seed=48, vocabulary="gemma", template="generation"
    ),
    "likeliest-pieces": Case(samples=("u.echo a u a.space.wide", "u.i4x6 a.newline"), seed=49, vocabulary="unigram"),
    "likeliest-pieces-plain": Case(
        samples=("u.echo a u a.newline", "u a.blank"), seed=50, vocabulary="unigram", template="plain", pad="eos"
    ),
    "greets": Case(samples=("a u a", "u a"), seed=12),
    "in-a-row": Case(samples=("u a a u u a",), seed=13),
    "twice-in-a-row": Case(samples=("s s u a a.same u a s u a",), seed=39),
    "long-text": Case(samples=("u a.long" + " u a.long" * 9,), seed=40),  # more than lengths are often cut to
    "images": Case(samples=("u.i4x6.i2x8 a u.i8x4 a", "u.i2x2 a.wide"), seed=14, parts=True),
    "wide": Case(samples=("u.wide a.wide u a", "s.wide u a.wide"), seed=15),
    "greedy": Case(samples=("s u a u.echo a", "u a.space u a"), seed=16, vocabulary="greedy"),
    "greedy-image": Case(samples=("u.i4x6.echo a u a.long",), seed=17, vocabulary="greedy", template="generation"),
    "gemma": Case(samples=("s u.echo a u a.space", "u a.roles u.i4x4 a"), seed=18, template="gemma", pad="eos"),
    "plain": Case(samples=("s u a.roles u.echo a", "u.i4x6 a"), seed=19, template="plain", pad="eos"),
    "plain-greedy": Case(samples=("u.echo a u a",), seed=20, template="plain", vocabulary="greedy"),
    # the forms of text alone are asked none of the cases with an image
    "echo-text": Case(samples=("u.echo a u a.same", "u a.shout u a.letter"), seed=34),
    "gemma-text": Case(samples=("s u.echo a u a.space", "u a.roles u a"), seed=35, template="gemma", pad="eos"),
    "plain-text": Case(samples=("s u a.roles u.echo a",), seed=36, template="plain", pad="eos"),
    "thoughts-text": Case(samples=("u a.think u a.think", "s u.roles a u a.think"), seed=37, template="qwen3"),
    "tool-image": Case(samples=("s u a t.i4x4 a u a",), seed=38, template="generation"),
    "thoughts": Case(samples=("u a.think u a.think", "s u.roles a u.i4x6 a.think"), seed=21, template="qwen3"),
    "letters": Case(samples=("u a.letter u a.letter", "u.i4x4 a.letter.shout"), seed=28),
    "many-turns": Case(samples=(f"s{' u a' * 7}",), seed=29),
    "many": Case(samples=("u a", "s u a", "u a u a") * 3, seed=30, side="left"),
    "images-of-the-assistant": Case(samples=("u a.i4x6 u a", "a.i2x4 u a.i4x4.i2x2"), seed=31),
    "interleaved": Case(samples=("u.i4x6.split a u.i2x2.i4x4.split a", "u.split a.split"), seed=33, parts=True),
    "large-image": Case(samples=("u.i96x88 a",), seed=32),  # 2,112 placeholders: more than lengths are often cut to
    "last": Case(samples=("u a u a", "u a.long"), seed=22, train="last"),
    "last-same": Case(samples=("s u.echo a u a.same",), seed=23, train="last", template="gemma"),
    "all": Case(samples=("s u a u.i4x6 a", "u a"), seed=24, train="all"),
    "all-pad-is-eos": Case(samples=("u a u a", "u.marked a"), seed=25, train="all", pad="eos", side="left"),
    "real": Case(samples=("s u.i4x6.echo a u a.space", "u.roles a.newline u a.wide"), seed=26, vocabulary="qwen"),
    "real-marked": Case(
        samples=("u.echo a u.marked a.blank", "u a.empty"), seed=27, vocabulary="qwen", template="generation", pad="eos"
    ),
}


def strategy() -> st.SearchStrategy[Case]:
    """One to three conversations of one to six turns, of any role and flavour, on the small vocabularies."""
    flavour = st.sampled_from(("", "", "", *(f".{name}" for name in conversations.FLAVOURS if name != "placeholder")))
    image = st.sampled_from(("", "", "", ".i4x6", ".i2x2", ".i8x2.i2x4"))
    asked = st.builds("u{}{}".format, image, flavour)
    answered = st.builds("a{}{}".format, flavour, st.sampled_from(("", "", "", ".call t a", ".calls t t t a")))
    exchange = st.builds("{} {}".format, asked, answered)
    start = st.sampled_from(("", "", "s ", "s.roles ", "a ", "s.marked "))
    conversation = st.builds("{}{}".format, start, st.lists(exchange, min_size=1, max_size=3).map(" ".join))
    return st.builds(
        Case,
        seed=st.integers(0, 1000),
        samples=st.lists(conversation, min_size=1, max_size=3).map(tuple),
        vocabulary=st.sampled_from(("small", "greedy", *vocabularies.SENTENCE_PIECES)),
        template=st.sampled_from(tuple(templates.TEMPLATES)),
        train=st.sampled_from(("assistant", "assistant", "last", "all")),
        pad=st.sampled_from(("own", "eos")),
        side=st.sampled_from(("right", "left")),
        parts=st.booleans(),
    )


OPERATION = Operation(
    name=NAME,
    summary="conversations and a processor to ids and labels: which tokens are trained on",
    params=Case,
    build=build,
    outputs=("input_ids", "labels", "attention_mask"),
    expect=Relations(),
    forms=label_forms.FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("int64",),
)

REFERENCE = of_reference(NAME, f"{__name__}:reference", origin="assay.reference.label_mask")
