"""Right loops of every kind, written around models of one's own: none is accused, none is changed, nothing is held."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from guard_runs import Tiny, adam, failures
from torch import Tensor, nn

from assay.audits.guard import Guard, guard

IDS = torch.arange(1, 13).reshape(2, 6)


@pytest.fixture(scope="module", autouse=True)
def _quick(one_thread: None) -> None:
    """Tiny models."""


def _silent(found: Guard) -> None:
    assert not found.findings, found.report()
    assert not failures(found), found.report()


def _tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().train()


def _loss(model: nn.Module) -> Tensor:
    loss: Tensor = model(input_ids=IDS, labels=IDS)["loss"]
    return loss


class Frozen(nn.Module):
    """A backbone that is frozen or taken under no_grad, and a head of one's own around it."""

    def __init__(self, *, tower: bool = False) -> None:
        super().__init__()
        if tower:
            self.vision = nn.Linear(8, 8)
            self.vision.config = SimpleNamespace(model_type="tower")  # type: ignore[assignment]
        self.backbone, self.head = _tiny(), nn.Linear(8, 16)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            hidden = self.backbone.embed(input_ids)
        return {"loss": nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())}


@pytest.mark.parametrize("tower", [False, True], ids=["a backbone", "two models"])
@pytest.mark.parametrize("how", ["frozen", "left out of the optimizer"])
def test_a_head_around_a_backbone_that_is_not_trained(how: str, tower: bool, tmp_path: Path) -> None:
    model = Frozen(tower=tower)
    if how == "frozen":
        model.backbone.requires_grad_(False)
        if tower:
            model.vision.requires_grad_(False)
    optimizer = adam(model.head)
    with guard(model, optimizer, every=1, folder=tmp_path, trained=("around.head",)) as found:
        for _ in range(2):
            _loss(model).backward()
            optimizer.step()
    _silent(found)
    assert found.tally.asked["guard.stepped"] == 2


def test_a_head_that_does_not_move_is_found(tmp_path: Path) -> None:
    model = Frozen()
    model.backbone.requires_grad_(False)
    other = adam(nn.Linear(2, 2))
    with guard(model, other, folder=tmp_path):
        _loss(model).backward()
        with pytest.warns(UserWarning, match="as before the step"):
            other.step()


def _in_a_closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> Tensor:
        loss = _loss(model)
        optimizer.zero_grad()
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("made", [adam, lambda model: torch.optim.LBFGS(model.parameters(), max_iter=3)])
def test_a_step_with_a_closure(made: Callable[[Any], torch.optim.Optimizer], tmp_path: Path) -> None:
    alone, model = _tiny(), _tiny()
    for one in (alone, model):
        optimizer = made(one)
        if one is alone:
            for _ in range(3):
                _in_a_closure(one, optimizer)
            continue
        with guard(one, optimizer, every=1, folder=tmp_path) as found:
            for _ in range(3):
                _in_a_closure(one, optimizer)
    assert all(torch.equal(one, two) for one, two in zip(alone.parameters(), model.parameters(), strict=True))
    _silent(found)
    assert found.tally.checked == found.tally.steps == 3
    assert found.tally.asked["guard.stepped"] == found.tally.asked["guard.reached"] == 3


@pytest.mark.parametrize("turned", [False, True])
def test_optimizers_in_any_order(turned: bool, tmp_path: Path) -> None:
    model = _tiny()
    head, rest = adam(model.head), adam(model.embed)
    with guard(model, [head, rest] if turned else [rest, head], every=1, folder=tmp_path) as found:
        for _ in range(3):
            _loss(model).backward()
            rest.step()
            head.step()
            model.zero_grad()
    _silent(found)
    assert found.tally.checked == found.tally.steps == 3


@pytest.mark.parametrize("turned", [False, True])
def test_optimizers_by_turns_whose_old_gradients_stay(turned: bool, tmp_path: Path) -> None:
    model = _tiny()
    both = [adam(model.head), adam(model.embed)]
    with guard(model, both[::-1] if turned else both, every=1, folder=tmp_path) as found:
        for number in range(6):
            both[number % 2].zero_grad()
            _loss(model).backward()
            both[number % 2].step()
    _silent(found)
    assert found.tally.checked >= 2


def test_one_of_two_optimizers_that_never_steps_does_not_stop_the_count(tmp_path: Path) -> None:
    model = _tiny()
    head, rest = adam(model.head), adam(model.embed)
    with guard(model, [head, rest], every=2, folder=tmp_path) as found:
        for _ in range(6):
            model.zero_grad()
            _loss(model).backward()
            head.step()
    _silent(found)
    assert found.tally.steps >= 4


def test_a_frozen_part_whose_gradient_was_set_to_zero(tmp_path: Path) -> None:
    model = _tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _loss(model).backward()
    optimizer.zero_grad(set_to_none=False)
    model.embed.requires_grad_(False)
    with guard(model, optimizer, folder=tmp_path) as found:
        _loss(model).backward()
        optimizer.step()
    _silent(found)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_gradients_that_are_used_up_at_a_rate_of_zero(rate: float, tmp_path: Path) -> None:
    """As optimizers within the backward pass do, in the first step of a warm-up."""
    model = _tiny()

    def descend(parameter: nn.Parameter) -> None:
        with torch.no_grad():
            parameter -= rate * parameter.grad
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(descend)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with guard(model, optimizer, folder=tmp_path) as found:
        _loss(model).backward()
        optimizer.step()
    _silent(found)


class Shifted(Tiny):
    """Takes labels that are one token ahead, as many models of one's own do."""

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embed(input_ids))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)}


def test_labels_that_a_model_of_ones_own_takes_ahead(tmp_path: Path) -> None:
    model = Shifted()
    optimizer = adam(model)
    labels = torch.cat([IDS[:, 1:], torch.full((2, 1), -1)], dim=1)
    with guard(model, optimizer, folder=tmp_path) as found:
        model(input_ids=IDS, labels=labels)["loss"].backward()
        optimizer.step()
    _silent(found)


class Counted(Tiny):
    """Divides by a number that it is given."""

    def forward(self, input_ids: Tensor, labels: Tensor, num_items_in_batch: int = 1) -> dict[str, Tensor]:
        return {"loss": super().forward(input_ids, labels)["loss"] / num_items_in_batch}


def test_a_step_that_was_left_out_for_an_overflow(tmp_path: Path) -> None:
    """As GradScaler does in the first steps: the optimizer is not called."""
    model = Counted()
    optimizer = adam(model)
    with guard(model, optimizer, folder=tmp_path) as found:
        for number in range(2):
            model(input_ids=IDS, labels=IDS, num_items_in_batch=10)["loss"].backward()
            if number:
                optimizer.step()
            optimizer.zero_grad()
    _silent(found)


def test_an_overflow_that_a_scaler_leaves_to_the_optimizer(tmp_path: Path) -> None:
    """Fused optimizers are called, and find out on the device."""
    model = _tiny()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with guard(model, optimizer, folder=tmp_path) as found:
        (_loss(model) * 3e38 * 10).backward()
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(65536.0), torch.tensor(1.0)  # type: ignore[attr-defined]
        optimizer.step()
    _silent(found)


def test_a_step_that_broke_off_leaves_nothing_behind(tmp_path: Path) -> None:
    model = _tiny()
    found = guard(model, adam(model), folder=tmp_path)
    _loss(model)
    found.restart()
    assert found.watch is not None and found.watch.micros == 0
    found.remove()


def test_what_is_removed_holds_no_model_and_no_optimizer(tmp_path: Path) -> None:
    model = _tiny()
    optimizer = adam(model)
    with guard(model, optimizer, folder=tmp_path) as found:
        _loss(model).backward()
        optimizer.step()
    held = weakref.ref(model), weakref.ref(optimizer)
    del model, optimizer
    gc.collect()
    assert held[0]() is None and held[1]() is None
    assert "1 checked" in found.report()


def test_a_hook_that_cannot_be_put_in_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _tiny()

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no hooks here")

    monkeypatch.setattr(model.head, "register_forward_hook", refuse)
    with pytest.warns(UserWarning, match="no hooks here"):
        guard(model, adam(model), folder=tmp_path)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_an_undoing_that_fails_undoes_the_rest(tmp_path: Path) -> None:
    model = _tiny()
    optimizer = adam(model)
    found = guard(model, optimizer, folder=tmp_path)
    found.on_removal(lambda: [].remove(1))
    with pytest.warns(UserWarning, match="ValueError"):
        found.remove()
    assert not optimizer._optimizer_step_pre_hooks
