"""What a pipeline may be made of, what is read off it, and where samples are found in a batch."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from assay.audits.components.pipeline.batch_laws import runs, starts
from assay.audits.components.pipeline.own import Collator, padded_qwen2_5_vl
from assay.audits.components.pipeline.views import View, _chain
from assay.audits.components.pipeline.wrong import FAMILY
from assay.audits.patch_runs import as_bytes
from assay.audits.pipeline_facts import facts
from assay.audits.pipeline_model import refused, rotaries, scores, watched
from assay.audits.pipeline_run import MOST, BatchCall, Runner, _spread
from assay.audits.pipeline_run import runs as label_runs
from assay.audits.pipeline_samples import answers, digest, messages, pictures
from assay.audits.pipeline_show import indices, listed
from assay.audits.pipelines import Pipeline, checked, load, padded_on, seeded
from assay.audits.terms import Inexpressible
from assay.audits.usage import BadUsage


def _collate(samples: Any) -> dict[str, Tensor]:
    return {"input_ids": torch.zeros(len(samples), 2, dtype=torch.long)}


class Tokenizer:
    """As little of one as will do."""

    padding_side = "right"
    chat_template = None

    def decode(self, ids: Any) -> str:
        return str(ids)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({}, "dataset: expected a sequence of samples, make() returned none"),
        ({"dataset": iter([1])}, "dataset: expected a sequence (with a length and an index), got a list_iterator"),
        ({"dataset": {"a": 1}}, "dataset: expected a sequence (with a length and an index), got a dict"),
        ({"dataset": []}, "dataset: expected at least one sample, it is empty"),
        ({"dataset": [1]}, "collator: expected a collator, or a processor whose chat template makes the batch"),
        ({"dataset": [1], "collator": 3}, "collator: expected a function of a list of samples, got a int"),
        ({"dataset": [1], "tokenizer": Tokenizer()}, "collator: make() returned none, and the Tokenizer has no chat"),
        ({"dataset": [1], "collator": _collate, "tokenizer": 3}, "tokenizer: expected an object with decode(), got a"),
        ({"dataset": [1], "collator": _collate, "model": 3}, "model: expected a torch module or a function that makes"),
        ({"dataset": [1], "collator": _collate, "model": lambda: 3}, "model: the function returned a int"),
    ],
)
def test_what_is_missing_or_wrong_is_named(made: Any, told: str) -> None:
    with pytest.raises(BadUsage, match="--pipeline: ") as raised:
        checked(made)
    assert told in str(raised.value)


@pytest.mark.parametrize("collator", [lambda _: [1], lambda _: {"ids": 1}])
def test_a_collator_that_makes_no_batch_is_bad_usage(collator: Any) -> None:
    with pytest.raises(BadUsage, match="--pipeline: collator: expected a"):
        Runner(checked({"dataset": [1], "collator": collator}))


@pytest.mark.parametrize(
    ("ref", "told"),
    [("no.such:make", "cannot import no.such:make"), ("assay.audits.pipelines:SIDES", "expected a function without")],
)
def test_what_cannot_be_called_is_bad_usage(ref: str, told: str) -> None:
    with pytest.raises(BadUsage, match=told):
        load(ref)


def test_parts_go_by_the_names_of_a_trainer() -> None:
    model = nn.Linear(2, 2)
    trainer = SimpleNamespace(train_dataset=[1], data_collator=_collate, processing_class=Tokenizer(), model=model)
    made = checked(trainer)
    assert (made.dataset, made.collator, made.model) == ([1], _collate, model)
    assert made.tokenizer is trainer.processing_class
    assert checked(Pipeline(dataset=[1], collator=_collate, model=lambda: model)).model is model


def test_the_side_of_padding_is_put_back() -> None:
    tokenizer = Tokenizer()
    made = checked({"dataset": [1], "collator": _collate, "tokenizer": tokenizer})
    with padded_on(made, "left") as sided:
        assert (sided, tokenizer.padding_side) == (True, "left")
    assert tokenizer.padding_side == "right"


def test_generators_are_seeded_and_put_back() -> None:
    def draw() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - numpy's global state is what is tested

    before = random.getstate(), torch.get_rng_state()
    with seeded(3):
        first = draw()
    with seeded(3):
        assert draw() == first
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize(
    ("sample", "texts"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ["b"]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ["b"]),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
            ["b"],
        ),
        ({"messages": [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "c"}]}]}, ["c"]),
        ({"messages": []}, None),
        ({"input_ids": [1]}, None),
        ("text", None),
    ],
)
def test_the_assistants_texts(sample: Any, texts: list[str] | None) -> None:
    assert answers(sample) == (texts and [texts])
    assert (messages(sample) is None) == (texts is None)


def test_what_a_template_writes_before_an_answer_is_right_too() -> None:
    def render(talk: Any, *, prompt: bool) -> str:
        turns = "".join(
            f"[{m['role']}]" + ("<think></think>" * (m["role"] == "assistant")) + m["content"] for m in talk
        )
        return turns + "[assistant]" * prompt

    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert answers({"messages": talk}, render) == [["b", "<think></think>b"]]
    assert answers({"messages": talk}, lambda *_, prompt: 1 / 0) == [["b"]]


@dataclass
class Held:
    """An object with attributes."""

    x: int = 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 2}),
        ([1, 2], [1]),
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2, 1), torch.zeros(1, 2)),
        (np.zeros(3), np.ones(3)),
        (Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), "red")),
        (Held(1), Held(2)),
        ("1", 1),
    ],
)
def test_a_digest_tells_samples_apart(one: Any, other: Any) -> None:
    assert digest(one) == digest(one)
    assert digest(one) != digest(other)


def test_the_sizes_of_a_samples_images() -> None:
    wide, turned = Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2))
    turned.getexif()[274] = 6
    part = [{"type": "image", "image": wide}, {"type": "text", "text": "a"}]
    assert pictures({"messages": [{"role": "user", "content": part}]}) == [[4, 2]]
    assert pictures({"image": wide}) == [[4, 2]]
    assert pictures({"images": [wide, turned]}) == [[4, 2], [2, 4]]
    assert pictures({"images": ["a.png", wide]}) == pictures({"text": 3}) == pictures(3) == []


def test_all_samples_are_spread_over_a_long_dataset() -> None:
    assert _spread(3) == [0, 1, 2]
    found = _spread(1000)
    assert (len(found), found[0], found[-1]) == (MOST, 0, 999)
    assert len(set(found)) == MOST


def test_a_sample_that_is_not_there_cannot_be_asked_for() -> None:
    runner = Runner(checked({"dataset": [1, 2], "collator": _collate}))
    with pytest.raises(Inexpressible, match="the dataset has 2 samples"):
        runner(BatchCall(first=4))
    with pytest.raises(Inexpressible, match="no model"):
        runner(BatchCall(run=True))
    with pytest.raises(Inexpressible, match="no tokenizer of the pipeline has a padding_side"):
        runner(BatchCall(side="left"))


def test_facts_of_a_family() -> None:
    found = facts(checked(padded_qwen2_5_vl()))
    assert (found.rule, found.spatial_merge, found.ids_per_second, found.needs_types) == ("qwen2_5_vl", 2, 2.0, True)
    assert found.end == "<|im_end|>"
    assert set(found.ends.values()) == {"<|endoftext|>", "<|im_end|>"}
    assert not found.trims
    without = facts(replace(checked(padded_qwen2_5_vl()), model=None))
    assert (without.rule, without.placeholders, without.needs_types) == (found.rule, found.placeholders, True)


def test_a_template_that_trims_is_noticed() -> None:
    tokenizer = Collator(FAMILY).processor.tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}<|im_end|>{% endfor %}"
    try:
        found = facts(checked({"dataset": [1], "collator": _collate, "tokenizer": tokenizer}))
    finally:
        tokenizer.chat_template = None
    assert (found.trims, found.end) == (True, "<|im_end|>")


def test_scores_are_of_the_next_token() -> None:
    drawn = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(2, 5, 7, generator=drawn), torch.randint(0, 7, (2, 5), generator=drawn)
    found = scores(logits, ids)
    want = logits.double().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(found[:, :-1], want, rtol=1e-12)  # float64, row by row against all at once
    assert not found[:, -1].any()


class Decoder(nn.Module):
    """A decoder whose positions can be watched, and a vision tower whose cannot."""

    class Rotary(nn.Module):
        def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
            return x

    def __init__(self) -> None:
        super().__init__()
        self.rotary_emb, self.visual_rotary = self.Rotary(), self.Rotary()

    def forward(self, input_ids: Tensor) -> Tensor:
        place = torch.arange(input_ids.shape[1])[None]
        return self.rotary_emb(self.visual_rotary(input_ids, position_ids=place + 9), place)


def test_the_decoders_positions_are_watched() -> None:
    model = Decoder()
    assert rotaries(model) == [model.rotary_emb]
    with watched(model) as seen:
        model(torch.zeros(1, 3))
    assert [ids.tolist() for ids in seen] == [[[[0, 1, 2]]]]
    assert refused(model, {"input_ids": 1, "labels": 2}) == ["labels"]


def _view(**batch: Tensor) -> View:
    told = {"facts": {"pad": 0, "placeholders": {}, "markers": {}}}
    return View({**{f"batch.{name}": value for name, value in batch.items()}, "record": as_bytes(told)})


def test_padding_is_told_by_the_mask_or_the_ends_of_rows() -> None:
    ids = torch.tensor([[0, 5, 0, 6, 0]])
    assert _view(input_ids=ids).real.tolist() == [[False, True, True, True, False]]
    assert _view(input_ids=ids, labels=torch.tensor([[-1, 5, -1, 6, 0]])).real[0, 4]
    mask = torch.tensor([[0, 1, 1, 2, 2]])
    assert _view(input_ids=ids, attention_mask=mask).real.tolist() == [[False, True, True, True, True]]


def test_samples_are_found_by_their_ids() -> None:
    left = {0: [1, 2], 1: [1, 2, 3], 2: [4]}
    assert _chain([1, 2, 3, 1, 2, 0, 4], 0, left, [0, 1, 2], {0}) == [(1, 0), (0, 3), (2, 6)]
    assert _chain([1, 2, 9, 4], 0, left, [0, 1, 2], {0}) == [(0, 0)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cu_seq_lens_q", torch.tensor([0, 2, 5])),
        ("seq_idx", torch.tensor([[0, 0, 1, 1, 1]])),
        ("attention_mask", torch.tensor([[1, 1, 2, 2, 2]])),
        ("position_ids", torch.tensor([[0, 1, 0, 1, 2]])),
        ("position_ids", torch.tensor([[0, 1, 0, 1, 2]]).expand(4, 1, 5)),
        ("position_ids", torch.tensor([[0, 1, 0, 1, 2]]).expand(3, 1, 5)),
        ("attention_mask", torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).tril().bool()[None, None]),
    ],
)
def test_boundaries_are_read_however_they_are_told(key: str, value: Tensor) -> None:
    found = _view(input_ids=torch.arange(1, 6)[None], **{key: value})
    assert {place for _, place in starts(found)[key]} - {0, 5} == {2}


def test_what_says_nothing_of_boundaries_is_left_out() -> None:
    ids = torch.arange(1, 6)[None]
    assert starts(_view(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=ids)) == {}


def test_runs() -> None:
    assert runs(torch.tensor([[True, True, False], [False, False, True]])) == [(0, 0, 2), (1, 2, 1)]
    assert label_runs([7, 8, 9, 7], [-100, 8, 9, 7]) == [(1, [8, 9, 7])]
    assert label_runs([7, 8, 9], [7, -100, 9]) == [(0, [7]), (2, [9])]


@pytest.mark.parametrize(("text", "found"), [("", ()), ("3", (3,)), ("2, 0,1", (2, 0, 1))])
def test_indices(text: str, found: tuple[int, ...]) -> None:
    assert indices(text) == found


@pytest.mark.parametrize("text", ["a", "1;2", "-1"])
def test_indices_that_are_none(text: str) -> None:
    with pytest.raises(BadUsage, match="--samples: expected"):
        indices(text)


def test_samples_are_listed_shortly() -> None:
    assert [listed(n) for n in ([3], [2, 0], [0, 1, 2, 3])] == ["sample 3", "samples 2, 0", "samples 0 to 3"]
