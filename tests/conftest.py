"""What tests of several files share: where their support modules are found, and the fixtures of more than one file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
SUPPORT = ("fault_checks", "kernel_calls", "kernel_device", "kernel_results", "toy")

sys.path.append(str(HERE))  # tests are no package: what they share is imported by its bare name
pytest.register_assert_rewrite(*SUPPORT, *(path.stem for path in HERE.glob("truth_*.py")))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models: more threads than one only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # torch has no stub of it
    assert torch.empty(4).isnan().all()
    assert torch.zeros(1).new_empty_strided((4,), (1,)).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The registry, with the toy and the given implementation in it."""
    import toy

    from assay.audits import registry
    from assay.audits.laws import shared

    operation = toy.OPERATION
    held: dict[str, Any] = {"laws": shared.laws(operation), "operation": operation}
    real = registry.operation
    monkeypatch.setattr(registry, "laws", lambda _name: held["laws"])
    monkeypatch.setattr(registry, "operation", lambda name: held["operation"] if name == operation.name else real(name))
    monkeypatch.setattr("assay.audits.resolve.implementation", lambda _target, _form: held["run"])
    return held
