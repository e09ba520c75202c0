"""The failures that the project started from: prompt lengths, the search for the answer, keys looked up directly.

Each wrong fix must fail, and for its reason: the evidence is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from assay.audits import matrix, registry
from assay.audits.run import Options, audit
from assay.audits.terms import Finding

FIRST = "first-occurrence-of-the-target"


def _found(operation: str, fault: str, case: str, *laws: str) -> Mapping[str, Finding]:
    """The findings of a fault on one case, by law."""
    candidate = matrix.candidate(registry.fault(f"label_mask.{operation}", fault))
    options = Options(laws=laws, cases=(case,), examples=0)
    report = audit(registry.operation(f"label_mask.{operation}"), candidate, options)
    return {finding.rule.rpartition(".")[2]: finding for finding in report.findings}


def test_a_prompt_measured_without_its_images_is_trained_in_part() -> None:
    """E1: hundreds of vision tokens are not counted."""
    found = _found("labels", "prompt-measured-without-its-images", "image", "prompts", "pictures", "answers")
    assert set(found) == {"prompts", "pictures"}
    assert "what the assistant does not say is trained" in found["prompts"].message
    assert "larger images" in found["pictures"].message
    assert not _found("labels", "prompt-measured-without-its-images", "one", "prompts", "answers")


def test_the_search_finds_the_target_in_the_prompt() -> None:
    """E1's fix, where the question holds the answer."""
    found = _found("labels", FIRST, "echo", "prompts", "quoted")
    assert "the answer in the prompt changed what is trained" in found["quoted"].message
    assert "Say this" in found["prompts"].message or "Once more" in found["prompts"].message


def test_the_search_fails_where_tokens_merge_otherwise_in_context() -> None:
    """E1's fix, where nothing is found and nothing is masked: the first token of all is trained."""
    found = _found("labels", FIRST, "greedy", "prompts")
    assert found["prompts"].index == (0, 0)


def test_the_search_uses_the_sample_before_where_nothing_is_found() -> None:
    """E1's fix, where the start of the previous sample is used again."""
    found = _one("start-of-the-sample-before-is-used-again", "neighbours")
    assert "labelled otherwise in a batch than alone" in found.message


def test_the_search_trains_what_follows_the_answer() -> None:
    """E1's fix: padding after the answer stays trained."""
    found = _found("labels", FIRST, "ragged", "pads")
    assert "pads are trained" in found["pads"].message


def _one(fault: str, law: str) -> Finding:
    """The finding of one law on the first case that shows it."""
    for case in registry.operation("label_mask.labels").cases:
        found = _found("labels", fault, case, law)
        if law in found:
            return found[law]
    raise AssertionError(law)


@pytest.mark.parametrize("case", ["right", "left", "one"])
def test_a_key_looked_up_directly_has_no_batch_where_it_is_missing(case: str) -> None:
    """B3: samples without spans."""
    found = _found("collate", "keys-looked-up-directly", case, "optional", "conserved", "labels")
    assert set(found) == {"optional"}
    assert found["optional"].where == "spans"
    assert "KeyError" in str(found["optional"].measured)
    assert "without spans in samples [0]" in found["optional"].message
