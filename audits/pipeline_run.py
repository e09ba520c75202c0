"""Answers questions about a pipeline: the batch of some samples, and what the model makes of it.

A :class:`BatchCall` in, named tensors out. It lives in the worker; the judge sees no dataset, collator or model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay.audits.patch_runs import as_bytes
from assay.audits.pipeline_facts import Facts, facts
from assay.audits.pipeline_markup import Markup, tidy
from assay.audits.pipeline_model import Asked, accepted, forward, refused, used_positions
from assay.audits.pipeline_samples import answers, attempted, digest, messages, pictures
from assay.audits.pipeline_swaps import canvases, inverted, repainted, reworded
from assay.audits.pipeline_talks import plain, told
from assay.audits.pipeline_trainer import counted, step_of, takes_items
from assay.audits.pipelines import Pipeline, collated, generators, padded_on, seeded
from assay.audits.terms import Inexpressible, Outputs
from assay.audits.usage import BadUsage

MOST = 16
"""Samples of a batch of all: of a longer dataset as many, spread evenly."""

SEED = 48_611
"""Of the global generators while a batch is made; one that nobody sets by himself."""


@dataclass(frozen=True, kw_only=True)
class BatchCall:
    """What to make a batch of. ``samples`` are indices into the dataset in the order of the batch, none for all.

    ``first`` asks for that many from the start instead. ``side`` is where the tokenizer shall pad (empty: as it is).
    ``positions`` asks the model for the positions that it uses, which is cheap, ``run`` for all that it gives, with
    ``items`` as ``num_items_in_batch`` (0: without) and with ``gradients``. ``texts`` asks for what each token decodes
    to. ``dtype`` is that of the model: float64, or float32. ``training``: the model is in training mode, without
    dropout. ``steps``: of how many micro-batches the batch is one. ``draw`` is added to the seed of the generators.

    Of the first sample, ``negative`` is the number, from 1 on, of a picture that its negative is put in the place of,
    with ``corner`` that of its upper left quarter alone; ``painted`` a colour, red, green and blue, that all its
    pictures are, or two and a direction, as ``canvases`` has them; ``reworded`` the number, from 1 on, of an answer
    that has other words.
    """

    samples: tuple[int, ...] = ()
    first: int = 0
    side: str = ""
    positions: bool = False
    run: bool = False
    items: int = 0
    gradients: bool = False
    texts: bool = False
    negative: int = 0
    corner: bool = False
    painted: tuple[int, ...] = ()
    reworded: int = 0
    training: bool = False
    steps: int = 1
    draw: int = 0
    dtype: str = "float64"
    device: str = "cpu"


class _Unread(Exception):
    """The tokenizer, which is foreign, refuses a text by itself: its sample is asked nothing about its messages."""


class Runner:
    """A pipeline that answers calls."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Keep it, and look once whether a batch of it is one. BadUsage where the collator returns something else."""
        self._pipeline = pipeline
        self._facts: Facts = facts(pipeline)
        self.sites: dict[str, int] = {}
        self._read: dict[str, dict[str, Any]] = {}
        try:
            self._batch((0,), BatchCall())
        except BadUsage:
            raise
        except Exception:  # noqa: BLE001, S110 - foreign code may raise anything; each call says so again, in a finding
            pass

    def __call__(self, call: BatchCall) -> Outputs:
        """``batch.KEY`` of each tensor; ``record``, JSON as bytes; with ``run`` what ``pipeline_model.forward`` gives.

        Inexpressible where the dataset has no such sample, or no tokenizer says where padding goes.
        """
        chosen = self._chosen(call)
        batch, record = self._batch(chosen, call)
        record |= self._told(batch, call)
        out: dict[str, Tensor] = {} if not call.painted else self._painted(chosen[0], call.painted)
        out |= {f"batch.{name}": tensor for name, value in batch.items() if (tensor := _tensor(value)) is not None}
        if call.run or call.positions:
            out |= self._ran(batch, call)
        return {**{name: value.detach().cpu() for name, value in out.items()}, "record": as_bytes(record)}

    def _chosen(self, call: BatchCall) -> tuple[int, ...]:
        length = len(self._pipeline.dataset)
        if call.first:
            samples: tuple[int, ...] = tuple(range(call.first))
        else:
            samples = call.samples or tuple(_spread(length))
        if samples and max(samples) >= length:
            raise Inexpressible(f"the dataset has {length} samples")
        return samples

    def _sample(self, index: int) -> Any:
        with seeded(index):
            return self._pipeline.dataset[index]

    def _row(self, index: int, sample: Any) -> Any:
        """What the collator is handed for a sample."""
        if self._pipeline.rows is None:
            return sample
        with seeded(index):
            return self._pipeline.rows[index]

    def _batch(self, chosen: tuple[int, ...], call: BatchCall) -> tuple[dict[str, Any], dict[str, Any]]:
        """The batch, and what the samples say of themselves."""
        side = call.side
        samples = [self._sample(index) for index in chosen]
        before = [digest(sample) for sample in samples]
        rows = [self._row(index, sample) for index, sample in zip(chosen, samples, strict=True)]
        rows[:1] = [_changed(row, call) for row in rows[:1]]
        said = [self._said(sample, key) for sample, key in zip(samples, before, strict=True)]
        with padded_on(self._pipeline, side) as sided, seeded(SEED + call.draw):
            if side and not sided:
                raise Inexpressible("no tokenizer of the pipeline has a padding_side")
            state = generators()
            batch = self._collated(rows, call)
            reseeded, draws = torch.initial_seed() != SEED + call.draw, generators() != state
        changed = [index for index, old in zip(chosen, before, strict=True) if digest(self._sample(index)) != old]
        seen = [pictures(sample) for sample in samples]
        return batch, {
            "pictures": seen,
            "samples": list(chosen),
            "wants": [one["wants"] for one in said],
            "talks": [one["talk"] for one in said],
            "wholes": [one["whole"] for one in said],
            "meant": [one["meant"] for one in said],
            "changed": changed,
            "reseeded": reseeded,
            "draws": draws,
        }

    def _collated(self, rows: list[Any], call: BatchCall) -> dict[str, Any]:
        """A batch. What is refused of a changed sample alone, as a blank picture may be, is not held against it."""
        if not (call.negative or call.painted or call.reworded):
            return collated(self._pipeline, rows)
        try:
            return collated(self._pipeline, rows)
        except Exception as error:
            raise Inexpressible(f"the pipeline refuses the changed sample: {str(error)[:80]}") from error

    def _said(self, sample: Any, key: str) -> dict[str, Any]:
        """What a sample says it is, which is read once."""
        if key not in self._read:
            self._read[key] = {
                "wants": answers(sample, self._render),
                "talk": self._talk(sample),
                "whole": self._whole(sample),
                "meant": self._meant(sample),
            }
        return self._read[key]

    def _markup(self) -> Markup:
        """How rows are read beside their texts."""
        part = {"type": "text", "text": "a"}
        seeing, blind = (
            attempted(self._render, [{"role": "user", "content": content}])
            for content in ([{"type": "image"}, part], [part])
        )
        head = next((at for at, (a, b) in enumerate(zip(seeing, blind, strict=False)) if a != b), 0)
        frame = seeing[head : head + len(seeing) - len(blind)]
        return Markup(
            decode=self._decode,
            media=frozenset(self._facts.placeholders.values()),
            special=frozenset(self._facts.special),
            frame=frame if frame and seeing == blind[:head] + frame + blind[head:] else "",
        )

    def _exact(self, ids: Tensor, mask: Any) -> list[tuple[str, str]]:
        """Of each row the text with its markup, and what it says without."""
        if self._pipeline.tokenizer is None:
            return []
        markup = self._markup()
        return [(markup.exact(row), markup.said(row)) for row in _rows(self._shown(ids, mask))]

    def _meant(self, sample: Any) -> tuple[str, str] | None:
        """The same of a sample's conversation, as the template and the tokenizer write it; None where none can be."""
        talk = messages(sample)
        rendered = attempted(self._render, talk) if talk else ""
        if not rendered or self._pipeline.tokenizer is None or not tidy(talk or []):
            return None
        try:
            ids = self._tokens(rendered)
        except _Unread:
            return None
        markup = self._markup()
        return markup.exact(ids), markup.said(ids)

    def _whole(self, sample: Any) -> str:
        """A sample's conversation by the chat template, as :meth:`_spoken` has it."""
        talk = messages(sample)
        said = plain(attempted(self._render, talk)) if talk else ""
        if self._pipeline.tokenizer is not None:
            for token in self._facts.placeholders.values():
                said = said.replace(plain(self._decode([token])), "")
        for frame in self._facts.frames:
            said = said.replace(frame, "")
        return said

    def _talk(self, sample: Any) -> dict[str, Any] | None:
        if self._pipeline.tokenizer is None:
            return None
        try:
            found = told(sample, self._render, self._tokens, self._decode)
        except _Unread:
            return None
        return None if found is None else dataclasses.asdict(found)

    def _tokens(self, said: str) -> list[int]:
        try:
            found = self._pipeline.tokenizer(said, add_special_tokens=False)["input_ids"]
        except Exception as error:
            raise _Unread from error
        return list(map(int, found))

    def _render(self, talk: list[dict[str, Any]], *, prompt: bool) -> str:
        """A conversation by the chat template, with the head of the next answer if it is a prompt."""
        owners = (self._pipeline.processor, self._pipeline.tokenizer)
        owner = next((owner for owner in owners if getattr(owner, "chat_template", None)), None)
        if owner is None:
            return ""
        return str(owner.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt))

    def _told(self, batch: Mapping[str, Any], call: BatchCall) -> dict[str, Any]:
        model = self._pipeline.model
        told: dict[str, Any] = {
            "length": len(self._pipeline.dataset),
            "facts": dataclasses.asdict(self._facts),
            "refused": refused(model, batch) if model is not None else [],
            "decoded": self._decoded(batch),
            "plain": self._plain(batch["input_ids"]),
            "spoken": self._spoken(batch["input_ids"], batch.get("attention_mask")),
            "items": self._items(batch),
            "exact": self._exact(batch["input_ids"], batch.get("attention_mask")),
        }
        if call.texts:
            told["texts"] = self._texts(batch["input_ids"])
        return told

    def _items(self, batch: Mapping[str, Any]) -> int | None:
        trainer = self._pipeline.trainer
        return None if trainer is None else counted(trainer, batch)

    def _painted(self, index: int, colour: tuple[int, ...]) -> dict[str, Tensor]:
        """``paint.pixels``, which the image processor makes of the sample's pictures in one colour."""
        processor = getattr(self._pipeline.processor, "image_processor", None)
        found = canvases(self._sample(index), colour)
        if processor is None or not found:
            raise Inexpressible("the pipeline has no image processor, or the sample no pictures that it could be given")
        made = _tensor(processor(images=found, return_tensors="pt").get("pixel_values"))
        if made is None:
            raise Inexpressible("the image processor makes no pixel_values")
        return {"paint.pixels": made}

    def _spoken(self, ids: Tensor, mask: Any) -> list[str]:
        """As :meth:`_plain`, without masked tokens, placeholders and what the template writes around those."""
        if self._pipeline.tokenizer is None:
            return []
        media = set(self._facts.placeholders.values())
        ids = self._shown(ids, mask)
        texts = [
            plain(self._decode([token for token in row if token >= 0 and token not in media])) for row in _rows(ids)
        ]
        for frame in self._facts.frames:
            texts = [said.replace(frame, "") for said in texts]
        return texts

    def _shown(self, ids: Tensor, mask: Any) -> Tensor:
        """Ids with -1 for padding."""
        if isinstance(mask, Tensor) and mask.numel() == ids.numel():
            return torch.where(mask.reshape(ids.shape) != 0, ids, -1)
        if (pad := self._facts.pad) is None:
            return ids
        other = (ids != pad).long()
        return torch.where((other.cumsum(-1) > 0) & (other.flip(-1).cumsum(-1).flip(-1) > 0), ids, -1)

    def _decoded(self, batch: Mapping[str, Any]) -> list[list[tuple[int, int, str]]]:
        """The runs of trained tokens of each row: where they start and stop, and their labels as text."""
        ids, labels = batch["input_ids"], batch.get("labels")
        if self._pipeline.tokenizer is None or not isinstance(labels, Tensor) or labels.shape != ids.shape:
            return []
        rows = zip(_rows(ids), _rows(labels), strict=True)
        return [[(at, at + len(run), self._decode(run)) for at, run in runs(row, kept)] for row, kept in rows]

    def _decode(self, ids: list[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self._pipeline.tokenizer.decode(ids, **options))

    def _plain(self, ids: Tensor) -> list[str]:
        """Each row as text without blanks; ids that are none are left out."""
        if self._pipeline.tokenizer is None:
            return []
        return [plain(self._decode([token for token in row if token >= 0])) for row in _rows(ids)]

    def _texts(self, ids: Tensor) -> list[list[str]]:
        if self._pipeline.tokenizer is None:
            return []
        known = {token: self._decode([token]) for token in set(ids.flatten().tolist())}
        return [[known[token] for token in row] for row in _rows(ids)]

    def _ran(self, batch: Mapping[str, Any], call: BatchCall) -> Outputs:
        model = self._pipeline.model
        if model is None:
            raise Inexpressible("the pipeline has no model")
        if call.items and not self._takes_items(model):
            raise Inexpressible("the model's forward takes no num_items_in_batch")
        if not call.run:
            with seeded(SEED):
                return used_positions(model, batch, step_of(self._pipeline))
        try:
            model = model.to(device=call.device, dtype=getattr(torch, call.dtype))
        except (ValueError, RuntimeError, TypeError) as error:
            raise Inexpressible(f"the model cannot be brought to {call.dtype}: {error}") from error
        with seeded(SEED):
            in_training = call.training or (call.gradients and self._pipeline.trainer is not None)
            items = self._handed(batch, call)
            asked = Asked(items=items, steps=call.steps, gradients=call.gradients, training=in_training)
            return forward(model, batch, asked, step_of(self._pipeline))

    def _handed(self, batch: Mapping[str, Any], call: BatchCall) -> int:
        """The count of a step: a ``Trainer`` hands on its own if nothing is said, and none if it does not count."""
        if self._pipeline.trainer is None:
            return call.items
        own = self._items(batch)
        return 0 if own is None else call.items or own

    def _takes_items(self, model: Any) -> bool:
        """A ``Trainer`` decides itself what it does with a count."""
        if self._pipeline.trainer is not None:
            return True
        loss = self._pipeline.loss
        return accepted(model, "num_items_in_batch") if loss is None else takes_items(loss)


def _changed(row: Any, call: BatchCall) -> Any:
    """The first sample with what the call asks for done to it."""
    steps: tuple[tuple[Any, Callable[[Any, Any], Any], str], ...] = (
        (call.negative, partial(inverted, corner=call.corner), "no such picture, or one that is the same"),
        (call.painted, repainted, "no pictures that could be painted"),
        (call.reworded, reworded, "no such answer, or one without letters"),
    )
    for asked, change, reason in steps:
        row = change(row, asked) if asked else row
        if row is None:
            raise Inexpressible(f"the sample has {reason}")
    return row


def _tensor(value: Any) -> Tensor | None:
    """A tensor, also of a list of numbers, as processors hand over durations; None for what is neither."""
    if isinstance(value, Tensor):
        return value
    numbers = isinstance(value, (list, tuple)) and value and all(isinstance(item, (int, float)) for item in value)
    return torch.tensor(value) if numbers else None


def _spread(length: int) -> list[int]:
    """All indices, or :data:`MOST` of them from the first to the last."""
    if length <= MOST:
        return list(range(length))
    return [place * (length - 1) // (MOST - 1) for place in range(MOST)]


def _rows(ids: Tensor) -> list[list[int]]:
    rows: list[list[int]] = ids.reshape(-1, ids.shape[-1]).tolist()
    return rows


def runs(ids: list[int], labels: list[int]) -> list[tuple[int, list[int]]]:
    """(first place, label ids) of each run of labels that are not ignored."""
    found: list[tuple[int, list[int]]] = []
    for place, label in enumerate(labels[: len(ids)]):
        if label < 0:
            continue
        if found and found[-1][0] + len(found[-1][1]) == place:
            found[-1][1].append(label)
        else:
            found.append((place, [label]))
    return found
