"""Pipelines whose model does not see what it is shown, sees what it is to say, or is shown something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.pipeline.own import IGNORED, Collator
from assay.audits.components.pipeline.pixel_faults import Coloured
from assay.audits.components.pipeline.wrong import FAMILY, cacheless, faulty, pipeline
from assay.audits.families.discovery import loaded
from assay.audits.pipelines import Pipeline

Messages = Sequence[Mapping[str, Any]]


def _other_model(change: Callable[[Any], None]) -> Pipeline:
    made = cacheless(loaded(FAMILY).build(0))
    change(made)
    return dataclasses.replace(pipeline(Collator(FAMILY)), model=made)


def _hooked(change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """What the tower makes is changed."""

    def on(made: Any) -> None:
        made.model.visual.merger.register_forward_hook(lambda _module, _args, out: change(out))

    return on


@faulty("seen")
def features_multiplied_by_nothing() -> Pipeline:
    """A switch for training on text alone multiplies all features by zero, and is still on.

    Effect: the loss falls by what words tell; pictures are never looked at.
    """
    return _other_model(_hooked(lambda out: out * 0))


@faulty("seen")
def one_feature_for_all_pictures() -> Pipeline:
    """Features are taken from a table that was computed with the first picture.

    Effect: each question is about the same picture, which has the right size.
    """
    return _other_model(_hooked(lambda out: torch.ones_like(out) * 0.5))


@faulty("reached")
def tower_never_trained() -> Pipeline:
    """Features are taken from the tower without their graph, in a model whose tower is to be trained.

    Effect: the tower's parameters are in the optimiser, and stay what they were.
    """
    return _other_model(_hooked(lambda out: out.detach()))


@faulty("reached")
def everything_frozen() -> Pipeline:
    """Freezing was written for one part, and its name is a prefix of all.

    Effect: a training that trains nothing, at full cost.
    """
    return _other_model(lambda made: made.requires_grad_(requires_grad=False))


def _unmasked(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, {**kwargs, "attention_mask": None}


def _sees_all(made: Any) -> None:
    for layer in made.model.language_model.layers:
        layer.self_attn.is_causal = False
        layer.self_attn.register_forward_pre_hook(_unmasked, with_kwargs=True)


@faulty("causal", "isolated")
def attention_that_is_not_causal() -> Pipeline:
    """The attention is given no mask, and is not told that it is causal.

    Effect: each token sees the one that it is to predict; the loss is near zero in a few steps.
    """
    return _other_model(_sees_all)


@faulty("upright")
def pictures_mirrored() -> Pipeline:
    """An augmentation for photographs mirrors all pictures, also those that are asked for left and right.

    Effect: left is right.
    """
    return pipeline(Coloured(lambda picture: picture.transpose(0)))


@faulty("upright")
def pictures_upside_down() -> Pipeline:
    """Rows of pictures are read from the bottom, as some formats store them.

    Effect: what stands on its feet hangs from the ceiling.
    """
    return pipeline(Coloured(lambda picture: picture.transpose(1)))


class _Framed(Collator):
    """Puts tokens around the row, untrained."""

    def __init__(self, before: str, after: str) -> None:
        super().__init__(FAMILY)
        self._around = before, after

    def one(self, messages: Messages) -> dict[str, Any]:
        made = super().one(messages)
        front, back = (self._untrained(said) for said in self._around)
        return {name: torch.cat([front[name], value, back[name]], dim=1) if name in front else value
                for name, value in made.items()}  # fmt: skip

    def _untrained(self, said: str) -> dict[str, Tensor]:
        ids = torch.tensor([self.processor.tokenizer(said, add_special_tokens=False)["input_ids"]]).long()
        return {
            "input_ids": ids, "labels": torch.full_like(ids, IGNORED), "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": torch.zeros_like(ids),
        }  # fmt: skip


@faulty("extra")
def beginning_of_the_text_twice() -> Pipeline:
    """The template writes a token for the beginning of the text, and the tokenizer adds another.

    Effect: all of training is done on texts that begin as none does in use.
    """
    return pipeline(_Framed("<|endoftext|><|endoftext|>", ""))


@faulty("extra")
def head_of_an_answer_that_never_comes() -> Pipeline:
    """The prompt for a generation is rendered in training too, behind the answer.

    Effect: each row ends with an answer that is not given; a pack goes on from there.
    """
    return pipeline(_Framed("", "<|im_start|>assistant\n"))


class _Commas(Collator):
    """Takes commas out of all texts."""

    def one(self, messages: Messages) -> dict[str, Any]:
        return super().one([{**item, "content": [self._bare(part) for part in item["content"]]} for item in messages])

    def _bare(self, part: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**part, "text": part["text"].replace(",", "")} if part["type"] == "text" else part


@faulty("answers", "messages")
def commas_lost() -> Pipeline:
    """Texts went through a file whose fields are parted by commas.

    Effect: lists run together, and the model learns to write so.
    """
    return pipeline(_Commas(FAMILY))


@faulty("loss")
def loss_with_a_term_of_its_own() -> Pipeline:
    """A penalty on the size of the logits was left in from an experiment.

    Effect: the model is trained to be unsure.
    """

    def of(model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        out, count = model(**inputs), (inputs["labels"][:, 1:] >= 0).sum()
        share = 1 if num_items_in_batch is None else count / num_items_in_batch
        told: Tensor = out.loss * share + 0.01 * out.logits.pow(2).mean()
        return told

    return dataclasses.replace(pipeline(Collator(FAMILY)), loss=of)


class _Remembering(Collator):
    """Keeps what it made of a conversation, by the beginning of its first text."""

    def __init__(self) -> None:
        super().__init__(FAMILY)
        self._made: dict[str, dict[str, Any]] = {}

    def one(self, messages: Messages) -> dict[str, Any]:
        key = str([str(part.get("text"))[:20] for part in messages[0]["content"]])
        if key not in self._made:
            self._made[key] = super().one(messages)
        return self._made[key]


@faulty("pixels")
def rows_kept_by_their_question() -> Pipeline:
    """What was made of a sample is kept by its question, which others ask of other pictures.

    Effect: of all samples that ask the same, the first one's picture and answer are trained.
    """
    return pipeline(_Remembering())
