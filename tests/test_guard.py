"""The guard: each kind of broken training is found, right ones are not accused, and nothing of a training changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from guard_runs import adam, batch_of, failures, model_of, pack_of, rules, step, watched

import assay
from assay.audits.guard import guard
from assay.audits.guard_judge import LAWS, pages


@pytest.fixture(scope="module", autouse=True)
def _quick(one_thread: None) -> None:
    """Tiny models."""


Broken = Callable[[Any, dict[str, Any]], dict[str, Any] | None]
BROKEN: dict[str, tuple[str, Broken]] = {}
OPTIONS: dict[str, dict[str, Any]] = {}


def broken(rule: str, **options: Any) -> Callable[[Broken], Broken]:
    def noted(function: Broken) -> Broken:
        name = function.__name__.replace("_", "-")
        BROKEN[name], OPTIONS[name] = (rule, function), options
        return function

    return noted


@broken("features")
def media_in_another_order(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Sample 0 has 8 placeholders and sample 1 has 16 + 4; the grids come as 16, 8, 4. The totals agree."""
    grids, sizes = batch["image_grid_thw"], batch["image_grid_thw"].prod(-1).tolist()
    parts = batch["pixel_values"].split(sizes)
    ids = torch.arange(batch["input_ids"].shape[1]).expand(3, *batch["input_ids"].shape)
    order = [1, 0, 2]
    return {"image_grid_thw": grids[order], "pixel_values": torch.cat([parts[at] for at in order]), "position_ids": ids}


@broken("positions")
def positions_of_one_dimension(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {"position_ids": torch.arange(batch["input_ids"].shape[1]).expand(3, *batch["input_ids"].shape)}


@broken("positions")
def token_types_left_out(model: Any, batch: dict[str, Any]) -> dict[str, Any] | None:
    if "mm_token_type_ids" not in batch:
        pytest.skip("this release finds images by their tokens")
    return {"mm_token_type_ids": None}


@broken("targets")
def image_tokens_trained(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


@broken("targets")
def padding_trained(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    pads = batch["attention_mask"] == 0
    return {"labels": torch.where(pads, batch["input_ids"], batch["labels"])}


@broken("targets")
def labels_shifted_before(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {"labels": torch.cat([batch["labels"][:, 1:], torch.full_like(batch["labels"][:, :1], -100)], dim=1)}


@broken("targets")
def labels_of_the_other_row(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    flipped = batch["labels"].flip(0)
    return {"labels": torch.where(batch["labels"] >= 0, flipped, -100)}


@broken("targets")
def a_sample_without_targets(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    labels = batch["labels"].clone()
    labels[0] = -100
    return {"labels": labels}


@broken("share", share=(0.01, 0.5))
def prompt_trained_too(model: Any, batch: dict[str, Any]) -> None:
    return None


@broken("loss")
def no_targets_at_all(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {"labels": torch.full_like(batch["labels"], -100)}


@broken("loss")
def gradient_not_a_number(model: Any, batch: dict[str, Any]) -> None:
    weight = next(model.model.visual.parameters())
    weight.register_hook(lambda grad: grad * float("nan"))


@broken("reached", trained=("visual",))
def tower_frozen_by_accident(model: Any, batch: dict[str, Any]) -> None:
    model.model.visual.requires_grad_(False)


@broken("reached")
def tower_detached(model: Any, batch: dict[str, Any]) -> None:
    inner = model.model.visual.forward
    model.model.visual.forward = torch.no_grad()(inner)


@broken("reached")
def features_detached(model: Any, batch: dict[str, Any]) -> None:
    """The tower runs with its graph, and what it gives is cut off behind it."""
    inner = model.model.get_image_features

    def cut(*args: Any, **kwargs: Any) -> Any:
        found = inner(*args, **kwargs)
        if isinstance(found, tuple | list):
            return tuple(one.detach() for one in found)
        found.pooler_output = tuple(one.detach() for one in found.pooler_output)
        return found

    model.model.get_image_features = cut


@broken("reached")
def frozen_with_an_old_gradient(model: Any, batch: dict[str, Any]) -> None:
    step(model, batch)
    model.model.visual.requires_grad_(False)


@broken("items")
def count_of_all_tokens(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {"num_items_in_batch": batch["input_ids"].numel()}


@pytest.mark.parametrize("name", BROKEN)
def test_each_kind_of_broken_training_is_found(name: str, tmp_path: Path) -> None:
    model = model_of()
    batch = batch_of(model)
    rule, change = BROKEN[name]
    batch = {key: value for key, value in (batch | (change(model, batch) or {})).items() if value is not None}
    found = watched(model, batch, tmp_path, **OPTIONS[name])
    assert rule in rules(found), found.report()
    assert not failures(found)


@pytest.mark.parametrize(("told", "rule"), [("flat", "positions"), ("flat", "boundaries")])
def test_a_pack_that_is_told_in_one_dimension_is_found(told: str, rule: str, tmp_path: Path) -> None:
    model = model_of()
    assert rule in rules(watched(model, pack_of(model, told), tmp_path))


def test_a_trained_first_token_of_a_pack_is_found(tmp_path: Path) -> None:
    model = model_of()
    pack = pack_of(model, "ids")
    pack["labels"][0, int(pack["position_ids"][0, 0, 1:].eq(0).nonzero()[0]) + 1] = 7
    assert rules(watched(model, pack, tmp_path)) == {"boundaries"}


def test_boundaries_that_disagree_are_found(tmp_path: Path) -> None:
    model = model_of()
    pack = pack_of(model, "lengths")
    pack["cu_seq_lens_q"] = pack["cu_seq_lens_q"].clone()
    pack["cu_seq_lens_q"][1] -= 1
    assert "boundaries" in rules(watched(model, pack, tmp_path))


def test_an_optimizer_of_other_parameters_is_found(tmp_path: Path) -> None:
    model = model_of()
    other = copy.deepcopy(model)
    found = watched(model, batch_of(model), tmp_path, made=lambda _model: adam(other))
    assert rules(found) == {"stepped"}
    assert "holds none of it" in found.findings[0].message


def test_a_part_that_the_optimizer_lacks_is_found(tmp_path: Path) -> None:
    model = model_of()
    found = watched(model, batch_of(model), tmp_path, made=lambda made: adam(made.model.language_model))
    assert rules(found) == {"stepped"}
    assert found.findings[0].message.startswith("model.visual has gradients")


def test_a_learning_rate_of_zero_is_no_finding(tmp_path: Path) -> None:
    model = model_of()
    found = watched(model, batch_of(model), tmp_path, made=lambda made: torch.optim.SGD(made.parameters(), lr=0.0))
    assert not found.findings
    assert "guard.stepped" in found.tally.unasked


def test_every_law_finds_something() -> None:
    named = {rule for rule, _ in BROKEN.values()} | {"boundaries", "stepped"}
    assert {f"guard.{rule}" for rule in named} == set(LAWS)


@pytest.mark.parametrize("rule", LAWS)
def test_every_law_has_a_page(rule: str) -> None:
    assert "Why:" in pages()[rule]
    assert "Example:" in pages()[rule]


def test_it_stops_where_it_is_asked_to(tmp_path: Path) -> None:
    model = model_of()
    batch, optimizer = batch_of(model), adam(model)
    with guard(model, optimizer, on_finding="stop", folder=tmp_path):
        step(model, batch | {"labels": torch.full_like(batch["input_ids"], -100)})
        with pytest.raises(assay.GuardStop) as stopped:
            optimizer.step()
    assert stopped.value.step == 1
    assert stopped.value.path is not None and stopped.value.path.is_file()
    assert "guard.loss" in {found.rule for found in stopped.value.findings}
    assert "nan" in str(stopped.value)


def test_it_warns_once_for_a_rule(tmp_path: Path) -> None:
    model = model_of()
    batch, optimizer = batch_of(model), adam(model)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with guard(model, optimizer, every=1, folder=tmp_path) as found:
        step(model, batch)
        with pytest.warns(assay.GuardWarning, match="a placeholder is trained on"):
            optimizer.step()
        step(model, batch)
        optimizer.step()
    assert found.tally.broken == {"guard.targets": 2}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every": 0}, "every: expected"),
        ({"on_finding": "raise"}, "on_finding: expected"),
        ({"keep": -1}, "keep: expected"),
        ({"share": (0.9, 0.1)}, "share: expected"),
        ({"trained": ("vision_tower",)}, "trained: expected"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], told: str) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=told):
        guard(model, adam(model), **options)


def test_what_is_neither_trainer_nor_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="trainer_or_optimizer: expected a transformers Trainer"):
        guard(torch.nn.Linear(2, 2), None)


def test_a_guard_that_breaks_down_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr("assay.audits.guard.fetch", fails)
    model = model_of("llama")
    batch, optimizer = batch_of(model, ("t9",), "llama"), adam(model)
    with guard(model, optimizer, folder=tmp_path, on_finding="stop") as found:
        step(model, batch)
        with pytest.warns(assay.GuardWarning, match="nobody thought of this"):
            optimizer.step()
    assert not found.findings
    assert "nobody thought of this" in found.report()
