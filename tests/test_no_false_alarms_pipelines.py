"""Right pipelines that are written otherwise than ours: none is accused of anything."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from assay.audits import registry
from assay.audits.components.pipeline.own import IGNORED, Collator, Ids, Packer, Talks, padded
from assay.audits.components.pipeline.wrong import FAMILY, model, pipeline
from assay.audits.families.discovery import loaded
from assay.audits.pipeline_run import Runner
from assay.audits.pipelines import checked
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Verdict

LAWS = tuple(law.name for law in registry.component("pipeline").laws)
Made = Mapping[str, Tensor]
PER_TOKEN = ("input_ids", "labels", "attention_mask", "mm_token_type_ids")


def _grown(batch: dict[str, Tensor], count: int, pad: int) -> dict[str, Tensor]:
    fill = {"input_ids": pad, "labels": IGNORED}
    more = {
        name: batch[name].new_full((len(batch[name]), count), fill.get(name, 0)) for name in PER_TOKEN if name in batch
    }
    return {**batch, **{name: torch.cat([batch[name], value], dim=1) for name, value in more.items()}}


class ToLength(Collator):
    """Pads to a fixed length."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        return _grown(batch, 128 - batch["input_ids"].shape[1], self.processor.tokenizer.pad_token_id)


class Unmasked(Collator):
    """Leaves the mask out where there is no padding."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        full = bool(batch["attention_mask"].all())
        return {name: value for name, value in batch.items() if name != "attention_mask" or not full}


class ToTheNextLine(Collator):
    """Trains on the end of the line after the end of a turn too, as many trainers do."""

    def kept(self, full: str, messages: Any, offsets: Any) -> list[bool]:
        mask = super().kept(full, messages, offsets)
        return [
            one or (before and full[slice(*span)] == "\n")
            for one, before, span in zip(mask, [False, *mask], offsets, strict=False)
        ]


class LastTurn(Collator):
    """Trains on the last answer alone."""

    def kept(self, full: str, messages: Any, offsets: Any) -> list[bool]:
        mask = super().kept(full, messages, offsets)
        start = len(mask) - 1 - mask[::-1].index(True)
        while start and mask[start - 1]:
            start -= 1
        return [kept and place >= start for place, kept in enumerate(mask)]


class Longest(Collator):
    """Puts the longest sample first, with all that belongs to it."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        return super().labelled(sorted(made, key=lambda one: -one["input_ids"].shape[1]))


class Told(Collator):
    """Makes the positions itself, and hands on texts and a count that forward does not read."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        if "image_grid_thw" not in batch:
            return batch
        names = ("mm_token_type_ids", "image_grid_thw", "attention_mask")
        ids, _ = model().model.get_rope_index(batch["input_ids"], **{name: batch[name] for name in names})
        return {**batch, "position_ids": ids}


class Onward(Packer):
    """A pack whose positions go on from sample to sample by 100, which rotary embeddings do not see."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        ids = batch["position_ids"].clone()
        starts = torch.cat([ids[0, :, :1] * 0 + 1, (ids[0, :, 1:] == 0).long()], dim=1)
        ids[1:] += 100 * starts.cumsum(-1)
        return {**batch, "position_ids": ids}


class Filled(Packer):
    """A pack of a fixed length: padding at its end, numbered anew."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        count = 400 - batch["input_ids"].shape[1]
        ids = batch.pop("position_ids")
        grown = _grown(batch, count, self.processor.tokenizer.pad_token_id)
        return {**grown, "position_ids": torch.cat([ids, torch.arange(count).expand(4, 1, -1)], dim=-1)}


class Numbered(Packer):
    """A pack that also tells its lengths and the number of each sample."""

    def labelled(self, made: Sequence[Made]) -> dict[str, Tensor]:
        lengths = torch.tensor([one["input_ids"].shape[1] for one in made])
        ends = torch.cat([lengths[:1] * 0, lengths.cumsum(0)]).int()
        batch = super().labelled(made)
        index = torch.repeat_interleave(torch.arange(len(made)), lengths)[None].int()
        return {**batch, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "seq_idx": index}


class Mirrored(Collator):
    """Mirrors pictures and doubles their sides, which blurs the borders of what they show."""

    def one(self, messages: Any) -> dict[str, Any]:
        def turned(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] != "image":
                return part
            picture = ImageOps.mirror(part["image"])
            return {**part, "image": picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC)}

        return super().one([{**item, "content": list(map(turned, item["content"]))} for item in messages])


def _left() -> Collator:
    made = Collator(FAMILY)
    made.processor.tokenizer.padding_side = "left"
    return made


def _closure() -> Any:
    own = Collator(FAMILY)

    def collate(samples: list[Any]) -> dict[str, Tensor]:
        return padded([own.one(sample["messages"]) for sample in samples], "right", 512)

    return {"dataset": list(Talks(4)), "collate_fn": collate, "processor": own.processor, "model": model}


class Shouting(Talks):
    """An augmentation that draws from the global generator, in the notation ``from`` and ``value``."""

    def __getitem__(self, index: Any) -> Any:
        talk = super().__getitem__(1)["messages"]
        mark = "!" * random.randint(1, 5)
        turns = {"system": "system", "user": "human", "assistant": "gpt"}
        talk[-1]["content"][0]["text"] += mark
        return {"conversations": [{"from": turns[item["role"]], "value": item["content"][0]["text"]} for item in talk]}


class OfConversations(Collator):
    """Reads ``from`` and ``value``."""

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        turns = {"system": "system", "human": "user", "gpt": "assistant"}
        talks = [
            [
                {"role": turns[item["from"]], "content": [{"type": "text", "text": item["value"]}]}
                for item in sample["conversations"]
            ]
            for sample in samples
        ]
        return self.labelled([self.one(talk) for talk in talks])


class OfIds:
    """Ready-made ids and nothing else: no messages, no processor."""

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        made = [{name: torch.tensor([sample[name]]) for name in ("input_ids", "labels")} for sample in samples]
        return padded([{**one, "attention_mask": torch.ones_like(one["labels"])} for one in made], "right", 0)


class Bare(Sequence[Any]):
    """Samples without messages."""

    def __init__(self) -> None:
        self._ids = Ids(Collator(FAMILY))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> Any:
        return {name: self._ids[index][name] for name in ("input_ids", "labels")}


def _of_family(name: str, *samples: str) -> Any:
    """Samples in the notation of families, by the family's own processor; nothing is trained on."""
    family, made = loaded(name), loaded(name).build(0)

    def collate(numbered: list[tuple[int, str]]) -> Mapping[str, Any]:
        keys, texts = zip(*numbered, strict=True)
        return family.batch(made, texts, padding="right", seed=0, keys=keys)

    tokenizer = importlib.import_module(f"assay.audits.families.{name}").RECIPE.tokenizer()
    return {"dataset": list(enumerate(samples)), "collator": collate, "tokenizer": tokenizer, "model": made}


def _example() -> Any:
    """The one that users copy."""
    path = Path(__file__).parents[1] / "examples" / "pipeline_example.py"
    spec = importlib.util.spec_from_file_location("pipeline_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make()


RIGHT: dict[str, Callable[[], Any]] = {
    "to a length": lambda: pipeline(ToLength(FAMILY)),
    "without a mask": lambda: pipeline(Unmasked(FAMILY)),
    "last turn": lambda: pipeline(LastTurn(FAMILY)),
    "to the next line": lambda: pipeline(ToTheNextLine(FAMILY)),
    "longest first": lambda: pipeline(Longest(FAMILY)),
    "positions given": lambda: pipeline(Told(FAMILY)),
    "mirrored": lambda: pipeline(Mirrored(FAMILY)),
    "left": lambda: pipeline(_left()),
    "a closure": _closure,
    "augmented conversations": lambda: pipeline(OfConversations(FAMILY), Shouting(4)),
    "ids alone": lambda: {"dataset": Bare(), "collator": OfIds(), "model": model()},
    "positions go on": lambda: pipeline(Onward(FAMILY, model())),
    "a filled pack": lambda: pipeline(Filled(FAMILY, model())),
    "a numbered pack": lambda: pipeline(Numbered(FAMILY, model())),
    "videos": lambda: _of_family("qwen3_vl", "t3 v4x4x6@2 t4", "t6", "t2 v2x4x4@1 i4x6 t2 i2x4 t1", "i4x4 t2"),
    "short videos in seconds": lambda: _of_family("qwen2_5_vl", "t3 v2x4x6@2 t4", "t6", "t2 i4x6 v2x4x6@2 t2"),
    "videos between markers": lambda: _of_family("glm4v", "t3 v4x4x6@2 t4", "t6 v2x4x4 t2", "t2"),
    "pixels patch by patch": lambda: _of_family("paddleocr_vl", "t3 i4x6 t4", "t6", "t1 i6x2 t2 i4x4 t1"),
    "the example": _example,
    "no collator": lambda: dataclasses.replace(pipeline(Collator(FAMILY)), collator=None),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pipeline_is_not_accused(name: str, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    runner = Runner(checked(RIGHT[name]()))
    monkeypatch.setattr("assay.audits.resolve.implementation", lambda _target, _form: runner)
    candidate = Candidate(operation="pipeline.batch", name=name, target={}, trusted=True)
    try:
        report = audit(registry.operation("pipeline.batch"), candidate, Options(laws=LAWS))
    finally:
        Collator(FAMILY).processor.tokenizer.padding_side = "right"
    assert report.findings == ()
    assert report.verdict == Verdict.PASS
