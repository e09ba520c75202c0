"""Right trainings, written in many ways, of several families: none of them is accused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from guard_runs import adam, batch_of, failures, labels_of, model_of, pack_of, rules, step, watched
from torch import nn

from assay.audits.families import _release, causal
from assay.audits.families.loss_run import uncached
from assay.audits.guard import guard


@pytest.fixture(scope="module", autouse=True)
def _quick(one_thread: None) -> None:
    """Tiny models."""


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "paddleocr_vl", "qwen2_5_omni", "llama")
VISUAL = {"images": ("t5 i4x8 t6", "t3 i8x4 t9 i4x4 i4x4 t2")}
TEXT = {"text": ("t5", "t9")}


def _silent(found: Any) -> None:
    assert not found.findings, found.report()
    assert not failures(found), found.report()


@pytest.mark.parametrize("name", FAMILIES)
def test_padded_batches(name: str, tmp_path: Path) -> None:
    if isinstance(told := causal.family(name), str):
        pytest.skip(told)
    model = model_of(name)
    for samples in (TEXT if name == "llama" else VISUAL | TEXT).values():
        for side in ("right", "left"):
            found = watched(model, batch_of(model, samples, name, padding=side), tmp_path)
            _silent(found)
            assert found.tally.asked["guard.positions"] == 1


@pytest.mark.parametrize("told", ["ids", "lengths", "mask"])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llama"])
def test_packs(name: str, told: str, tmp_path: Path) -> None:
    model = model_of(name)
    samples = ("t5", "t9", "t3") if name == "llama" else ("t5 i4x8 t6", "t9", "t3 i8x4 t9")
    found = watched(model, pack_of(model, told, samples, name), tmp_path)
    _silent(found)
    assert found.tally.asked["guard.boundaries"] == 1


def _answers(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The last three tokens of each row alone."""
    labels = batch["labels"].clone()
    for row, shown in enumerate(batch["attention_mask"]):
        labels[row, : int(shown.nonzero().max()) - 2] = -100
    return {"labels": labels}


def _without_mask(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """One row needs none."""
    return {key: value[:1] for key, value in batch_of(model, ("t5 t6",), "llama").items() if key != "attention_mask"}


def _own_ids(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Positions that a collator counts over what is no padding, some number further along."""
    return {"position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0) + 3}


def _noised(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Some tokens are replaced in what is read, and not in what is to be written."""
    ids = batch["input_ids"].clone()
    ids[:, 2] = 7
    return {"input_ids": ids}


def _blocks(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """A mask of four dimensions for a batch that is not packed."""
    shown = batch["attention_mask"].bool()
    causal = torch.ones(shown.shape[-1], shown.shape[-1], dtype=torch.bool).tril()
    return {"attention_mask": (causal & shown[:, None, None]) | torch.eye(len(causal), dtype=torch.bool)}


def _filled_up(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """A pack whose end is filled with a token, which counts as a sample of its own."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 4, 0, 0, 0]])
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1, 2]])
    labels = torch.tensor([[-100, 6, 7, -100, 9, 4, -100, -100, -100]])
    return {"input_ids": ids, "position_ids": places, "labels": labels, "attention_mask": None}


def _chunked(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Texts one after another, cut at the row's length, with nothing that says where they begin."""
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


def _end_hidden(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Padding is the end of text, and the mask is made of ids: it hides the end, which is trained on."""
    ids, labels = batch["input_ids"].clone(), batch["labels"].clone()
    last = batch["attention_mask"].sum(-1) - 1
    for row, place in enumerate(last.tolist()):
        ids[row, place:], labels[row, place] = 2, 2
    return {"input_ids": ids, "labels": labels, "attention_mask": ids.ne(2).long()}


def _counted(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return {"num_items_in_batch": batch["labels"][:, 1:].ne(-100).sum()}


def _counted_whole(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """As older Trainers count: a label in the first column too."""
    return {"num_items_in_batch": int(batch["labels"].ne(-100).sum())}


def _shifted_apart(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Labels handed over shifted, by the name that says so."""
    labels = batch["labels"]
    return {"shift_labels": torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)}


@pytest.mark.parametrize(
    "change",
    [
        _answers,
        _without_mask,
        _own_ids,
        _noised,
        _blocks,
        _filled_up,
        _chunked,
        _counted,
        _counted_whole,
        _shifted_apart,
    ],
    ids=lambda change: change.__name__.strip("_").replace("_", "-"),
)
def test_texts_written_otherwise(change: Callable[[Any, Any], dict[str, Any]], tmp_path: Path) -> None:
    model = model_of("llama")
    batch = batch_of(model, ("t5 t6", "t9"), "llama")
    batch = {key: value for key, value in (batch | change(model, batch)).items() if value is not None}
    _silent(watched(model, batch, tmp_path))


def test_a_text_alone_for_a_model_with_a_tower(tmp_path: Path) -> None:
    """The tower is not called, and gets no gradient."""
    model = model_of()
    _silent(watched(model, batch_of(model, ("t7", "t9")), tmp_path))


def test_a_frozen_tower_and_no_weight_decay_on_some(tmp_path: Path) -> None:
    model = model_of()
    model.model.visual.requires_grad_(False)

    def made(model: Any) -> torch.optim.Optimizer:
        own = [one for one in model.parameters() if one.requires_grad]
        groups = [{"params": [one for one in own if one.ndim > 1]}, {"params": [one for one in own if one.ndim == 1]}]
        return torch.optim.SGD(groups, lr=1e-2)

    _silent(watched(model, batch_of(model), tmp_path, made=made))


def test_a_part_with_a_rate_of_zero(tmp_path: Path) -> None:
    model = model_of()

    def made(model: Any) -> torch.optim.Optimizer:
        tower = list(model.model.visual.parameters())
        rest = [one for name, one in model.named_parameters() if "visual" not in name]
        return torch.optim.AdamW([{"params": tower, "lr": 0.0, "weight_decay": 0.0}, {"params": rest}], lr=1e-3)

    _silent(watched(model, batch_of(model), tmp_path, made=made))


def test_half_precision_and_a_small_rate(tmp_path: Path) -> None:
    """Steps that a dtype rounds away are none of the optimizer's doing."""
    model = model_of("llama").to(torch.bfloat16)
    found = watched(
        model,
        batch_of(model, ("t9",), "llama"),
        tmp_path,
        made=lambda made: torch.optim.SGD(made.parameters(), lr=1e-9),
    )
    _silent(found)
    assert "too small for the dtype" in found.tally.unasked["guard.stepped"]


def test_two_optimizers_that_take_turns(tmp_path: Path) -> None:
    model = model_of("llama")
    batch = batch_of(model, ("t9",), "llama")
    head, rest = adam(model.lm_head), adam(model.model)
    with guard(model, [rest, head], every=1, folder=tmp_path) as found:
        for _ in range(3):
            step(model, batch)
            rest.step()
            head.step()
            model.zero_grad()
    _silent(found)
    assert found.tally.checked == found.tally.steps == 3


def test_gradients_that_are_consumed_in_the_backward_pass(tmp_path: Path) -> None:
    """Optimizers that step inside of it leave none."""
    model = model_of("llama")

    def descend(parameter: nn.Parameter) -> None:
        with torch.no_grad():
            parameter -= 1e-2 * parameter.grad
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(descend)
    _silent(watched(model, batch_of(model, ("t9",), "llama"), tmp_path))


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    model = model_of("llama")
    batch, optimizer = batch_of(model, ("t9", "t5"), "llama"), adam(model)
    labels = batch.pop("labels")
    with guard(model, optimizer, folder=tmp_path) as found:
        logits = model(**batch, **uncached(model)).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        found.saw({"labels": labels}, loss)
        loss.backward()
        optimizer.step()
    _silent(found)
    assert found.tally.asked["guard.targets"] == found.tally.asked["guard.loss"] == 1


def _llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(
            LlavaConfig(vision_config=tower, text_config=text, image_token_index=60)
        ).train()


def test_a_family_without_grids(tmp_path: Path) -> None:
    """Its last layer of the tower is called and never used."""
    model = _llava()
    ids = torch.tensor([[5, 60, 60, 60, 60, 7, 8], [60, 60, 60, 60, 9, 4, 3]])
    batch = {"input_ids": ids, "pixel_values": torch.rand(2, 3, 8, 8), "attention_mask": torch.ones_like(ids)}
    batch["labels"] = labels_of(model, batch)
    found = watched(model, batch, tmp_path)
    _silent(found)
    assert found.tally.asked["guard.features"] == 1
    moved = batch | {"input_ids": torch.tensor([[5, 60, 60, 60, 60, 60, 8], [60, 60, 60, 1, 9, 4, 3]])}
    moved["labels"] = labels_of(model, moved)
    assert rules(watched(model, moved, tmp_path)) == {"features"}


@pytest.mark.skipif(not _release.within(">=5.17.0"), reason="the family is newer")
def test_a_video_whose_frames_stand_apart(tmp_path: Path) -> None:
    model = model_of("qwen3_vl")
    _silent(watched(model, batch_of(model, ("t5 v2x4x8 t6", "t3 v2x4x4 i8x4 t9"), "qwen3_vl"), tmp_path))
