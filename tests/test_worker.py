"""Hostile candidates, through the real worker: each gets its finding, and the next candidate is judged as if alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.audits import registry, server, wire
from assay.audits.run import Options, audit
from assay.audits.server import Server
from assay.audits.subject import Foreign
from assay.audits.terms import Candidate, Report, Verdict

HERE = Path(__file__).parent
OPERATION = registry.operation("mrope.rotate")
FEW = Options(
    laws=("returns", "parity", "gradients", "nondeterministic", "mutates", "leaks", "relative"),
    cases=("image", "packed"), dtypes=("float32",), time_limit=8.0,
)  # fmt: skip
MORE = {
    "float32_only": replace(FEW, dtypes=("bfloat16",)),
    "raises_on_one_token": replace(FEW, cases=("image", "one-token")),
    "hangs": replace(FEW, time_limit=1.0),
    "hangs_deaf": replace(FEW, time_limit=1.0),
}
"""What shows only elsewhere, or takes its time."""
GOOD = Options(cases=("image",), laws=("parity", "leaks"), dtypes=("bfloat16",))
KEEP = {"caches_by_shape", "patches_torch"}
"""These depend on earlier calls, which their findings say."""
FAIL, UNKNOWN, PASS = Verdict.FAIL, Verdict.UNKNOWN, Verdict.PASS

EXPECTED = {
    "raises": ("raises", FAIL),
    "raises_unshowable": ("raises", FAIL),
    "raises_on_one_token": ("raises", FAIL),
    "float32_only": ("raises", FAIL),
    "exits": ("raises", FAIL),
    "exits_hard": ("raises", FAIL),
    "interrupts": ("raises", FAIL),
    "segfaults": ("raises", FAIL),
    "kills_itself": ("raises", FAIL),
    "kills_its_parent": ("raises", FAIL),
    "hangs": ("timeout", UNKNOWN),
    "hangs_deaf": ("timeout", UNKNOWN),
    "eats_memory": ("raises", FAIL),
    "eats_memory_at_once": ("raises", FAIL),
    "prints": ("", PASS),
    "closes_files_once": ("", PASS),
    "closes_all_files": ("raises", FAIL),
    "talks_over": ("returns", FAIL),
    "in_place": ("raises", FAIL),
    "in_place_through_data": ("mutates", FAIL),
    "in_place_without_grad": ("mutates", FAIL),
    "in_place_through_view": ("mutates", FAIL),
    "beside_its_inputs": ("mutates", FAIL),
    "leaks_dtype": ("leaks", FAIL),
    "leaks_device": ("leaks", FAIL),
    "leaks_seed": ("leaks", FAIL),
    "leaks_threads": ("leaks", FAIL),
    "leaks_directory": ("leaks", FAIL),
    "leaks_environment": ("leaks", FAIL),
    "leaks_deterministic": ("leaks", FAIL),
    "leaks_grad_mode": ("leaks", FAIL),
    "returns_none": ("raises", FAIL),
    "returns_one": ("returns", FAIL),
    "returns_list": ("", PASS),
    "returns_three": ("raises", FAIL),
    "returns_text": ("returns", FAIL),
    "returns_numpy": ("returns", FAIL),
    "wrong_shape": ("returns", FAIL),
    "wrong_size": ("returns", FAIL),
    "wrong_dtype": ("returns", FAIL),
    "nan": ("parity", FAIL),
    "inf": ("parity", FAIL),
    "on_meta": ("returns", FAIL),
    "sparse": ("returns", FAIL),
    "expanded": ("parity", FAIL),
    "huge": ("returns", FAIL),
    "wasteful": ("", PASS),
    "view_of_much": ("", PASS),
    "broken_graph": ("gradients", FAIL),
    "detached": ("gradients", FAIL),
    "new_each_time": ("nondeterministic", FAIL),
    "aliases_its_input": ("parity", FAIL),
    "subclass": ("", PASS),
    "wrapper": ("returns", FAIL),
    "caches_by_shape": ("parity", FAIL),
    "gradient_of_wrong_shape": ("raises", FAIL),
    "starts_thread": ("", PASS),
    "leaves_child": ("", PASS),
    "leaves_daemon": ("", PASS),
    "patches_torch": ("nondeterministic", FAIL),
    "instance": ("", PASS),
    "partial": ("", PASS),
    "builtin": ("raises", FAIL),
    "number": ("raises", FAIL),
    "packed_views": ("", PASS),
    "absent": ("unloadable", UNKNOWN),
}
"""The rule that finds each, and the verdict."""

MODULES = {
    "raises": "raise OSError('not today')",
    "hangs": "import time\ntime.sleep(600)",
    "exits": "import sys\nsys.exit(0)",
    "exits_hard": "import os\nos._exit(0)",
    "lacks": "import a_package_that_is_not_there",
    "garbled": "def good(:",
}
"""What may happen when a candidate is imported."""


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """One server for all of them, which allows its children little memory."""
    with Server(memory=1 << 30) as shared:
        yield shared


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the module of hostile candidates can be imported."""
    monkeypatch.chdir(HERE)


def candidate(name: str, module: str = "hostile") -> Candidate:
    """One of them."""
    ref = f"{module}:{name}"
    target = {"kind": "import", "ref": ref, "operation": OPERATION.name, "public": True}
    return Candidate(operation=OPERATION.name, name=ref, form="hf-5.17", target=target)


def judged(shared: Server, name: str, module: str = "hostile") -> Report:
    """The report on a few laws and cases."""
    return audit(OPERATION, candidate(name, module), MORE.get(name, FEW), server=shared)


def rules(report: Report) -> set[str]:
    """The rules of the findings, without the operation."""
    return {finding.rule.rpartition(".")[2] for finding in report.findings}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_gets_its_finding(running: Server, name: str) -> None:
    """And the checker is never to blame; the next candidate finds the worker as it was."""
    rule, verdict = EXPECTED[name]
    report = judged(running, name)
    assert report.verdict == verdict, report.findings
    assert rule in rules(report) if rule else not report.findings
    assert "checker-failed" not in rules(report)
    assert name in KEEP or "only after" not in str(report.findings)
    after = audit(OPERATION, candidate("good"), GOOD, server=running)
    assert after.verdict == PASS, after.findings


@pytest.mark.parametrize("name", MODULES)
def test_what_cannot_be_imported_is_unknown(
    running: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known of it, and no time is lost with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("assay.audits.subject.START_SECONDS", 2.0)
    (tmp_path / f"hostile_{name}.py").write_text(MODULES[name])
    report = judged(running, "good", f"hostile_{name}")
    assert (report.verdict, rules(report)) == (UNKNOWN, {"unloadable"})
    assert report.exercised == 0


def test_what_prints_when_imported_is_judged(running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prints come with the answer to the import, not with a later one."""
    monkeypatch.chdir(tmp_path)
    lines = ["import sys", f"sys.path.append({str(HERE)!r})", "print('loud')", "from hostile import good"]
    (tmp_path / "loud.py").write_text("\n".join(lines))
    assert judged(running, "good", "loud").verdict == PASS


def test_the_end_of_what_it_prints_is_kept(running: Server) -> None:
    """Whatever the amount, and by whichever way; also that of a process that died."""
    inputs = OPERATION.build(OPERATION.cases["image"], torch.float32, torch.device("cpu"))
    with Foreign(running, candidate("prints")) as subject:
        first, second = subject.call(inputs), subject.call(inputs)
    assert first.stdout.endswith("the end")
    assert len(first.stdout) == len(second.stdout) == 2000
    with Foreign(running, candidate("segfaults")) as subject:
        assert subject.call(inputs).raised.message == "killed by SIGSEGV"  # type: ignore[union-attr]  # it raised


def test_a_hang_costs_its_time_limit_only(running: Server) -> None:
    """Nothing is asked of a candidate that did not answer once."""
    start = time.monotonic()
    report = judged(running, "hangs")
    assert time.monotonic() - start < 10
    assert "no answer within 1 s" in report.findings[0].message


def test_a_candidate_that_keeps_dying_is_given_up(running: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each death costs an import."""
    forks: list[Server] = []
    fork = Server.fork

    def counted(server: Server, *args: Any, **kwargs: Any) -> Any:
        forks.append(server)
        return fork(server, *args, **kwargs)

    monkeypatch.setattr(Server, "fork", counted)
    report = audit(OPERATION, candidate("exits_hard"), Options(), server=running)
    assert len(forks) <= 6
    assert report.verdict == FAIL


def test_a_small_view_of_much_memory_travels_alone(running: Server) -> None:
    """64 MiB behind each output stay where they are."""
    inputs = OPERATION.build(OPERATION.cases["image"], torch.float32, torch.device("cpu"))
    with Foreign(running, candidate("view_of_much")) as subject:
        values = subject.call(inputs).values
    assert all(x.untyped_storage().nbytes() < 1 << 16 for x in values.values())


def test_what_shows_only_after_other_calls_says_so(running: Server) -> None:
    """Its command is the whole audit: one case alone would show nothing."""
    options = Options(laws=("parity", "relative"), examples=0)
    report = audit(OPERATION, candidate("fails_from_the_thirtieth_call"), options, server=running)
    assert report.verdict == FAIL
    worst = next(f for f in report.findings if f.rule == "mrope.rotate.parity")
    assert "only after the audit's earlier calls" in worst.message
    assert "--case" not in worst.repro


def _descendants() -> set[int]:
    """Every process below this one."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = entry.read_text(errors="replace")
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found, more = set(), {os.getpid()}
    while more:
        found |= more
        more = {child for child, parent in parents.items() if parent in more} - found
    return found - {os.getpid()}


def _sleepers() -> list[int]:
    """The processes that ``leaves_child`` and ``leaves_daemon`` start, anywhere."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] in ([b"sleep", b"611"], [b"sleep", b"612"]):
            found.append(int(entry.parent.name))
    return found


@pytest.mark.parametrize("name", ["leaves_child", "leaves_daemon", "hangs_deaf", "exits_hard"])
def test_no_process_is_left(name: str) -> None:
    """Neither after a candidate nor after the server; no zombie, no orphan."""
    before = _descendants()
    with Server() as shared:
        judged(shared, name)
        started = _descendants() - before
        assert len(started) == 1, "the server alone"
        assert not _sleepers()
    assert not _descendants() - before


def test_children_die_with_their_judge(tmp_path: Path) -> None:
    """However suddenly: nothing hangs on after the judge was killed."""
    marker = tmp_path / "pids"
    code = f"""
import os, sys
from test_worker import *
shared = Server()
child = shared.fork(limit_memory=True)
child.connection.sendall(b'')
open({str(marker)!r}, 'w').write(f"{{shared._process.pid}} {{child.pid}}")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], cwd=HERE, check=False)
    pids = [int(pid) for pid in marker.read_text().split()]
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_that_does_not_start_says_why() -> None:
    """With what it printed."""
    with pytest.raises(RuntimeError, match="did not start"), Server(python="/bin/false") as shared:
        shared.fork(limit_memory=True)


def test_a_server_that_was_killed_is_started_again() -> None:
    """For the next candidate."""
    with Server() as shared:
        assert judged(shared, "good").verdict == PASS
        os.kill(shared._process.pid, signal.SIGKILL)
        assert judged(shared, "good").verdict == PASS


@pytest.mark.parametrize(
    ("ref", "answer"),
    [
        ("hostile:good", ("q", "k", "cos", "sin")),
        ("hostile:instance", ("q", "k", "cos", "sin")),
        ("hostile:partial", ("q", "k", "cos", "sin")),
        ("hostile:builtin", None),
    ],
)
def test_signatures_are_read_in_a_child(running: Server, ref: str, answer: tuple[str, ...] | None) -> None:
    """Of all that can be called; a builtin has none."""
    assert server.parameters(running, ref) == answer


@pytest.mark.parametrize(
    ("ref", "why"),
    [
        ("hostile:absent", "cannot import hostile:absent: AttributeError"),
        ("nowhere:good", "cannot import nowhere:good: ModuleNotFoundError"),
        ("hostile:number", "cannot call hostile:number: it is a int"),
        ("hostile", "expected package.module:function"),
    ],
)
def test_why_a_signature_cannot_be_read(running: Server, ref: str, why: str) -> None:
    """What the import said."""
    with pytest.raises(ValueError, match=why):
        server.parameters(running, ref)


def test_a_module_that_ends_its_process_has_no_signature(
    running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a bad candidate, not a crash of the judge."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends.py").write_text("import os\nos._exit(0)")
    with pytest.raises(ValueError, match="ended the process"):
        server.parameters(running, "ends:good")


def test_the_judge_imports_nothing_for_a_candidate() -> None:
    """What comes from a worker may name records of assay's only."""
    header = b'{"__record__": "hostile:Callable_", "fields": {}}'
    with pytest.raises(wire.Garbled, match="no record of assay"):
        wire.decode(header, b"")
