"""Pages made of what was measured elsewhere: what trainers train on, and what an upgrade changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assay.audits import peer, trained_on, upgrade

ROOT = Path(__file__).parents[1]
PAGE = ROOT / trained_on.PAGE
STORED = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
REFUSED = {"x": {"default": ["ValueError: no | tool"] * len(trained_on.CONVERSATIONS)}}


def test_the_pages_are_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == trained_on.page(STORED), "run nox -s trained_on"
    assert PAGE.with_suffix(".html").read_text(encoding="utf-8") == trained_on.html(STORED)
    assert list(STORED) == sorted(STORED)


def test_what_is_stored_is_of_these_conversations_and_of_peers() -> None:
    assert set(STORED) <= set(peer.names())
    assert {len(rows) for options in STORED.values() for rows in options.values()} == {len(trained_on.CONVERSATIONS)}


def test_a_conversation_that_is_refused_is_told_on_both_pages() -> None:
    assert "| x | default | *ValueError: no \\| tool* |" in trained_on.page(REFUSED)
    assert "tool: x, default: ValueError: no | tool" in trained_on.html(REFUSED)


def test_what_is_trained_on_stands_in_brackets_and_runs_of_placeholders_once() -> None:
    row = [[1, "<|image_pad|>", False], [1, "<|image_pad|>", False], [2, "a`", True], [3, "\n", True]]
    assert trained_on._marked(row) == "`<\\|image_pad\\|> x 2`**⟦**`a'⏎`**⟧**"


@pytest.mark.skipif(not (ROOT / upgrade.STORED).is_file(), reason="nothing was measured yet")
def test_the_page_of_upgrades_is_up_to_date() -> None:
    stored = json.loads((ROOT / upgrade.STORED).read_text(encoding="utf-8"))
    assert (ROOT / upgrade.PAGE).read_text(encoding="utf-8") == upgrade.page(stored), "run nox -s upgrade"
