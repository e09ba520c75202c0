"""Whole pipelines: dataset, collator and model of a training script, by the batches that they make."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assay.audits.fields import Count
from assay.audits.pipeline_run import BatchCall
from assay.audits.terms import Candidate, Operation, Relations

NAME = "pipeline.batch"
FACTORY = "assay.audits.pipelines:implementation"
OWN = "assay.audits.components.pipeline.own"
UPSTREAM = "assay.audits.components.pipeline.upstream"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Which samples make the batch: ``samples`` by their indices, or the ``first`` so many; neither: all.

    Of a dataset with more than 16, all are 16 of them from the first to the last.
    """

    samples: tuple[Count, ...] = ()
    first: Count = 0


def build(case: Case, dtype: torch.dtype, device: torch.device) -> BatchCall:
    """The call of a case; the samples are read where the dataset is."""
    if case.samples and case.first:
        message = "samples, first: expected one of them, got both"
        raise ValueError(message)
    name = str(dtype).removeprefix("torch.")
    return BatchCall(samples=case.samples, first=case.first, dtype=name, device=str(device))


CASES = {
    "one": Case(first=1),
    "two": Case(first=2),
    "four": Case(first=4),
    "all": Case(),
}

OPERATION = Operation(
    name=NAME,
    summary="a training pipeline: the batch that its collator makes, and what its model makes of that",
    params=Case,
    build=build,
    outputs=(),
    expect=Relations(),
    cases=CASES,
    dtypes=("float64",),
    further_dtypes=("float32",),
    level="pipeline",
)

OPERATIONS = (OPERATION,)


def pipeline_candidate(operation: str, ref: str, name: str = "") -> Candidate:
    """The pipeline that ``package.module:make`` returns."""
    target = {"kind": "factory", "ref": FACTORY, "pipeline": ref}
    return Candidate(operation=operation, name=name or ref, target=target, origin=ref, by_name=name in BY_NAME)


BY_NAME = (
    "padded-qwen3-vl", "seq2seq", "language-modeling-qwen2-5-vl", "token-classification", "trainer-padded",
    "trainer-packed", "trainer-language-modeling", "trainer-smoothed", "trainer-packed-qwen2-5-vl",
)  # fmt: skip
"""What the default audit leaves to others that are nearly the same."""

CANDIDATES = tuple(
    pipeline_candidate(NAME, f"{module}:{name.replace('-', '_')}", name)
    for module, names in (
        (OWN, ("padded-qwen2-5-vl", "padded-qwen3-vl", "packed-qwen2-5-vl", "flattening", "seq2seq")),
        (UPSTREAM, ("language-modeling", "language-modeling-qwen2-5-vl", "token-classification")),
        (UPSTREAM, ("trainer-padded", "trainer-packed", "trainer-language-modeling", "trainer-smoothed")),
        (UPSTREAM, ("trainer-padded-qwen2-5-vl", "trainer-packed-qwen2-5-vl", "trainer-smoothed-qwen2-5-vl")),
    )
    for name in names
)
"""Small pipelines of our own, collators of transformers on ready-made ids, and its ``Trainer``."""
