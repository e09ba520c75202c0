"""The generated pages: what is committed is up to date, and each says what its reader came for."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

from assay.audits import pages, registry

WANTED = pages.pages()
LAWS = sorted(f"{name}.{law.name}" for name in registry.operations() for law in registry.laws(name))
FAULTS = sorted(pages.rule_of(fault) for name in registry.operations() for fault in registry.faults(name))


def test_what_is_committed_is_up_to_date() -> None:
    """``nox -s docs`` writes the pages again."""
    assert not list(pages.differences(WANTED, pages.ROOT / "docs"))


@pytest.mark.parametrize("rule", LAWS)
def test_the_page_of_a_law_says_what_why_and_gives_an_example(rule: str) -> None:
    text = WANTED[PurePosixPath(f"laws/{rule}.md")]
    what = text.split("\n\n")[2]
    assert what.endswith(".")
    assert not what.startswith("#")
    for heading in ("Why", "Example"):
        assert re.search(rf"^## {heading}\n\n[A-Z`].+", text, re.MULTILINE), heading


@pytest.mark.parametrize("rule", FAULTS)
def test_the_page_of_a_fault_says_what_goes_wrong_where_and_who_catches_it(rule: str) -> None:
    text = WANTED[PurePosixPath(f"faults/{rule}.md")]
    for heading in ("Effect", "Where it happened", "Caught by"):
        assert re.search(rf"^## {heading}\n\n\S.+", text, re.MULTILINE), heading


def test_links_between_pages_lead_somewhere() -> None:
    committed = {PurePosixPath("matrix.md")}
    for name, text in WANTED.items():
        for link in re.findall(r"\]\(([^)#:]+\.md)\)", text):
            target = PurePosixPath(*_plain(name.parent / link))
            assert target in WANTED or target in committed, (name, link)


def _plain(path: PurePosixPath) -> list[str]:
    """The parts of a path without ``..``."""
    parts: list[str] = []
    for part in path.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return parts


def test_pages_are_the_same_every_time() -> None:
    assert pages.pages() == WANTED


def test_a_page_of_what_is_gone_is_noticed_and_deleted(tmp_path: Path) -> None:
    pages.write(WANTED, tmp_path)
    gone = tmp_path / "laws" / "mrope.rotate.no-such-law.md"
    gone.write_text("# gone\n", encoding="utf-8")
    assert list(pages.differences(WANTED, tmp_path)) == [
        "laws/mrope.rotate.no-such-law.md: nothing is called so any more"
    ]
    pages.write(WANTED, tmp_path)
    assert not gone.exists()
    assert not list(pages.differences(WANTED, tmp_path))


def test_a_changed_and_a_missing_page_are_noticed(tmp_path: Path) -> None:
    pages.write(WANTED, tmp_path)
    (tmp_path / "laws" / "raises.md").write_text("other\n", encoding="utf-8")
    (tmp_path / "faults" / "index.md").unlink()
    assert list(pages.differences(WANTED, tmp_path)) == ["faults/index.md: missing", "laws/raises.md: out of date"]


def test_the_families_page_shows_what_waivers_accept() -> None:
    waiver = {"rule": "mrope.positions.resumes", "candidate": "qwen2*"}
    rows = [line for line in pages.family_page([waiver]).splitlines() if line.startswith("| `")]
    accepted = [line.split("|")[1].strip() for line in rows if "| waived | `mrope.positions.resumes` |" in line]
    assert accepted == ["`qwen2_5_omni`", "`qwen2_5_vl`", "`qwen2_vl`"]
    assert "not recorded" in pages.family_page(None)
