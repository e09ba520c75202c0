"""The page of a batch: what it says of each token, and that a long batch stays small and fast."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.audits.render.batch import CHUNK, LONGEST, Band, Row, _edges, bands, corners, render, shown


def _row(size: int = 6, **changes: object) -> Row:
    fields = {
        "name": "row 1", "ids": range(size), "texts": [f" w{place}" for place in range(size)],
        "kinds": ["text"] * size, "trained": [False] * size, "axes": {"time": range(size)},
    }  # fmt: skip
    return Row(**{**fields, **changes})  # type: ignore[arg-type]  # fields are varied by name


@given(st.lists(st.integers(0, 9), max_size=30))
def test_lines_through_the_corners_meet_every_value(values: list[int]) -> None:
    points = list(corners(values, start=5))
    drawn = dict(points)
    for (left, low), (right, high) in pairwise(points):
        for place in range(left, right):
            drawn[place] = low + (high - low) * (place - left) / (right - left)
    assert drawn == {place + 5: value for place, value in enumerate(values)}


def test_an_even_slope_has_two_corners() -> None:
    assert list(corners(range(1000))) == [(0, 0), (999, 999)]


def test_bands_are_runs() -> None:
    assert bands(["a", "a", "b", "a"]) == [Band("a", 0, 2), Band("b", 2, 3), Band("a", 3, 4)]


def test_each_token_has_a_cell_that_says_what_it_is() -> None:
    kinds, trained = ["special", "text", "image", "video", "audio", "pad"], [False, True, False, False, False, False]
    page = render("a batch", [_row(kinds=kinds, trained=trained)])
    assert '<b class="x" title="0: id 0, special, not trained; time 0">·w0</b>' in page
    assert '<b class="t y" title="1: id 1, text, trained; time 1">·w1</b>' in page
    assert [f'<b class="{kind[0]}"' in page for kind in kinds[2:]] == [True] * 4
    assert "Trained on 1, 20.0% of what is not padding" in page


def test_samples_are_told_apart_in_text_and_plot() -> None:
    page = render("packed", [_row(starts=(0, 2, 5))])
    assert [f"<h3>sample {number}</h3>" in page for number in (1, 2, 3, 4)] == [True, True, True, False]
    assert page.count('class="edge"') == 2
    assert page.count("<polyline") == 3


def test_samples_go_by_the_names_they_are_given() -> None:
    page = render("packed", [_row(starts=(0, 3), samples=("sample 7", "sample 2"))])
    assert page.index("<h3>sample 7</h3>") < page.index("<h3>sample 2</h3>")


def test_a_chunk_ends_where_a_run_begins() -> None:
    assert _edges([0, 3000], [0, 100, CHUNK + 7, 2990]) == [0, CHUNK + 7, 2990, 3000]
    assert _edges([0, 2 * LONGEST + 5], [0]) == [0, LONGEST, 2 * LONGEST, 2 * LONGEST + 5]
    assert _edges([0], []) == [0]


def test_a_long_plot_is_scrolled_and_a_short_one_fits() -> None:
    assert 'style="width: 100%"' in render("short", [_row()])
    assert 'style="width: 200%"' in render("long", [_row(8000)])


def test_padding_has_no_part_in_the_height_of_a_plot() -> None:
    page = render("padded", [_row(axes={"time": [0, 1, 2, 0, 99, 99]}, kinds=["text"] * 4 + ["pad"] * 2)])
    assert 'text-anchor="end">2</text>' in page


def test_padding_is_not_drawn_as_positions() -> None:
    page = render("padded", [_row(kinds=["pad", "pad", "text", "text", "pad", "pad"])])
    assert page.count("<polyline") == 1


def test_foreign_text_is_escaped() -> None:
    page = render("<title>", [_row(texts=["<script>"] * 6, name="<b>")])
    assert "<script>" not in page
    assert "<title>&lt;title&gt;</title>" in page


def test_blanks_are_visible() -> None:
    assert [shown(text) for text in (" a\n", "\t", "")] == ["·a⏎", "⇥", "∅"]


def test_an_empty_row_is_a_page_too() -> None:
    assert "0 tokens" in render("empty", [_row(0, starts=())])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ["a"]}, "texts: expected 6 entries"),
        ({"axes": {"time": [1]}}, "time: expected 6"),
        ({"kinds": ["word"] * 6}, "kinds: expected some of text"),
        ({"samples": ("a", "b")}, "samples: expected 1 names"),
    ],
)
def test_lists_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _row(**changes)


def test_twenty_thousand_tokens_take_little_time_and_room() -> None:
    started = time.monotonic()
    page = render("long", [_row(20_000, starts=(0, 9000))])
    assert len(page) < 3e6
    assert time.monotonic() - started < 10  # a second on an idle machine
