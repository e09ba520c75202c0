"""The guard in a Trainer of transformers: as a callback, and with the Trainer at hand."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from guard_runs import NAME, batch_of, failures, model_of, rules

import assay
from assay.audits.guard import Guard

pytestmark = pytest.mark.skipif(find_spec("accelerate") is None, reason="the Trainer needs accelerate")


@pytest.fixture(scope="module", autouse=True)
def _quick(one_thread: None) -> None:
    """Tiny models."""


def trainer_of(
    model: Any, folder: Path, batches: list[Any], *, kind: Any = None, callbacks: Any = (), **more: Any
) -> Any:
    """A Trainer that takes two steps of two micro-batches each."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder / "out"), per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=2,
        use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, learning_rate=1e-3, **more,
    )  # fmt: skip
    made = (kind or Trainer)(
        model=model, args=arguments, train_dataset=batches, data_collator=lambda held: held[0],
        callbacks=list(callbacks),
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    return made


def batches_of(model: Any, name: str = NAME) -> list[dict[str, Any]]:
    image = name == NAME
    samples = ("t5 i4x8 t6" if image else "t11", "t9"), ("t3 i4x4 t2" if image else "t5", "t4"), ("t7",), ("t3", "t8")
    return [batch_of(model, own, name) for own in samples]


def watched(folder: Path, by: str, *, change: Any = None, name: str = NAME, **more: Any) -> tuple[Guard, Any, Any]:
    """The guard, the model and the Trainer after its training."""
    model = model_of(name)
    batches = batches_of(model, name)
    if change is not None:
        change(model, batches)
    options = {"every": 1, "folder": folder / "guard"}
    callback = assay.GuardCallback(**options) if by == "callback" else None
    trainer = trainer_of(model, folder, batches, callbacks=[callback] if callback else (), **more)
    found = None if callback else assay.guard(model, trainer, **options)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", assay.GuardWarning)
        trainer.train()
    found = found or callback.guard
    assert found is not None
    return found, model, trainer


@pytest.mark.parametrize("by", ["callback", "trainer"])
def test_a_right_training_is_not_accused_and_not_changed(by: str, tmp_path: Path) -> None:
    model = model_of()
    trainer = trainer_of(model, tmp_path, batches_of(model))
    with torch.random.fork_rng(devices=[]):
        trainer.train()
    found, other, watching = watched(tmp_path, by)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    assert not found.findings and not failures(found), found.report()
    assert found.tally.checked == 2
    assert found.tally.asked["guard.targets"] == found.tally.asked["guard.stepped"] == 2
    found.remove()
    assert "training_step" not in vars(watching)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in other.modules())


def test_the_count_of_a_trainer_is_right_where_its_model_takes_one(tmp_path: Path) -> None:
    found, _, _ = watched(tmp_path, "trainer", name="llama")
    assert not found.findings
    assert found.tally.asked["guard.items"] == 2, "qwen2_5_vl takes none, and is not asked"


def _all_ids(_model: Any, batches: list[Any]) -> None:
    for batch in batches:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


@pytest.mark.parametrize("by", ["callback", "trainer"])
def test_a_wrong_batch_is_found(by: str, tmp_path: Path) -> None:
    found, _, _ = watched(tmp_path, by, change=_all_ids)
    assert rules(found) == {"targets"}
    assert len(list((tmp_path / "guard").glob("*.json"))) <= 2


def test_labels_that_the_trainer_keeps_are_seen_where_it_is_at_hand(tmp_path: Path) -> None:
    smoothed = {"label_smoothing_factor": 0.1}
    found, _, _ = watched(tmp_path, "trainer", change=_all_ids, **smoothed)
    assert rules(found) == {"targets"}
    found, _, _ = watched(tmp_path, "callback", change=_all_ids, **smoothed)
    assert not found.findings
    assert "no labels" in found.tally.unasked["guard.targets"]


def test_a_count_of_one_micro_batch_is_found(tmp_path: Path) -> None:
    from transformers import Trainer

    class Counts(Trainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            batches, _ = super().get_batch_samples(*args, **kwargs)
            return batches, batches[0]["labels"].ne(-100).sum()

    found, _, _ = watched(tmp_path, "trainer", kind=Counts)
    assert rules(found) == {"items"}


def test_a_loss_that_a_subclass_computes_is_seen(tmp_path: Path) -> None:
    from transformers import Trainer

    class Own(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")
            logits = model(**inputs).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return loss * float("inf")

    found, _, _ = watched(tmp_path, "trainer", kind=Own)
    assert "loss" in rules(found)
    assert found.tally.asked["guard.targets"] > 0


def test_an_optimizer_of_another_model_is_found(tmp_path: Path) -> None:
    other = model_of("llama")
    descent = torch.optim.SGD(other.parameters(), lr=0.1)
    flat = torch.optim.lr_scheduler.LambdaLR(descent, lambda _step: 1.0)
    model = model_of()
    trainer = trainer_of(model, tmp_path, batches_of(model))
    trainer.optimizer, trainer.lr_scheduler = descent, flat
    with (
        assay.guard(model, trainer, on_finding="stop", folder=tmp_path / "guard"),
        pytest.raises(assay.GuardStop, match="stepped"),
        torch.random.fork_rng(devices=[]),
    ):
        trainer.train()


def test_the_trainer_has_to_train_the_model_that_is_named(tmp_path: Path) -> None:
    model = model_of("llama")
    trainer = trainer_of(model, tmp_path, [])
    with pytest.raises(ValueError, match="model: expected the model of the trainer"):
        assay.guard(torch.nn.Linear(1, 1), trainer)


def test_it_says_what_was_asked_and_what_is_trained(tmp_path: Path) -> None:
    found, _, _ = watched(tmp_path, "trainer")
    told = found.report()
    assert "2 steps, 2 checked (every 1), 0 findings" in told
    assert "guard.share       not asked: no bounds were declared" in told
    assert "model.visual" in told and "of the text of the last batch" in told and "cost:" in told
