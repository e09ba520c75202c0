"""Terminal, Markdown, HTML, GitHub commands: what a reader must find in them, and what must not break them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from assay.audits.render import github, html, junit, markdown, sarif, schema, terminal
from assay.audits.render.example import CANDIDATE, FAR, NEVER_RAN, REPORT, WAIVED
from assay.audits.terms import Check, Report

OUTPUTS = {
    "json": schema.dump,
    "terminal": terminal.render,
    "markdown": markdown.render,
    "html": html.render,
    "junit": junit.render,
    "sarif": sarif.render,
    "github": github.commands,
}
OVERVIEW = """\
operation        candidate               verdict    laws  inapplicable  findings
mrope.positions  qwen2_5_vl              UNKNOWN  1 of 2             -         1
mrope.rotate     kernel                  PASS     2 of 2             -         -
mrope.rotate     mytrain.patches:rotate  FAIL     3 of 3             1         2

FAIL  mrope.rotate.parity  mytrain.patches:rotate
  1,204 of 24,576 elements are further from the float64 truth than the ordinary
  form, by the maximum norm
  where    q[0, 3, 40000, 17]
  case     far-1000000, bfloat16 (3 cases broken)
  measured 0.813, limit 0.00781
"""
END = """
UNKNOWN  mrope.positions.deltas  qwen2_5_vl
  not exercised: no case reached it

Inapplicable
  mrope.rotate.text-only  three axes differ

FAIL  1 failed, 1 unknown, 1 waived; 8 checks: 6 exercised, 1 inapplicable, 1 not exercised
"""


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_finding_is_in_every_output_with_its_evidence(name: str) -> None:
    text = OUTPUTS[name](REPORT)
    for finding in (FAR, WAIVED, NEVER_RAN):
        for told in (finding.rule, finding.where, finding.repro, finding.case):
            assert told in text.replace("&gt;", ">"), (finding.rule, told)
    assert "0.813" in text
    assert "0.00781" in text
    assert "2027-01-31" in text


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_is_a_function_of_the_report_and_not_of_its_order(name: str) -> None:
    shuffled = replace(REPORT, findings=REPORT.findings[::-1], checks=REPORT.checks[::-1])
    assert OUTPUTS[name](shuffled) == OUTPUTS[name](REPORT)


@pytest.mark.parametrize("name", ["terminal", "markdown", "html", "junit", "json"])
def test_an_audit_of_nothing_does_not_look_green(name: str) -> None:
    text = OUTPUTS[name](Report(findings=(), checks=(), environment={}))
    assert "UNKNOWN" in text
    assert "PASS" not in text.partition("<body>")[2]


def test_the_terminal_output() -> None:
    text = terminal.render(REPORT, width=80)
    assert text.startswith(OVERVIEW)
    assert text.endswith(END)


@pytest.mark.parametrize("width", [80, 120])
def test_only_commands_and_the_last_line_are_wider_than_the_terminal(width: int) -> None:
    wide = [line for line in terminal.render(REPORT, width=width).splitlines() if len(line) > width]
    assert all(line.startswith(("  $ assay audit ", "FAIL  1 failed")) for line in wide)


def test_an_unexercised_check_is_not_shown_as_passed() -> None:
    silent = Check(rule="mrope.rotate.norm", candidate=CANDIDATE, exercised=0)
    text = markdown.render(Report(findings=(), checks=(silent,), environment={}))
    assert f"| mrope.rotate.norm | {CANDIDATE} | UNKNOWN | 0 |" in text


def test_a_narrowed_run_says_so() -> None:
    filtered = replace(REPORT, filtered=True)
    for render in (terminal.render, markdown.render, html.render):
        assert "(narrowed" in render(filtered)
        assert "(narrowed" not in render(REPORT)


NASTY = "[/red] <script>alert(1)</script> | `x` \x1b[31m\x00 \n% ::error:: **b**"


@pytest.mark.parametrize("name", OUTPUTS)
def test_text_of_a_candidate_cannot_break_out(name: str) -> None:
    """An exception's message is foreign text: it may hold markup, control characters or workflow commands."""
    finding = replace(FAR, message=NASTY, candidate=NASTY, measured=NASTY, where=NASTY)
    text = OUTPUTS[name](Report(findings=(finding,), checks=(), environment={}))
    if name in {"html", "markdown", "junit"}:
        assert "<script" not in re.sub(r"(`+)[^\n]*?\1", "code", text)
    if name == "github":
        assert len(text.splitlines()) == 1
    if name not in {"sarif", "json"}:
        assert "\x00" not in text
        assert "\x1b" not in text


class _Links(HTMLParser):
    """Collects what an HTML file would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember tags that fetch something."""
        fetched = [value for name, value in attrs if name in {"src", "href", "srcset", "data"}]
        self.loads += [f"{tag} {value}" for value in fetched] + ([tag] if tag in {"script", "link", "iframe"} else [])


def test_html_needs_nothing_else() -> None:
    links = _Links()
    links.feed(html.render(REPORT))
    assert links.loads == []
    assert "@import" not in html.render(REPORT)
    assert "url(" not in html.render(REPORT)


def test_html_shows_the_manual_page_and_opens_what_failed() -> None:
    text = html.render(REPORT, {FAR.rule: "Close to the truth."})
    assert "Close to the truth." in text
    assert f'id="{FAR.fingerprint}" open' in text
    assert f'id="{WAIVED.fingerprint}" open' not in text


@pytest.mark.parametrize(("finding", "command"), [(FAR, "error"), (NEVER_RAN, "warning"), (WAIVED, "notice")])
def test_github_commands(finding: object, command: str) -> None:
    assert isinstance(finding, type(FAR))
    text = github.commands(replace(REPORT, findings=(finding,)))
    assert text.startswith(f"::{command} title={finding.rule} (")
    assert text.count("\n") == 1


def test_the_step_summary_is_appended(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n", encoding="utf-8")
    github.summarise(REPORT, {"GITHUB_STEP_SUMMARY": str(file)})
    assert file.read_text(encoding="utf-8") == "before\n" + markdown.render(REPORT)


def test_a_summary_that_github_would_refuse_is_cut_at_a_line() -> None:
    lines = "é" * 99 + "\n"
    text = github.summary(lines * 10_000)
    assert len(text.encode()) <= github.SUMMARY_LIMIT
    assert text.endswith(github.CUT)
    assert set(text.removesuffix(github.CUT).splitlines()) == {"é" * 99}


@pytest.mark.parametrize("render", [terminal.render, markdown.render, html.render])
def test_counts(render: Callable[[Report], str]) -> None:
    expected = "1 failed, 1 unknown, 1 waived; 8 checks: 6 exercised, 1 inapplicable, 1 not exercised"
    assert expected in render(REPORT)
