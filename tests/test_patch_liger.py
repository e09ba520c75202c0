"""A released patch under releases that it was written for, and under those that it was not: liger-kernel 0.8.5."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from assay.audits import registry
from assay.audits.run import Options, audit
from assay.audits.subject import Server
from assay.audits.terms import Candidate, Report, Verdict

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed"),
    pytest.mark.timeout(600),
]
TRANSFORMERS = Version(version("transformers"))
PATCH = "liger_rope_only:apply"
FAMILY = "qwen2_5_vl"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker; its children run Triton in the interpreter where there is no GPU."""
    running = Server(preload=("transformers", "assay.audits.patch_runs"))
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1] / "examples")


def _judged(server: Server, operation: str, options: Options, **target: str) -> Report:
    candidate = Candidate(
        operation=operation, name=PATCH,
        target={"kind": "factory", "family": FAMILY, "patch": PATCH, **target}, scope=SCOPES.get(operation, {}),
    )  # fmt: skip
    return audit(registry.operation(operation), candidate, options, server=server)


SCOPES = {"mrope.rotate": {"layout": "chunked", "sections": (4, 6, 6), "pairing": "half", "tail": 0}}


def _patch(server: Server) -> Report:
    options = Options(cases=("all",), time_limit=120.0)
    return _judged(server, "patch", options, ref="assay.audits.patches:implementation")


@pytest.mark.skipif(not Version("5.17") <= TRANSFORMERS < Version("5.23"), reason="of transformers 5.17 to 5.22")
def test_never_ran(server: Server) -> None:
    """The function it assigns to is gone; nothing fails, nothing runs."""
    report = _patch(server)
    (finding,) = report.findings
    assert finding.rule == "patch.never-ran"
    assert finding.where.endswith("modeling_qwen2_5_vl.apply_multimodal_rotary_pos_emb")
    assert "calls apply_rotary_pos_emb" in finding.message
    assert report.verdict is Verdict.UNKNOWN


@pytest.mark.skipif(not Version("5.0") <= TRANSFORMERS < Version("5.17"), reason="of transformers 5.0 to 5.16")
def test_landed_and_judged(server: Server) -> None:
    """The model trains as it did, and every law of a patch was exercised."""
    report = _patch(server)
    assert report.findings == ()
    exercised = {check.rule for check in report.checks if check.exercised}
    own = {f"patch.{law}" for law in ("never-ran", "changed-nothing", "equal", "backward", "steps")}
    assert own <= exercised
    assert report.verdict is Verdict.PASS


@pytest.mark.skipif(not Version("5.0") <= TRANSFORMERS < Version("5.17"), reason="of transformers 5.0 to 5.16")
def test_component_parity_of_its_kernel(server: Server) -> None:
    """The patched site's outputs and gradients are those of the reference; that it writes into q and k is a finding."""
    options = Options(laws=("parity", "gradients", "mutates"), cases=("image", "packed"), dtypes=("float32",))
    report = _judged(server, "mrope.rotate", options, ref="assay.audits.families.adapt:implementation", site="rotate")
    assert {check.rule: check.verdict for check in report.checks} == {
        "mrope.rotate.parity": Verdict.PASS,
        "mrope.rotate.gradients": Verdict.PASS,
        "mrope.rotate.mutates": Verdict.FAIL,
    }


@pytest.mark.skipif(
    Version("5.0") <= TRANSFORMERS < Version("5.23"), reason="of transformers before 5.0 and from 5.23 on"
)
def test_raises(server: Server) -> None:
    """It refuses releases before 5.0, and imports a class that 5.23 has removed."""
    assert [finding.rule for finding in _patch(server).findings] == ["patch.raises"]
