"""The same seed gives the same report, byte for byte, apart from the machine it was made on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assay.audits import session
from assay.audits.choose import Request
from assay.audits.render import schema
from assay.audits.run import Options

HERE = Path(__file__).parent
CODE = "import sys; from assay.audits.cli import main; main(sys.argv[1:])"


def _report(folder: Path, candidate: str, *more: str, **environment: str) -> str:
    """What the command writes, run from the tests, without its environment block."""
    target = folder / "report.json"
    words = [
        sys.executable, "-P", "-c", CODE, "audit", "mrope.rotate", "--candidate", candidate, "--form", "hf-5.17",
        "--quiet", "--json", str(target), *more,
    ]  # fmt: skip
    done = subprocess.run(
        words, cwd=HERE, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 1, 3}, done.stderr
    return _without_environment(target.read_text(encoding="utf-8"))


def _without_environment(text: str) -> str:
    """The text itself, cut: what JSON would hide (order, spacing, digits) counts."""
    block = json.dumps(json.loads(text)["environment"], indent=2).replace("\n", "\n  ")
    assert block in text
    return text.replace(block, "")


@pytest.mark.parametrize(
    "candidate",
    [
        "raises",
        "caches_by_shape",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("good", "wrong_dtype", "exits_hard")),
    ],
)
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, candidate: str) -> None:
    """Passing, failing, raising with an address in the message, dying, and keeping state; from other processes."""
    more = (
        "--seed",
        "5",
        "--examples",
        "3",
        "--dtype",
        "bfloat16",
        "--law",
        "parity",
        "--law",
        "returns",
        "--law",
        "relative",
    )
    first = _report(tmp_path, f"hostile:{candidate}", *more, PYTHONHASHSEED="1")
    second = _report(tmp_path, f"hostile:{candidate}", *more, PYTHONHASHSEED="2", OMP_NUM_THREADS="2")
    assert first == second
    assert str(HERE.parent) not in first


def _conduct(**more: Any) -> str:
    """The same within this process."""
    request = Request(targets=("mrope.rotate",), **more)
    report = session.conduct(request, Options(examples=4, dtypes=("bfloat16",), laws=("parity", "ownership")))
    return _without_environment(schema.dump(report))


def test_a_second_run_in_one_process_is_the_same() -> None:
    """Whatever the first one left in caches."""
    assert _conduct(candidate="reference") == _conduct(candidate="reference")


def test_the_order_does_not_depend_on_who_is_ready_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers or one."""
    two = _conduct(families=("qwen2_vl", "qwen2_5_vl", "qwen3_vl"))
    monkeypatch.setattr("assay.audits.pool.SIZE", 1)
    assert _conduct(families=("qwen2_vl", "qwen2_5_vl", "qwen3_vl")) == two
