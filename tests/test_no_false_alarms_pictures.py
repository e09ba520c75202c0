"""Right pipelines that augment pictures, put edges around them, refuse strange samples or count by themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image, ImageOps
from torch.nn import functional

from assay.audits import registry
from assay.audits.components.pipeline.own import IGNORED, Collator, Ids, Talks, text_model
from assay.audits.components.pipeline.upstream import trainer
from assay.audits.components.pipeline.wrong import FAMILY, pipeline
from assay.audits.pipeline_run import BatchCall, Runner
from assay.audits.pipelines import checked
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Inexpressible, Verdict
from assay.audits.usage import BadUsage

LAWS = tuple(law.name for law in registry.component("pipeline").laws)


class Changed(Collator):
    """Does something to each picture before the processor sees it."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__(FAMILY)
        self.change = change

    def one(self, messages: Any) -> dict[str, Any]:
        def other(part: Any) -> Any:
            return {**part, "image": self.change(part["image"])} if part["type"] == "image" else part

        return super().one([{**item, "content": [other(part) for part in item["content"]]} for item in messages])


def _sometimes(change: Callable[[Any], Any], chance: float = 0.5) -> Callable[[Any], Any]:
    return lambda picture: change(picture) if random.random() < chance else picture


def _turned(picture: Any) -> Any:
    return picture.rotate(random.uniform(-20, 20))


def _erased(picture: Any) -> Any:
    wide, tall = picture.size
    left, top = random.randint(0, wide // 2), random.randint(0, tall // 2)
    picture = picture.copy()
    picture.paste((0, 0, 0), (left, top, left + wide // 2, top + tall // 2))
    return picture


def _cut(picture: Any) -> Any:
    """A part of it, in its size."""
    wide, tall = picture.size
    share = random.uniform(0.5, 1)
    size = max(1, int(wide * share)), max(1, int(tall * share))
    left, top = random.randint(0, wide - size[0]), random.randint(0, tall - size[1])
    return picture.crop((left, top, left + size[0], top + size[1])).resize((wide, tall))


def _square(picture: Any) -> Any:
    """In the middle of a square of another colour."""
    side = max(picture.size)
    out = Image.new("RGB", (side, side), (122, 116, 104))
    out.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return out


def _no_blank(picture: Any) -> Any:
    if len({low for low, high in picture.getextrema() if low == high}) == 1:
        message = "a blank picture"
        raise ValueError(message)
    return picture


class Classes(Collator):
    """Knows the answers that there are, and refuses any other."""

    def one(self, messages: Any) -> dict[str, Any]:
        known = set(_answers(Talks(4)[index]["messages"] for index in range(len(Talks(4)))))
        if strange := set(_answers([messages])) - known:
            raise KeyError(strange.pop())
        return super().one(messages)


def _answers(talks: Any) -> Iterator[str]:
    for talk in talks:
        yield from (part["text"] for item in talk if item["role"] == "assistant" for part in item["content"])


def _counted(outputs: Any, labels: Any, num_items_in_batch: Any) -> Any:
    """Cannot be asked without a count, and never is by a ``Trainer``."""
    logits, wanted = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum") / num_items_in_batch


def _trainer(**arguments: Any) -> Any:
    from transformers import DataCollatorForSeq2Seq

    own = Collator(FAMILY)
    tokenizer = own.processor.tokenizer
    return trainer(text_model(576), DataCollatorForSeq2Seq(tokenizer), Ids(own), tokenizer, **arguments)


def _trainer_of(loss: Any) -> Any:
    made = _trainer()
    made.compute_loss_func = loss
    return made


RIGHT: dict[str, Callable[[], Any]] = {
    "mirrored at times": lambda: pipeline(Changed(_sometimes(ImageOps.mirror))),
    "mirrored seldom": lambda: pipeline(Changed(_sometimes(ImageOps.mirror, 0.1))),
    "turned by degrees": lambda: pipeline(Changed(_turned)),
    "partly erased": lambda: pipeline(Changed(_sometimes(_erased))),
    "cut": lambda: pipeline(Changed(_cut)),
    "solarised at times": lambda: pipeline(Changed(_sometimes(lambda picture: ImageOps.solarize(picture, 128)))),
    "within a square": lambda: pipeline(Changed(_square)),
    "no blank pictures": lambda: pipeline(Changed(_no_blank)),
    "known answers": lambda: pipeline(Classes(FAMILY)),
    "a trainer's function that needs a count": lambda: _trainer_of(_counted),
    "a trainer that accumulates": lambda: _trainer(gradient_accumulation_steps=4),
    "a trainer with names": lambda: _trainer(label_names=["labels"]),
    "a trainer that computes layers again": lambda: _trainer(gradient_checkpointing=True),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pipeline_is_not_accused(name: str, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    runner = Runner(checked(RIGHT[name]()))
    monkeypatch.setattr("assay.audits.resolve.implementation", lambda _target, _form: runner)
    candidate = Candidate(operation="pipeline.batch", name=name, target={}, trusted=True)
    report = audit(registry.operation("pipeline.batch"), candidate, Options(laws=LAWS, cases=("all",)))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


def test_a_changed_sample_that_is_refused_is_asked_nothing() -> None:
    runner = Runner(pipeline(Changed(_no_blank)))
    assert "batch.input_ids" in runner(BatchCall(first=2))
    with pytest.raises(Inexpressible, match="refuses the changed sample: a blank picture"):
        runner(BatchCall(first=1, painted=(0, 0, 0)))


def test_a_stream_of_samples_is_bad_usage() -> None:
    with pytest.raises(BadUsage, match="got a list_iterator: hand in a list of some of its samples"):
        checked({"dataset": iter([1, 2]), "collator": len})
