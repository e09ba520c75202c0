"""Released packages as candidates: every file of ``audits/peers`` says something that can be asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from assay.audits import cli, peer, registry, resolve, session
from assay.audits.choose import Request, UsageError, plan
from assay.audits.options import Options
from assay.audits.peers import llamafactory
from assay.audits.terms import Candidate

LOCKS = Path(peer.__file__).parent / "peers" / "locks"
PEERS = peer.names()


def _own(candidate: Candidate) -> str:
    """The name in the peer's own file that a candidate is made of; empty where it is another's."""
    ref = str(candidate.target.get("pipeline") or candidate.target.get("patch") or candidate.target.get("ref", ""))
    return ref if ref.startswith(peer.FOLDER) else ""


@pytest.mark.parametrize("name", PEERS)
def test_candidates_are_of_operations_and_forms_that_exist(name: str) -> None:
    found = list(peer.peer(name).candidates())
    assert found
    for candidate in found:
        operation = registry.operation(candidate.operation)
        if candidate.form:
            registry.form(operation.name, candidate.form)
        if own := _own(candidate):
            assert callable(resolve.imported(own)), own


@pytest.mark.parametrize("name", PEERS)
def test_candidates_have_names_of_their_own(name: str) -> None:
    named = [(candidate.operation, candidate.name) for candidate in peer.peer(name).candidates()]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize("name", PEERS)
def test_a_lock_pins_what_is_asked_for_and_not_torch(name: str) -> None:
    lines = (LOCKS / f"{name}.txt").read_text().split()
    assert all("==" in line or "@" in line for line in lines)
    assert not any(line.startswith(("torch==", "nvidia-")) for line in lines)
    pinned = [requirement for requirement in peer.peer(name).requirements if "==" in requirement]
    assert {line.lower() for line in pinned} <= {line.lower() for line in lines}


@pytest.mark.parametrize("name", PEERS)
def test_importing_the_file_imports_nothing_of_the_package(name: str) -> None:
    peer.peer(name)
    module = peer.peer(name).requirements[0].partition("==")[0].replace("-", "_")
    assert module in {"transformers", "accelerate"} or module not in sys.modules


def test_a_peer_is_asked_for_by_name_operation_and_callable() -> None:
    pairs = plan(Request(targets=("packed_positions.plan",), peer="trl"))
    assert {candidate.name for _, candidate in pairs} == {"pack-dataset-bfd", "pack-dataset-bfd-split"}
    assert all(candidate.target["peer"] == "trl" for _, candidate in pairs)
    (one,) = plan(Request(targets=("packed_positions",), peer="trl", candidate="pack-dataset-bfd"))
    assert one[1].scope == {"overlong": "truncate"}


def test_what_a_peer_has_not_is_named() -> None:
    with pytest.raises(registry.Unknown, match="no peer named 'none'; there are: "):
        plan(Request(peer="none"))
    with pytest.raises(UsageError, match="trl has no nothing here; it has: pack-dataset-bfd"):
        plan(Request(targets=("packed_positions.plan",), peer="trl", candidate="nothing"))
    with pytest.raises(UsageError, match="it goes without --family"):
        plan(Request(peer="trl", families=("qwen2_vl",)))
    with pytest.raises(UsageError, match="it goes without --peer"):
        plan(Request(peer="trl", pipeline="mine:make"))


def test_llamafactory_is_given_roles_by_its_own_names() -> None:
    talk = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "tool", "assistant")]
    columns = llamafactory._Batches.__new__(llamafactory._Batches)._columns([{"messages": talk}])
    assert [turn["role"] for turn in columns["_prompt"][0]] == ["user", "assistant", "observation"]


def test_workers_of_a_peer_have_what_it_needs() -> None:
    with session.workers(Request(peer="llamafactory"), Options()) as pool:
        assert pool._variables == peer.peer("llamafactory").variables
    with session.workers(Request(), Options()) as pool:
        assert not pool._variables
    assert session.preloaded(Request(peer="trl")) == peer.peer("trl").preload


def test_what_cannot_run_here_says_why() -> None:
    candidate = peer.unrunnable("packed_positions.plan", "x", "needs a GPU")
    with pytest.raises(RuntimeError, match="needs a GPU"):
        resolve.implementation(candidate.target)


def test_a_package_that_is_not_there_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["audit", "packed_positions.pack", "--peer", "trl", "--case", "text", "--law", "parity"]
    status = cli.run([*arguments, "--no-annotations"])
    said = capsys.readouterr().out
    assert status == 3, said
    assert "No module named 'datasets'" in said or "No module named 'trl'" in said  # the first that it needs
