"""A guard changes nothing: losses, parameters, random numbers and graphs are those of the training without it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from guard_runs import Tiny, adam, batch_of, failures, model_of, rules, step
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from assay.audits import guard as guard_module
from assay.audits.families.loss_run import uncached
from assay.audits.guard import guard
from assay.audits.guard_model import unwrapped
from assay.audits.guard_parcel import fetch, packed, unpacked

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "item")
"""Parts of names of operations for which a GPU is waited for."""


@pytest.fixture(scope="module", autouse=True)
def _quick(one_thread: None) -> None:
    """Tiny models."""


Wrap = Callable[[Any], Any]


class Adapted(nn.Module):
    """As a model with adapters is: around the model, and with what peft calls the way inside."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.base_model = nn.ModuleDict({"model": inner})
        self.other = nn.Linear(1, 1).requires_grad_(False)

    def get_base_model(self) -> Any:
        return self.base_model["model"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_base_model()(*args, **kwargs)


def checkpointed(model: Any) -> Any:
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    return model


FORMS: dict[str, tuple[Wrap, Any]] = {
    "plain": (lambda model: model, nullcontext),
    "checkpointing": (checkpointed, nullcontext),
    "autocast": (lambda model: model, lambda: torch.autocast("cpu", torch.bfloat16)),
    "parallel": (nn.DataParallel, nullcontext),
    "adapters": (Adapted, nullcontext),
}


def trained(wrap: Wrap, around: Any, folder: Path | None) -> tuple[list[Any], Any]:
    """Losses and parameters after three steps of two micro-batches, and the guard."""
    model = model_of()
    micros = [batch_of(model), batch_of(model, ("t9",))]
    outer, optimizer, losses = wrap(model), adam(model), []
    torch.manual_seed(3)
    found = None if folder is None else guard(outer, optimizer, every=2, folder=folder, on_finding="stop")
    with found or nullcontext():
        for _ in range(3):
            for batch in micros:
                with around():
                    loss = outer(**batch, **uncached(model)).loss
                loss.backward()
                losses.append(loss.detach() + torch.rand(()))
            optimizer.step()
            optimizer.zero_grad()
    return [*losses, *(one.detach() for one in model.parameters())], found


@pytest.mark.parametrize("form", FORMS)
def test_a_watched_training_is_the_same_bit_for_bit(form: str, tmp_path: Path) -> None:
    wrap, around = FORMS[form]
    alone, _ = trained(wrap, around, None)
    watched, found = trained(wrap, around, tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))
    assert found.tally.checked == 2 and not found.findings and not failures(found)
    assert found.tally.asked["guard.positions"] == found.tally.asked["guard.reached"] == 2


def _compiled(folder: Path | None, *, late: bool = False) -> tuple[list[Any], Any]:
    """Three steps of a compiled model; ``late``: it is compiled after the guard was made."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Tiny().train()
    ids, optimizer = torch.arange(1, 13).reshape(2, 6), adam(model)
    outer = model if late else torch.compile(model, backend="eager", fullgraph=True)
    found = None if folder is None else guard(outer, optimizer, every=2, folder=folder, on_finding="stop")
    outer = torch.compile(model, backend="eager", fullgraph=True) if late else outer
    losses = []
    with found or nullcontext():
        for _ in range(3):
            loss = outer(input_ids=ids, labels=ids)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    return [*losses, *(one.detach() for one in model.parameters())], found


@pytest.mark.parametrize("late", [False, True], ids=["before", "after the guard"])
def test_a_model_that_is_compiled_is_not_looked_into(late: bool, tmp_path: Path) -> None:
    alone, _ = _compiled(None)
    watched, found = _compiled(tmp_path, late=late)
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))
    assert not found.findings and not failures(found)
    assert found.tally.asked["guard.stepped"] == 2
    assert found.tally.asked["guard.targets"] == (0 if late else 2)
    assert ("compiled" if not late else "no forward pass") in found.tally.unasked["guard.positions"]


def _hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, kind)) for part in model.modules() for kind in kinds)


def test_nothing_is_in_the_model_between_checks_nor_after_removal(tmp_path: Path) -> None:
    model = model_of()
    batch, optimizer = batch_of(model), adam(model)
    before = _hooks(model)
    found = guard(model, optimizer, every=2, folder=tmp_path)
    assert _hooks(model) > before
    step(model, batch)
    optimizer.step()
    assert _hooks(model) == before, "the second step is not checked"
    step(model, batch)
    optimizer.step()
    assert _hooks(model) > before, "the third one is"
    found.remove()
    found.remove()
    assert _hooks(model) == before
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_no_graph_and_no_batch_is_kept(tmp_path: Path) -> None:
    model = model_of()
    batch, optimizer = batch_of(model), adam(model)
    with guard(model, optimizer, every=1, folder=tmp_path) as found:
        output = model(**batch, **uncached(model))
        graph, pixels = weakref.ref(output.logits), weakref.ref(batch["pixel_values"])
        output.loss.backward()
        optimizer.step()
        del output, batch
        gc.collect()
        assert graph() is None and pixels() is None
        assert found.tally.checked == 1


class Log(TorchDispatchMode):
    """The names of all operations, and a mark where the guard brings what it kept to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[Log]:
    logs: list[Log] = []

    def marked(tensors: Any) -> Any:
        logs[-1].names.append("FETCH")
        return fetch(tensors)

    monkeypatch.setattr(guard_module, "fetch", marked)
    return logs


def _logged(folder: Path | None, logs: list[Log], steps: int) -> list[list[str]]:
    """The operations of each step."""
    model = model_of("llama")
    batch, optimizer = batch_of(model, ("t5 t6", "t9"), "llama"), adam(model)
    found = None if folder is None else guard(model, optimizer, every=9, folder=folder, on_finding="stop")
    with found or nullcontext():
        for _ in range(steps):
            logs.append(Log())
            with logs[-1]:
                step(model, batch)
                optimizer.step()
                optimizer.zero_grad()
    return [log.names for log in logs[-steps:]]


def test_steps_that_are_not_checked_run_no_operation_more(tmp_path: Path, fetches: list[Log]) -> None:
    _logged(None, fetches, 1)  # the first run of all fills caches of transformers
    alone, watched = _logged(None, fetches, 3), _logged(tmp_path, fetches, 3)
    assert watched[1:] == alone[1:]
    assert len(watched[0]) > len(alone[0])


def test_a_check_waits_once(tmp_path: Path, fetches: list[Log]) -> None:
    """Before what was kept is fetched, the guard asks for no value; it is fetched once."""
    _logged(None, fetches, 1)
    (alone,), (watched,) = _logged(None, fetches, 1), _logged(tmp_path, fetches, 1)
    assert watched.count("FETCH") == 1
    before = watched[: watched.index("FETCH")]
    for name in {*before}:
        if any(word in name for word in WAITS):
            assert before.count(name) <= alone.count(name), name


def test_many_tensors_travel_as_one() -> None:
    made = {
        "ids": torch.arange(6).reshape(2, 3),
        "flag": torch.tensor([True, False, True]),
        "half": torch.tensor(1.5, dtype=torch.bfloat16),
        "none": torch.zeros(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    octets = packed(made)
    assert octets.dtype == torch.uint8 and octets.ndim == 1
    again = unpacked(octets, made)
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in made.items())


def test_what_is_inside_of_wrappers_is_found() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for outer in (nn.DataParallel(model), torch.compile(model), Adapted(model), nn.DataParallel(torch.compile(model))):
        assert unwrapped(outer) is model


def test_an_evaluation_between_is_not_a_micro_batch(tmp_path: Path) -> None:
    model = model_of("llama")
    batch, optimizer = batch_of(model, ("t5 t6", "t9"), "llama"), adam(model)
    with guard(model, optimizer, every=1, folder=tmp_path) as found:
        with torch.no_grad():
            model(**batch)
        step(model, batch)
        optimizer.step()
    assert found._last is not None and found._last.record["micros"] == 1
    assert not rules(found)
