"""Writes the pages of laws, faults and families under ``docs/`` from what the registry says about them.

``python -m assay.audits.pages`` writes them and deletes pages of what is gone; with ``--check`` nothing is written, and
the exit status is 1 when what is there differs. No model is built and no audit is run.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from itertools import chain
from pathlib import Path, PurePosixPath
from pkgutil import iter_modules
from typing import Any

from assay.audits import families as _families
from assay.audits import manual, registry
from assay.audits.families.discovery import UNBUILT
from assay.audits.fault import CONSTRUCTED
from assay.audits.laws.shared import MACHINE_RULES
from assay.audits.terms import Family, Fault, Law, Operation
from assay.reference.mrope_families import TEXT_ROTARIES
from assay.reference.mrope_rules import RULES

ROOT = Path(__file__).resolve().parents[1]
MADE_BY = "<!-- Written by `python -m assay.audits.pages`: change the docstring, not this page. -->"
GENERATED = ("laws/*.md", "faults/*.md", "guides/families.md")
"""Files under ``docs`` that are written here; such a file that is not written any more is deleted."""


FAMILIES_ARE = """
A family is a model type of transformers whose text model rotates by several position axes. Each is built here as a tiny
random model, with batches from its own processor; nothing is downloaded. `assay list families` says which of them the
installed release has, `assay audit --family NAME` audits one.
"""
COLUMNS_ARE = """
*Rotary*: the section layout, the sections of the released configuration, which channels make a pair, and how much of a
head is rotated.

*Video time*: how the time axis of a video is numbered: by `index` of the frame, in `seconds`, `pooled` frames by index,
or `frames` that stand as blocks of their own between timestamps.

*Verdict*: what `assay audit --family NAME` is to say with the pinned transformers and the project's waivers.

*Accepted findings*: rules that fail or are unknown for the family as it is, and that `waivers.toml` accepts until a
date; the reasons and links are there.
"""


def pages(root: Path = ROOT) -> dict[PurePosixPath, str]:
    """Every generated page by its path under ``docs``. ``root`` is where ``waivers.toml`` is looked for."""
    found = dict(chain(_law_pages(), _machine_pages(), _fault_pages()))
    found[PurePosixPath("laws/index.md")] = _law_index()
    found[PurePosixPath("faults/index.md")] = _fault_index()
    found[PurePosixPath("guides/families.md")] = family_page(_waivers(root))
    return found


def differences(wanted: Mapping[PurePosixPath, str], docs: Path) -> Iterator[str]:
    """What is out of date under ``docs``, one line for each page."""
    for name, text in sorted(wanted.items()):
        path = docs / name
        if not path.is_file():
            yield f"{name}: missing"
        elif path.read_text(encoding="utf-8") != text:
            yield f"{name}: out of date"
    yield from (f"{name}: nothing is called so any more" for name in _surplus(wanted, docs))


def write(wanted: Mapping[PurePosixPath, str], docs: Path) -> None:
    """Write all pages and delete those of what is gone."""
    for name in _surplus(wanted, docs):
        (docs / name).unlink()
    for name, text in wanted.items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _surplus(wanted: Mapping[PurePosixPath, str], docs: Path) -> list[PurePosixPath]:
    there = {PurePosixPath(path.relative_to(docs).as_posix()) for glob in GENERATED for path in docs.glob(glob)}
    return sorted(there - set(wanted))


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", MADE_BY, *(part.strip() for part in parts if part.strip())]) + "\n"


def _markdown(text: str) -> str:
    """Docstring markup as Markdown: roles and double backticks become code."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sections(doc: str) -> str:
    """A law's docstring with headings for its reason and its example."""
    text = _markdown(inspect.cleandoc(doc))
    return re.sub(r"^(Why|Example): ([\w`])", lambda m: f"## {m[1]}\n\n{m[2].upper()}", text, flags=re.MULTILINE)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _law_pages() -> Iterator[tuple[PurePosixPath, str]]:
    for operation in registry.operations().values():
        for law in registry.laws(operation.name):
            yield PurePosixPath(f"laws/{operation.name}.{law.name}.md"), _law(operation, law)


def _law(operation: Operation, law: Law) -> str:
    rule = f"{operation.name}.{law.name}"
    faults = [fault for fault in registry.faults(operation.name) if law.name in fault.caught_by]
    caught = "\n".join(f"* [{fault.name}](../faults/{rule_of(fault)}.md): {_markdown(fault.why)}" for fault in faults)
    return _page(
        rule,
        _sections(law.doc),
        f"## Faults it must catch\n\n{caught}" if caught else "",
        f"## Where it applies\n\n{_reach(operation, law)}",
        f"Show it: `assay explain {rule}`. Ask it alone: `assay audit {operation.name} --law {law.name}`.",
    )


def _reach(operation: Operation, law: Law) -> str:
    """To which of the operation's named cases a law applies, and why not to the others."""
    reasons = {name: law.applies(operation, params) for name, params in operation.cases.items()}
    why_not = sorted({reason for reason in reasons.values() if reason})
    applying = [name for name, reason in reasons.items() if not reason]
    if not why_not:
        return f"Every named case of `{operation.name}`."
    if not applying:
        return f"No case of `{operation.name}`: {'; '.join(why_not)}."
    named = ", ".join(f"`{name}`" for name in applying)
    return f"The cases {named} of `{operation.name}`. Not the others: {'; '.join(why_not)}."


def rule_of(fault: Fault) -> str:
    """The full name of a fault, which is that of its page."""
    return f"{fault.operation}.{fault.name}"


def _machine_pages() -> Iterator[tuple[PurePosixPath, str]]:
    """Pages of what the judge reports by itself, and of what waivers and patches add."""
    for name, text in MACHINE_RULES.items():
        faults = [fault for fault in _all_faults() if name in fault.caught_by]
        caught = "\n".join(f"* [{rule_of(fault)}](../faults/{rule_of(fault)}.md)" for fault in faults)
        told = f"The judge reports it as `OPERATION.{name}`, whichever law made the call."
        yield (
            PurePosixPath(f"laws/{name}.md"),
            _page(name, _sections(text), told, f"## Faults that end so\n\n{caught}" if caught else ""),
        )
    for name, text in _doors():
        yield PurePosixPath(f"laws/{name}.md"), _page(name, _sections(text))


def _doors() -> list[tuple[str, str]]:
    """Rules about waivers: those of the manual that are no law's."""
    laws = {f"{name}.{law.name}" for name in registry.operations() for law in registry.laws(name)}
    return [(name, text) for name, text in manual.DOORS.items() if name not in laws]


def _all_faults() -> Iterator[Fault]:
    for name in registry.operations():
        yield from registry.faults(name)


def _fault_pages() -> Iterator[tuple[PurePosixPath, str]]:
    for fault in _all_faults():
        text = _page(
            rule_of(fault),
            _markdown(fault.why),
            f"## Effect\n\n{_upper(_markdown(fault.effect))}",
            f"## Where it happened\n\n{_links(fault)}",
            "## Caught by\n\n" + "\n".join(f"* {_law_link(fault, name)}" for name in fault.caught_by),
            f"See it convicted: `assay audit {fault.operation} --candidate fault:{fault.name}`.",
        )
        yield PurePosixPath(f"faults/{rule_of(fault)}.md"), text


def _links(fault: Fault) -> str:
    return "\n\n".join(map(_link, (fault.link or CONSTRUCTED, *fault.also)))


def _link(link: str) -> str:
    return f"<{link}>" if link.startswith("http") else f"{_upper(link)}."


def _law_link(fault: Fault, law: str) -> str:
    name = law if law in MACHINE_RULES else f"{fault.operation}.{law}"
    return f"[{law}](../laws/{name}.md)"


def _law_index() -> str:
    parts = []
    for operation in registry.operations().values():
        rows = [
            (f"[{law.name}]({operation.name}.{law.name}.md)", _markdown(law.summary))
            for law in registry.laws(operation.name)
        ]
        parts.append(
            f"## {operation.name}\n\n{_upper(_markdown(operation.summary))}.\n\n{_table(('law', 'what holds'), rows)}"
        )
    machine = [(f"[{name}]({name}.md)", _first(text)) for name, text in MACHINE_RULES.items()]
    doors = [(f"[{name}]({name}.md)", _first(text)) for name, text in _doors()]
    return _page(
        "Laws",
        "A law is a property that every right implementation of an operation has. A rule is an operation and a law:\n"
        "`mrope.rotate.parity`. [The matrix](../matrix.md) shows which law catches which fault.",
        *parts,
        f"## The judge's own\n\n{_table(('rule', 'what holds'), machine)}",
        f"## Waivers\n\n{_table(('rule', 'what holds'), doors)}",
    )


def _first(text: str) -> str:
    return _markdown(inspect.cleandoc(text)).partition("\n")[0]


def _fault_index() -> str:
    parts = []
    for name in registry.operations():
        faults = registry.faults(name)
        rows = [(f"[{f.name}]({rule_of(f)}.md)", _markdown(f.why), ", ".join(f.caught_by)) for f in faults]
        if rows:
            parts.append(
                f"## {name}\n\n{len(rows)} faults.\n\n{_table(('fault', 'what goes wrong', 'caught by'), rows)}"
            )
    return _page(
        "Faults",
        "A fault is a known wrong form of an operation. The suite puts each of them to the laws that it names, and\n"
        "fails when one of them is not caught.",
        *parts,
    )


def built_families() -> dict[str, Family]:
    """Every family that has a file, whatever release of transformers is installed."""
    names = sorted(module.name for module in iter_modules(_families.__path__) if not module.name.startswith("_"))
    modules = {name: import_module(f"{_families.__name__}.{name}") for name in names}
    return {name: module.FAMILY for name, module in modules.items() if hasattr(module, "FAMILY")}


def _waivers(root: Path) -> list[Mapping[str, Any]] | None:
    path = root / "waivers.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")).get("waiver", []) if path.is_file() else None


def family_page(waivers: Sequence[Mapping[str, Any]] | None) -> str:
    """The table of families, with the findings that the project's own waivers accept for each; None: no such file."""
    built = built_families()
    rows = [_family_row(family, waivers) for family in built.values()]
    unbuilt = [(name, why.partition(": ")[2]) for name, why in sorted(UNBUILT.items())]
    head = ("family", "takes", "rotary of the text model", "video time", "transformers", "verdict", "accepted findings")
    return _page(
        "Families",
        FAMILIES_ARE,
        _table(head, rows),
        COLUMNS_ARE,
        f"## Known, not built\n\n{_table(('family', 'why'), unbuilt)}",
        _notes(built.values()),
    )


def _family_row(family: Family, waivers: Sequence[Mapping[str, Any]] | None) -> tuple[str, ...]:
    rotary, rule = TEXT_ROTARIES.get(family.rule), RULES.get(family.rule)
    turned = "none listed"
    if rotary:
        share = 2 * sum(rotary.sections) / rotary.head_dim
        part = "whole head" if share == 1 else f"{share:.0%} of the head"
        turned = f"{rotary.layout} {rotary.sections}, {rotary.pairing}, {part}"
    accepted = sorted({w["rule"] for w in waivers or () if fnmatchcase(family.name, w["candidate"])})
    verdict = "not recorded" if waivers is None else "waived" if accepted else "pass"
    time = "none" if rule is None or rule.kind != "blocks" or "video" not in family.modalities else rule.video_time
    return (
        f"`{family.name}`", ", ".join(family.modalities), turned, time,
        family.releases.replace(".dev0", "") or "all that have it", verdict, ", ".join(f"`{w}`" for w in accepted),
    )  # fmt: skip


def _notes(families: Iterable[Family]) -> str:
    noted = [f"* `{family.name}`: {_markdown(family.notes)}" for family in families if family.notes]
    return "## Notes\n\n" + "\n".join(noted) if noted else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m assay.audits.pages", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is out of date")
    check = parser.parse_args(arguments).check
    wanted, docs = pages(), ROOT / "docs"
    stale = list(differences(wanted, docs))
    if not check:
        write(wanted, docs)
    for line in stale:
        print(f"docs/{line}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
