"""``label_mask.collate``: labelled samples of unequal lengths to one padded batch.

Letters: B samples, S tokens of the padded rows, L of one sample, N spans of one sample.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.components.label_mask import processors, vocabularies
from assay.audits.fields import Count, Size, one_of
from assay.audits.strategies import st
from assay.audits.terms import Form, Inexpressible, Operation, Outputs, Relations
from assay.reference import label_batch
from assay.reference.label_mask import IGNORE

NAME = "label_mask.collate"
TEMPLATE = "qwen2_5"
OPTIONAL = ("attention_mask", "token_types", "spans")
TYPES = ("token_types", "token_type_ids")
"""What the types of tokens are called here, and in transformers."""
EMPTY = {"attention_mask": 1, "token_types": 0}
"""What a per-token key is in a sample of which it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """``input_ids``, ``labels``, ``attention_mask`` and ``token_types`` int64 [L]; ``spans`` int64 [N,2] of tokens."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    token_types: Tensor
    spans: Tensor


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Samples, and how they are padded.

    ``pad`` is ``own``, ``eos``, the token that also ends every answer, or ``zero``, the one whose id is 0.

    ``absent`` are (sample, key) whose optional key the call is made without; ``train``: ``answers`` or ``all``.
    """

    examples: tuple[Example, ...]
    pad: str
    side: str
    train: str
    absent: tuple[tuple[int, str], ...] = ()

    def tokenizer(self) -> Any:
        """A tokenizer with these settings, that nobody else has."""
        return processors.tokenizer("small", TEMPLATE, pad=self.pad, side=self.side)

    @property
    def pad_id(self) -> int:
        """The id that padding has."""
        return _ids()[self.pad]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(example.input_ids) for example in self.examples]

    def given(self, sample: int) -> dict[str, Tensor]:
        """A sample as it is handed over, without what is absent."""
        every = {field.name: getattr(self.examples[sample], field.name) for field in dataclasses.fields(Example)}
        return {name: value for name, value in every.items() if (sample, name) not in self.absent}


def _ids() -> dict[str, int]:
    made = vocabularies.backend("small")
    return {"own": int(made.token_to_id("<|pad|>")), "eos": int(made.token_to_id("<|im_end|>")), "zero": 0}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case: the lengths of the samples.

    ``keys``: the optional keys say something in every sample; ``hidden``: each attention mask leaves a token out.
    """

    seed: Count = 0
    lengths: tuple[Size, ...] = (7, 4, 11)
    pad: Annotated[str, one_of(("own", "eos", "zero"))] = "own"
    side: Annotated[str, one_of(("right", "left"))] = "right"
    train: Annotated[str, one_of(("answers", "all"))] = "answers"
    keys: bool = True
    hidden: bool = False


def build(case: Case, _dtype: torch.dtype, device: torch.device) -> Inputs:
    """Random ids; the end of a turn stands in every sample that is long enough, last and in the middle, after id 0."""
    generator = torch.Generator().manual_seed(case.seed)
    return Inputs(
        examples=tuple(_example(case, length, generator, device) for length in case.lengths),
        pad=case.pad,
        side=case.side,
        train=case.train,
    )


def _example(case: Case, length: int, generator: torch.Generator, device: torch.device) -> Example:
    ids = torch.randint(10, 500, (length,), generator=generator)
    ids[-2:] = 0  # an id like any other, and the one that is mistaken for none
    ids[-1] = ids[length // 3] = _ids()["eos"]
    start = 0 if case.train == "all" else int(torch.randint(0, length, (), generator=generator))
    labels = ids.clone()
    labels[:start] = IGNORE
    types = torch.randint(0, 3, (length,), generator=generator) if case.keys else torch.zeros_like(ids)
    edges = torch.randint(0, length + 1, (1 + length % 3, 2), generator=generator).sort(-1).values
    mask = torch.ones_like(ids)
    mask[length // 2] = not case.hidden
    given = {
        "input_ids": ids, "labels": labels, "attention_mask": mask, "token_types": types,
        "spans": edges if case.keys else edges[:0],
    }  # fmt: skip
    return Example(**{name: value.to(device) for name, value in given.items()})


def supports(case: Case) -> str | None:
    """An empty batch is an error."""
    return None if case.lengths else "there are no samples"


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return _assay(label_batch.collate, inputs)


def _tensors(batch: Any) -> Outputs:
    """Keys of a mapping, or fields of a record, that are known here."""
    names = ("input_ids", "labels", "attention_mask", "token_types", "spans")
    found = {name: batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None) for name in names}
    return {name: torch.as_tensor(value) for name, value in found.items() if value is not None}


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    examples = [inputs.given(sample) for sample in range(len(inputs.examples))]
    names = [sorted(example) for example in examples]
    found = _tensors(function(examples, pad_id=inputs.pad_id, side=inputs.side))
    return {
        **found, "untouched": torch.tensor([sorted(e) == n for e, n in zip(examples, names, strict=True)]),
        **_said(examples),
    }  # fmt: skip


def _said(examples: Sequence[Mapping[str, Any]]) -> Outputs:
    """Whether some sample was handed over with types of tokens or spans that say something."""
    types = any(bool(torch.as_tensor(row[key]).any()) for row in examples for key in TYPES if key in row)
    return {"said": torch.tensor([types, any(len(example.get("spans", ())) for example in examples)])}


def _features(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    """As a data set hands them over: lists, the same keys in every row, and nothing of another shape."""
    wanted = {"token_types": "token_type_ids"}
    several = range(len(inputs.examples))
    names = [{key for key in OPTIONAL[:2] if (sample, key) not in inputs.absent} for sample in several]
    if any(own != names[0] for own in names):
        raise Inexpressible("the rows of a data set have the same keys")
    if any(key == "spans" for _, key in inputs.absent):
        raise Inexpressible("the form has no spans")
    features = [
        {wanted.get(key, key): value.tolist() for key, value in inputs.given(s).items() if key != "spans"}
        for s in several
    ]
    before = copy.deepcopy(features)
    batch = function(features, inputs.tokenizer())
    found = _tensors({ours: batch.get(wanted.get(ours, ours)) for ours in ("input_ids", "labels", *OPTIONAL[:2])})
    untouched = torch.tensor([now == then for now, then in zip(features, before, strict=True)])
    return {**found, "untouched": untouched, **_said(before)}


def _equal(inputs: Inputs) -> str | None:
    return None if len(set(inputs.lengths)) < 2 else "the form stacks rows of one length"


FORMS = (
    Form(
        name="assay",
        summary="collate(examples, *, pad_id, side) -> a record or a mapping; an example has input_ids, labels, and "
        "optionally attention_mask, token_types and spans [N,2]",
        parameters=("examples", "pad_id", "side"),
        call=_assay,
    ),
    Form(
        name="features",
        summary="function(features, tokenizer) -> padded batch: lists of input_ids, labels, attention_mask, "
        "token_type_ids, as data sets and transformers' collators have them",
        parameters=("features", "tokenizer"),
        call=_features,
    ),
    Form(
        name="stacking",
        summary="as features, for a function that does not pad",
        parameters=(),
        call=_features,
        accepts=_equal,
    ),
)

CASES = {
    "right": Case(),
    "left": Case(side="left", seed=1),
    "pad-is-eos": Case(pad="eos", lengths=(5, 9, 3), seed=2),
    "pad-is-eos-left": Case(pad="eos", side="left", lengths=(8, 2, 13), seed=3),
    "equal": Case(lengths=(6, 6), seed=4),
    "equal-pad-is-eos": Case(lengths=(9, 9, 9), seed=5, pad="eos", side="left"),
    "one": Case(lengths=(5,), seed=6),
    "one-token": Case(lengths=(1, 4), seed=7, side="left"),
    "one-token-pad-is-eos": Case(lengths=(1, 1, 6), seed=8, pad="eos"),
    "all": Case(train="all", lengths=(4, 7), seed=9),
    "all-pad-is-eos": Case(train="all", pad="eos", lengths=(4, 7, 7), seed=10),
    "plain": Case(keys=False, lengths=(3, 8), seed=11),
    "plain-left": Case(keys=False, lengths=(9, 2, 5), side="left", seed=12),
    "many": Case(lengths=(3, 17, 1, 8, 8, 30, 2, 11, 5, 4, 9), side="left", pad="eos", seed=13),
    "long": Case(lengths=(2100, 41, 128), seed=14),  # longer than rows are often cut to
    "pad-is-0": Case(lengths=(6, 3, 8), pad="zero", seed=15),
    "hidden": Case(lengths=(5, 9, 3), hidden=True, seed=16),
}


def strategy() -> st.SearchStrategy[Case]:
    """One to six samples of 1 to 40 tokens."""
    return st.builds(
        Case,
        seed=st.integers(0, 1000),
        lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6).map(tuple),
        pad=st.sampled_from(("own", "eos", "zero")),
        side=st.sampled_from(("right", "left")),
        train=st.sampled_from(("answers", "answers", "all")),
        keys=st.booleans(),
        hidden=st.booleans(),
    )


OPERATION = Operation(
    name=NAME,
    summary="labelled samples of unequal lengths to one padded batch",
    params=Case,
    build=build,
    outputs=("input_ids", "labels", "attention_mask"),
    expect=Relations(),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    supports=supports,
    dtypes=("int64",),
)

REFERENCE = of_reference(NAME, f"{__name__}:reference", origin="assay.reference.label_batch")
