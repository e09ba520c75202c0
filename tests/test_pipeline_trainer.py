"""What is taken of a ``Trainer``, how its loss is made, and the samples with one thing changed that laws ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from assay.audits.components.pipeline.own import Collator, Ids, Talks, text_model
from assay.audits.components.pipeline.role_laws import _turns
from assay.audits.components.pipeline.upstream import Columns, trainer, trainer_padded
from assay.audits.components.pipeline.wrong import FAMILY
from assay.audits.patch_runs import from_bytes
from assay.audits.pipeline_heads import frames, heads
from assay.audits.pipeline_model import called, in_mode, rounded, unreached
from assay.audits.pipeline_run import BatchCall, Runner
from assay.audits.pipeline_swaps import canvases, other_words, repainted, reworded
from assay.audits.pipeline_trainer import counted, smoothing
from assay.audits.pipelines import Pipeline, checked
from assay.audits.usage import BadUsage


def test_a_trainer_is_taken_apart() -> None:
    made = checked(trainer_padded())
    assert made.trainer is not None
    assert made.rows is None
    assert len(made.dataset) == len(Ids(Collator(FAMILY)))
    batch = made.collator([made.dataset[0], made.dataset[1]])
    assert set(batch) == {"input_ids", "labels", "attention_mask"}  # its loader drops messages
    assert counted(made.trainer, batch) == int((batch["labels"][:, 1:] >= 0).sum())


def test_the_rows_of_a_loader_may_have_fewer_columns() -> None:
    own = Collator(FAMILY)
    samples = Ids(own)
    made = trainer(text_model(576), lambda rows: own.processor.tokenizer.pad(rows, return_tensors="pt"), samples, None)
    loader = made.get_train_dataloader()
    made.get_train_dataloader = lambda: torch.utils.data.DataLoader(
        Columns(samples, "input_ids"), collate_fn=loader.collate_fn
    )
    runner = Runner(checked(made))
    out = runner(BatchCall(first=2))
    record: Any = from_bytes(out["record"])
    assert "batch.labels" not in out
    assert record["wants"] == [[["four"]], [["assistant"]]]  # of the dataset, which still has its messages


def test_a_trainer_without_samples_is_bad_usage() -> None:
    made = trainer_padded()
    made.train_dataset = None
    with pytest.raises(BadUsage, match="dataset: expected a sequence of samples"):
        checked(made)


def test_a_loss_that_is_none_is_bad_usage() -> None:
    with pytest.raises(BadUsage, match="loss: expected a function of a model and its inputs, got a float"):
        checked({"dataset": [1], "collator": len, "loss": 0.5})


def test_smoothing_is_read() -> None:
    assert smoothing(None) == 0.0
    made = trainer(text_model(64), len, [1], None, label_smoothing_factor=0.2)
    assert smoothing(made) == 0.2


def test_a_loss_gets_the_model_and_the_batch() -> None:
    def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
        assert "labels" in inputs
        return model(input_ids=inputs["input_ids"]).logits.sum() * 0 + 7

    own = Collator(FAMILY)
    samples = Columns(Ids(own), "input_ids", "labels")

    def collate(rows: Sequence[Any]) -> dict[str, Tensor]:
        return {name: torch.tensor([rows[0][name]]) for name in rows[0]}

    made = Pipeline(dataset=samples, collator=collate, model=text_model(576), loss=loss)
    out = Runner(checked(made))(BatchCall(first=1, run=True, gradients=True))
    assert float(out["loss"]) == 7
    assert not out["grads"].any()
    assert from_bytes(out["unreached"]) == []  # gradients that are zero are gradients


def test_training_mode_draws_nothing_and_is_put_back() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 3)).eval()
    model.attention_dropout = 0.3
    with in_mode(model, training=True):
        assert [module.training for module in model] == [True, False, True]
        assert (model[0].p, model.attention_dropout) == (0.0, 0.0)
    assert not any(module.training for module in model.modules())
    assert (model[0].p, model.attention_dropout) == (0.5, 0.3)


def test_parts_without_gradients_are_named() -> None:
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2), "three": nn.Linear(2, 2)})
    with called(model) as parts:
        (model["one"](torch.ones(1, 2)).detach() + model["two"](torch.ones(1, 2))).sum().backward()
    assert [name for name in parts if unreached(parts[name])] == ["one"]
    model["one"].requires_grad_(requires_grad=False)
    assert not unreached(model["one"])


def test_logits_that_are_rounded_are_told() -> None:
    drawn = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert rounded(drawn) < 0.01
    assert rounded(drawn.bfloat16().double()) == rounded(drawn.half().double()) == 1.0
    assert rounded(torch.zeros(1, 3)) == 0.0


def test_canvases_are_of_their_pictures_sizes() -> None:
    pictures = [Image.new("RGB", (8, 4)), Image.new("L", (4, 12))]
    found = canvases({"images": pictures}, (9, 8, 7))
    assert [item.size for item in found] == [(8, 4), (4, 12)]
    assert {tuple(map(int, value)) for item in found for value in np.asarray(item).reshape(-1, 3)} == {(9, 8, 7)}
    shaded = np.asarray(canvases({"images": pictures}, (0, 0, 0, 255, 255, 255, 1))[0])[..., 0]
    assert (np.diff(shaded.astype(int), axis=1) > 0).all()
    assert (np.diff(shaded.astype(int), axis=0) == 0).all()
    assert canvases({"images": ["a.png"]}, (0, 0, 0)) == []


def test_all_pictures_are_painted() -> None:
    sample = Talks(4)[2]
    painted = repainted(sample, (1, 2, 3))
    held = [part["image"] for item in painted["messages"] for part in item["content"] if part["type"] == "image"]
    assert {item.getpixel((0, 0)) for item in held} == {(1, 2, 3)}
    assert repainted(Talks(4)[1], (1, 2, 3)) is None


def test_other_words_are_as_long() -> None:
    assert other_words("a Zebra, <box>9") == "b Afcsb, <box>0"
    assert other_words("...") == "..."


@pytest.mark.parametrize("names", [("role", "content"), ("from", "value")])
def test_one_answer_is_reworded(names: tuple[str, str]) -> None:
    turns = [("user", "a"), ("assistant", "yes"), ("user", "b"), ("assistant", "no")]
    key = "messages" if names[0] == "role" else "conversations"
    sample = {key: [dict(zip(names, turn, strict=True)) for turn in turns], "answer": "no", "id": "a"}
    found = reworded(sample, 2)
    assert [item[names[1]] for item in found[key]] == ["a", "yes", "b", "op"]
    assert (found["answer"], found["id"]) == ("op", "a")
    assert reworded(sample, 1)["answer"] == "no"
    assert reworded(sample, 3) is None


def _render(talk: Any, *, prompt: bool = False) -> str:
    said = "".join(
        f"<{m['role']}>{m['content'] if isinstance(m['content'], str) else _parts(m['content'])}</s>" for m in talk
    )
    return f"<s>{said}"


def _parts(content: Any) -> str:
    return "".join("(<image>)" if part["type"] == "image" else part["text"] for part in content)


def test_heads_are_read_off_a_template() -> None:
    found = heads(_render)
    assert set(found) == {"user", "assistant", "system"}
    assert all("<user>".endswith(found["user"]) and len(found[role]) > 3 for role in found)
    assert heads(lambda talk, **_: "".join(item["content"] for item in talk if isinstance(item["content"], str))) == {}
    assert frames(_render, ["<image>"]) == ("()",)
    assert frames(lambda _talk, **_more: "", ["<image>"]) == ()


def test_turns_that_may_stand_at_two_places_are_left_out() -> None:
    told = [{"role": "user", "texts": ["ab"]}, {"role": "assistant", "texts": ["x"]}, {"role": "user", "texts": ["c"]}]
    assert [(turn.number, turn.gap) for turn in _turns("[u]ab[a]x[u]c", told)] == [(0, "[u]"), (1, "[a]"), (2, "[u]")]
    assert [turn.number for turn in _turns("[x]ab[x]x[u]c", told)] == [0]
