"""The field report: what the audits say of released packages, from stored reports and from what was proven of them.

``docs/field-report/reports/`` holds one report for each package, as ``nox -s peers`` stores them. What of it is a bug
is said by hand, in ``docs/field-report/findings/PACKAGE.toml``: each entry has a script beside it that shows the bug
with nothing but the package and torch. ``python -m assay.audits.field_report`` writes ``docs/field-report.md``.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from assay.audits import peer
from assay.audits.environment import JUDGING
from assay.audits.render import schema, tables
from assay.audits.terms import Finding, Report, Verdict

FOLDER = Path("docs/field-report")
PAGE = FOLDER.with_suffix(".md")


@dataclass(frozen=True, kw_only=True)
class Proven:
    """One bug of a release, in text. Without ``rules`` it was found beside an audit, by no law.

    ``known`` is the address of a thread, empty where none was found.
    ``same``: the entry (``package id``) of another package that makes the same mistake, and is counted for both.
    """

    id: str
    package: str
    version: str
    operation: str
    rules: tuple[str, ...]
    candidate: str
    what: str
    numbers: str
    second: str
    refuted: str
    known: str
    searched: str
    matters: str
    same: str = ""

    @property
    def script(self) -> str:
        """The name of the script that shows it."""
        return f"{self.package}-{self.id}.py"


def proven(folder: Path = FOLDER) -> tuple[Proven, ...]:
    """Every entry, package by package. ValueError names the file, the entry and the key that is missing or unknown."""
    found = []
    for path in sorted((folder / "findings").glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("finding", []):
            known = {field.name for field in fields(Proven)}
            if odd := known ^ {"same", *entry}:
                message = f"{path.name}: {entry.get('id', 'an entry without id')}: missing or unknown: {sorted(odd)}"
                raise ValueError(message)
            found.append(Proven(**{**entry, "rules": tuple(entry["rules"])}))
    return tuple(found)


def reports(folder: Path = FOLDER) -> dict[str, Report]:
    """The stored report of each package, by name."""
    paths = sorted((folder / "reports").glob("*.json"))
    return {path.stem: tables.legible(schema.load(path.read_text(encoding="utf-8"), path.name)) for path in paths}


def page(found: Sequence[Proven], audited: dict[str, Report]) -> str:
    """The report as Markdown."""
    lines = [*_introduction(found, audited), *_summary(found), *_verdicts(found, audited), *_details(found), ""]
    return "\n".join(lines)


INTRODUCTION = """# Field report

<!-- Written by `nox -s docs` from docs/field-report/. -->

Released packages under the laws of this project: {packages}, each in an environment of its own that is made from a
lock in `audits/peers/locks`. {proven} bugs are proven; of {unreported} of them we found no report.

A broken law is not yet a bug. What is listed here is shown by a script of its own with only the package and torch, and
what the package itself takes; agrees with a second, independent way of knowing what is right; and stood when somebody
tried to refute it. What a package documents as its way is not listed. Models are tiny and random, processors and
tokenizers are built offline, all numbers are those of a CPU. All of it again: `nox -s peers`.
"""


def _introduction(found: Sequence[Proven], audited: dict[str, Report]) -> Iterator[str]:
    counted = [item for item in found if not item.same]
    unreported = sum(1 for item in counted if not item.known)
    yield INTRODUCTION.format(packages=", ".join(audited) or "none", proven=len(counted), unreported=unreported)


def _summary(found: Sequence[Proven]) -> Iterator[str]:
    yield from ("## What was found", "", "| package | version | | known | |", "|---|---|---|---|---|")
    for item in found:
        known = f"[thread]({item.known})" if item.known else "not found"
        yield f"| {item.package} | {item.version} | {_line(item.what)} | {known} | [more](#{item.package}-{item.id}) |"
    yield ""


def _verdicts(found: Sequence[Proven], audited: dict[str, Report]) -> Iterator[str]:
    yield from ("## Verdicts", "")
    yield "FAIL: a law is broken, which may be a documented choice of the package. UNKNOWN: it could not be run here."
    for name, report in audited.items():
        yield from ("", f"### {name}", "", _versions(name, report), "")
        yield from ("| operation | callable | verdict | laws broken |", "|---|---|---|---|")
        yield from _rows(report)
        yield from _broken(name, report, [item for item in found if item.package == name])
    yield ""


def _versions(package: str, report: Report) -> str:
    """The package first. A report that does not tell its version was made with the one that is pinned."""
    pinned = peer.peer(package).requirements[0].partition("==")[2]
    told = {package: pinned, **report.environment}
    left_out = ("device", "system", *JUDGING)
    return ", ".join(f"{name} {version}" for name, version in told.items() if name not in left_out)


def _rows(report: Report) -> Iterator[str]:
    worst: dict[tuple[str, str], Verdict] = {}
    broken: dict[tuple[str, str], dict[str, None]] = {}
    why: dict[tuple[str, str], str] = {}
    for check in report.checks:
        key = (check.rule.rpartition(".")[0], check.candidate)
        worst[key] = max(worst.get(key, Verdict.PASS), check.verdict)
    for finding in report.findings:
        key = (finding.operation, finding.candidate)
        worst[key] = max(worst.get(key, Verdict.PASS), finding.verdict)
        if finding.verdict == Verdict.FAIL:
            broken.setdefault(key, {})[finding.rule.rpartition(".")[2]] = None
        elif finding.verdict == Verdict.UNKNOWN:
            why.setdefault(key, finding.message.partition(" File ")[0].removeprefix("RuntimeError: "))
    for operation, candidate in sorted(worst):
        key = (operation, candidate)
        told = ", ".join(f"`{law}`" for law in broken.get(key, {})) or _line(why.get(key, ""))
        yield f"| `{operation}` | {candidate} | {worst[key].name} | {told} |"


def _broken(package: str, report: Report, found: Sequence[Proven]) -> Iterator[str]:
    """Each broken law of each callable: the first finding, and the entry that tells it where it is counted as a bug."""
    first: dict[tuple[str, str], Finding] = {}
    for finding in report.findings:
        if finding.verdict == Verdict.FAIL:
            first.setdefault((finding.candidate, finding.rule), finding)
    if not first:
        return
    yield from ("", "<details><summary>what was broken, numbers, commands</summary>", "")
    for (candidate, rule), finding in sorted(first.items()):
        entry = next((item for item in found if item.candidate == candidate and rule in item.rules), None)
        told = f"[a bug](#{package}-{entry.id})" if entry else "not counted as a bug"
        numbers = "measured {}, limit {}".format(*map(_line, tables.amounts(finding)))
        what = _line(finding.message.partition(" File ")[0])
        yield f"* `{rule}`, {candidate}: {what}; {numbers}; {told}; `{_again(package, finding)}`"
    yield from ("", "</details>")


def _again(package: str, finding: Finding) -> str:
    """The command of a finding, in the environment that ``nox`` makes."""
    words = shlex.split(finding.repro)[2:]
    for option in ("--peer", "--python", "--time-limit"):
        if option in words:
            place = words.index(option)
            words[place : place + 2] = []
    return f'nox -s "peer({package})" -- {shlex.join(words)}'


def _details(found: Sequence[Proven]) -> Iterator[str]:
    yield from ("## Each of them", "")
    for item in found:
        rules = ", ".join(f"`{rule}`" for rule in item.rules)
        yield from (f"### {item.package} {item.id}", "", item.what, "")
        yield f"* **measured**: {item.numbers}"
        yield f"* **agrees**: {item.second}"
        yield f"* **tried against it**: {item.refuted}"
        yield f"* **matters**: {item.matters}"
        if item.same:
            yield f"* **the same mistake as** {item.same}: counted once"
        yield f"* **known**: {item.known or 'no thread was found that reports it; searched for: ' + item.searched}"
        yield f"* **shown by**: `python docs/field-report/{item.script}` in an environment with {item.package}"
        yield f"* **broken**: {rules or 'no law by itself: it was found beside an audit'}{_command(item)}"
        yield ""


def _command(item: Proven) -> str:
    """What shows it under the laws, where there is a candidate and a law that does."""
    if not item.candidate or not item.rules:
        return ""
    if item.package != "transformers":
        return f'; `nox -s "peer({item.package})" -- {item.operation} --candidate {item.candidate}`'
    by_name = item.operation.partition(".")[0] in {"pipeline", "label_mask"}
    return f"; `nox -s audit -- {item.operation} --{'candidate' if by_name else 'family'} {item.candidate}`"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(proven(), reports()), encoding="utf-8")


if __name__ == "__main__":
    main()
