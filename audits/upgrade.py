"""What an upgrade changed: the same audits under several releases of transformers, beside each other on a page.

Run as ``python -m assay.audits.upgrade 4.57.6=PYTHON 5.17.0=PYTHON ...``, each the interpreter of an environment with
that release, the oldest first. Writes ``docs/what-an-upgrade-changed.json`` and the page that is made of it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assay.audits import against, session
from assay.audits.against import Key
from assay.audits.choose import Request
from assay.audits.options import Options
from assay.audits.terms import Report, Verdict

PAGE = Path("docs/what-an-upgrade-changed.md")
STORED = PAGE.with_suffix(".json")
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
REQUESTS = (
    *(Request(targets=("mrope.positions", "masked_loss.model"), families=(name,))
      for name in FAMILIES),
    Request(targets=("label_mask.labels",), candidate="assistant_masks"),
)  # fmt: skip
OPTIONS = Options(examples=0, time_limit=120.0)
INTRODUCTION = """# What an upgrade changed

<!-- Written by `nox -s upgrade` from what it measured, docs/what-an-upgrade-changed.json. -->

The same audits of the same tiny models, on the same batches with the same weights, under several releases of
transformers. First the verdicts: which laws each release breaks. Then what the models themselves return: position ids,
losses, gradients, labels. Positions and labels are compared exactly; of floating point every difference is
shown with its size, for none is too small to be a change. Your own environments, side by side:

    assay audit mrope.positions --family qwen2_5_vl --against OTHER-ENVIRONMENT/bin/python
"""


def measured(python: str) -> dict[str, Any]:
    """Verdicts, and outputs as text, of one release."""
    options = replace(OPTIONS, python=python)
    verdicts: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for request in REQUESTS:
        report = session.conduct(request, options)
        verdicts |= {f"{op} {who}": told for (op, who), told in _verdicts(report).items()}
        values |= {_name(key): _plain(value) for key, value in against.observed(request, options).items()}
    return {"verdicts": verdicts, "values": values}


def _verdicts(report: Report) -> Mapping[tuple[str, str], dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for check in report.checks:
        key = (check.rule.rpartition(".")[0], check.candidate)
        entry = found.setdefault(key, {"verdict": Verdict.PASS.name, "broken": []})
        entry["verdict"] = max(Verdict[entry["verdict"]], check.verdict).name
        if check.verdict == Verdict.FAIL:
            entry["broken"].append(check.rule.rpartition(".")[2])
    for finding in report.findings:
        entry = found[finding.operation, finding.candidate]
        entry["verdict"] = max(Verdict[entry["verdict"]], finding.verdict).name
    return found


def _name(key: Key) -> str:
    return f"{key.operation} {key.candidate} {key.case} {key.output}".strip()


def _plain(value: Any) -> Any:
    """A tensor as shape, dtype and numbers; in words where it is long."""
    if isinstance(value, str):
        return value
    told = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if value.numel() <= LONG:
        return {**told, "numbers": value.flatten().tolist()}
    bits = value.contiguous().flatten().view(torch.uint8).tolist()
    return {**told, "numbers": [float(value.double().sum())], "bits": hashlib.sha256(bytes(bits)).hexdigest()[:12]}


LONG = 600
"""Elements of an output that are stored one by one; of a longer one the sum, and a hash, for sums have no order."""


def page(stored: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of what was measured, release by release."""
    return "\n".join([INTRODUCTION, *_verdict_table(stored), "", *_value_table(stored), ""])


def _verdict_table(stored: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    releases = list(stored)
    yield "## Verdicts"
    yield ""
    yield "| operation | family | " + " | ".join(f"transformers {name}" for name in releases) + " |"
    yield "|---|---|" + "---|" * len(releases)
    for key in dict.fromkeys(key for name in releases for key in stored[name]["verdicts"]):
        operation, _, who = key.partition(" ")
        cells = [_verdict_cell(stored[name]["verdicts"].get(key)) for name in releases]
        yield f"| `{operation}` | {who} | " + " | ".join(cells) + " |"


def _verdict_cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "absent"
    broken = ", ".join(f"`{law}`" for law in entry["broken"])
    return f"{entry['verdict']}: {broken}" if broken else str(entry["verdict"])


def _value_table(stored: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    releases = list(stored)
    every = [item for name in releases for item in stored[name]["values"].items()]
    mute = {key for key, value in every if isinstance(value, str) and value.startswith("Inexpressible")}
    keys = [key for key in dict.fromkeys(key for key, _ in every) if " ".join(key.split(" ")[:3]) not in mute]
    found = {key: _value_cells([stored[name]["values"].get(key) for name in releases]) for key in keys}
    rows = {key: cells for key, cells in found.items() if cells}
    yield "## Outputs"
    yield ""
    yield (
        f"{len(keys) - len(rows)} outputs are the same in all releases, bit for bit; {len(rows)} are not. "
        f"{len(mute)} calls are no question to some release, and not counted."
    )
    yield ""
    yield "| operation | family | case | output, first place that differs | " + " | ".join(releases) + " |"
    yield "|---|---|---|---|" + "---|" * len(releases)
    for key, (place, cells) in rows.items():
        operation, who, case, output = [*key.split(" "), ""][:4]
        yield f"| `{operation}` | {who} | {case} | {output}{place} | " + " | ".join(cells) + " |"


def _value_cells(values: Sequence[Any]) -> tuple[str, list[str]] | None:
    """Where the outputs of the releases first differ, and what each has there; None where they are all the same."""
    if len({json.dumps(value) for value in values}) == 1:  # as text, in which a NaN is itself
        return None
    tensors = [value for value in values if isinstance(value, dict)]
    if len(tensors) < len(values) or len({(tuple(v["shape"]), v["dtype"], len(v["numbers"])) for v in tensors}) > 1:
        return "", [_in_words(value) for value in values]
    elements = zip(*(v["numbers"] for v in tensors), strict=True)
    place = next((i for i, numbers in enumerate(elements) if len(set(map(str, numbers))) > 1), None)
    if place is None:
        return " (bits)", [v["bits"] for v in tensors]
    cells = [f"{v['numbers'][place]:.8g}" if "float" in v["dtype"] else str(v["numbers"][place]) for v in tensors]
    return _index(place, tensors[0]), cells


def _in_words(value: Any) -> str:
    if value is None:
        return "absent"
    return value.replace("|", "\\|")[:90] if isinstance(value, str) else f"{value['dtype']} {value['shape']}"


def _index(place: int, value: Mapping[str, Any]) -> str:
    if len(value["numbers"]) == 1 and value["shape"] != [1]:
        return " (sum)" if value["shape"] else ""
    index: list[int] = []
    for size in reversed(value["shape"]):
        index.insert(0, place % size)
        place //= size
    return f"[{', '.join(map(str, index))}]"


def main(arguments: Sequence[str]) -> None:
    """Measure and write; without arguments, write the page of what is stored."""
    stored = {name: measured(python) for name, _, python in (argument.partition("=") for argument in arguments)}
    if stored:
        STORED.write_text(json.dumps(stored, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(STORED.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
