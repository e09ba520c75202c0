"""What a training script hands to its trainer, as one object: dataset, collator, processor and model.

``make()`` of the user returns it; everything here runs in the worker, since a dataset and a collator are foreign code.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from assay.audits.resolve import imported
from assay.audits.usage import BadUsage

SIDES = ("right", "left")
_WRAPPED = ("data_collator", "collator", "collate_fn")
"""What a collator may call the collator that it is wrapped around."""
_NAMES: Mapping[str, tuple[str, ...]] = {
    "dataset": ("dataset", "train_dataset"),
    "collator": ("collator", "collate_fn", "data_collator"),
    "processor": ("processor", "processing_class"),
    "tokenizer": ("tokenizer",),
    "model": ("model",),
    "loss": ("loss", "compute_loss"),
}
"""What each part may be called by whoever made it; a ``Trainer`` has them under its own names."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """From samples to the loss.

    ``dataset`` is a sequence of samples. ``collator`` makes a mapping of tensors, with ``input_ids``, from a list of
    samples; without one the chat template of ``processor`` makes it from their messages. ``processor`` and
    ``tokenizer`` tell texts and placeholders. ``model`` is a module, or a callable without arguments that makes one.
    ``loss`` computes the loss in place of the model, with the signature of ``Trainer.compute_loss``: ``(model, inputs,
    return_outputs=False, num_items_in_batch=None)``, of which the last two may be absent. ``trainer`` is the
    ``Trainer`` that all of this was taken from, and ``rows`` what its loader hands to the collator for each sample,
    where that is another object than the sample.
    """

    dataset: Any
    collator: Any = None
    processor: Any = None
    tokenizer: Any = None
    model: Any = None
    loss: Any = None
    trainer: Any = None
    rows: Any = None

    @property
    def made_by_template(self) -> bool:
        """Whether the processor alone makes the batch."""
        return self.collator is None


def load(ref: str) -> Pipeline:
    """The pipeline that ``package.module:make`` returns. BadUsage names the field that is missing or wrong."""
    try:
        make = imported(ref)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"--pipeline: cannot import {ref}: {error}"
        raise BadUsage(message) from error
    if not callable(make):
        message = f"--pipeline: {ref}: expected a function without arguments, got a {type(make).__name__}"
        raise BadUsage(message)
    return checked(make())


def checked(made: Any) -> Pipeline:
    """What ``make()`` returned, a mapping or an object, with every part looked at. BadUsage names the part."""
    parts = {name: _part(made, names) for name, names in _NAMES.items()}
    if is_trainer(made):
        parts |= _served(made)
    if parts["processor"] is None:
        parts["processor"] = next((item for item in _kept(parts["collator"]) if hasattr(item, "tokenizer")), None)
    pipeline = Pipeline(**parts)
    _check_dataset(pipeline.dataset)
    if pipeline.loss is not None and not callable(pipeline.loss):
        raise _wrong("loss", f"expected a function of a model and its inputs, got a {type(pipeline.loss).__name__}")
    pipeline = _with_tokenizer(pipeline)
    _check_collator(pipeline)
    return replace(pipeline, model=_module(pipeline.model))


def is_trainer(made: Any) -> bool:
    """Whether an object has a loader and a step of its own, as the ``Trainer`` of transformers has."""
    return all(callable(getattr(made, name, None)) for name in ("get_train_dataloader", "training_step"))


def _served(trainer: Any) -> dict[str, Any]:
    """What the loader of a ``Trainer`` is made of: it may hold fewer columns, and a collator around the collator."""
    _check_dataset(getattr(trainer, "train_dataset", None))
    loader = trainer.get_train_dataloader()
    dataset, held = trainer.train_dataset, loader.dataset
    _check_dataset(held)
    if len(held) != len(dataset):
        dataset = held
    rows = None if held is dataset else held
    return {"dataset": dataset, "rows": rows, "collator": loader.collate_fn, "trainer": trainer}


def _part(made: Any, names: Sequence[str]) -> Any:
    for name in names:
        found = made.get(name) if isinstance(made, Mapping) else getattr(made, name, None)
        if found is not None:
            return found
    return None


def _check_dataset(dataset: Any) -> None:
    if dataset is None:
        raise _wrong("dataset", "expected a sequence of samples, make() returned none")
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, (str, Mapping)):
        told = f"expected a sequence (with a length and an index), got a {type(dataset).__name__}"
        more = ": hand in a list of some of its samples" if hasattr(dataset, "__iter__") else ""
        raise _wrong("dataset", told + more)
    if not len(dataset):
        raise _wrong("dataset", "expected at least one sample, it is empty")


def _with_tokenizer(pipeline: Pipeline) -> Pipeline:
    """With the tokenizer found, whether it was given itself, within the processor, or in the processor's place."""
    tokenizer = pipeline.tokenizer
    if tokenizer is None and pipeline.processor is not None:
        tokenizer = getattr(pipeline.processor, "tokenizer", pipeline.processor)
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise _wrong("tokenizer", f"expected an object with decode(), got a {type(tokenizer).__name__}")
    return replace(pipeline, tokenizer=tokenizer)


def _check_collator(pipeline: Pipeline) -> None:
    if pipeline.collator is not None:
        if not callable(pipeline.collator):
            raise _wrong(
                "collator", f"expected a function of a list of samples, got a {type(pipeline.collator).__name__}"
            )
        return
    maker = pipeline.processor if pipeline.processor is not None else pipeline.tokenizer
    if maker is None:
        raise _wrong("collator", "expected a collator, or a processor whose chat template makes the batch")
    if not getattr(maker, "chat_template", None):
        raise _wrong("collator", f"make() returned none, and the {type(maker).__name__} has no chat template")


def _module(model: Any) -> nn.Module | None:
    if model is None or isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise _wrong("model", f"expected a torch module or a function that makes one, got a {type(model).__name__}")
    made = model()
    if not isinstance(made, nn.Module):
        raise _wrong("model", f"the function returned a {type(made).__name__}, expected a torch module")
    return made


def _wrong(field: str, what: str) -> BadUsage:
    return BadUsage(f"--pipeline: {field}: {what}")


@contextlib.contextmanager
def seeded(number: int) -> Iterator[None]:
    """The global generators of Python, numpy and torch at a fixed state, put back afterwards.

    So that an augmentation draws the same for a sample whenever it is read, and a law compares like with like.
    """
    import numpy as np

    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the global one that samples draw from
    with torch.random.fork_rng(devices=[]):
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 - the state that old code draws from
        torch.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002 - the state that old code draws from


def generators() -> str:
    """The states of the three global generators: another after one was drawn from."""
    import numpy as np

    return repr((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))  # noqa: NPY002 - as above


@contextlib.contextmanager
def padded_on(pipeline: Pipeline, side: str) -> Iterator[bool]:
    """Padding on one side, as far as tokenizers say it; whether there is any that does. Put back afterwards."""
    owners = [item for item in _holders(pipeline) if isinstance(getattr(item, "padding_side", None), str)]
    before = [item.padding_side for item in owners]
    try:
        for item in owners if side else ():
            item.padding_side = side
        yield bool(owners)
    finally:
        for item, old in zip(owners, before, strict=True):
            item.padding_side = old


def _holders(pipeline: Pipeline) -> list[Any]:
    """The tokenizers of a pipeline: its own, its processor's, and those that its collator keeps."""
    found = [pipeline.tokenizer]
    for item in (pipeline.processor, *_kept(pipeline.collator)):
        found += [item, getattr(item, "tokenizer", None)]
    unique = {id(item): item for item in found if item is not None}
    return list(unique.values())


def _kept(collator: Any) -> list[Any]:
    """Of a collator, and of those that it is wrapped around."""
    names = ("tokenizer", "processor", "processing_class")
    found = [getattr(collator, name) for name in names if getattr(collator, name, None) is not None]
    inner = next((held for name in _WRAPPED if (held := getattr(collator, name, None)) is not None), None)
    return found if inner is None or inner is collator else [*found, *_kept(inner)]


def collated(pipeline: Pipeline, samples: list[Any]) -> dict[str, Any]:
    """The batch that the pipeline makes of samples. BadUsage where it is no mapping with ``input_ids``."""
    made = _by_template(pipeline, samples) if pipeline.made_by_template else pipeline.collator(samples)
    if not isinstance(made, Mapping):
        raise _wrong("collator", f"expected a mapping of tensors, it returned a {type(made).__name__}")
    batch = dict(made)
    if not isinstance(batch.get("input_ids"), torch.Tensor):
        held = ", ".join(map(str, batch)) or "nothing"
        raise _wrong("collator", f"expected a tensor input_ids in the batch, it has: {held}")
    return batch


def _by_template(pipeline: Pipeline, samples: list[Any]) -> Any:
    """As for inference: nothing is trained on."""
    from assay.audits.pipeline_samples import messages

    maker: Any = pipeline.processor if pipeline.processor is not None else pipeline.tokenizer
    talks = [copy.deepcopy(messages(sample)) for sample in samples]
    if any(talk is None for talk in talks):
        raise _wrong("dataset", "without a collator each sample needs `messages`, a list of {'role', 'content'}")
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    padding = {"processor_kwargs": {"padding": True}} if hasattr(maker, "tokenizer") else {"padding": True}
    return maker.apply_chat_template(talks, **options, **padding)


Implementation = Callable[[Any], Mapping[str, torch.Tensor]]


def implementation(target: Mapping[str, Any]) -> Implementation:
    """The pipeline at ``target["pipeline"]``, asked through calls of ``audits.pipeline_run``."""
    from assay.audits.pipeline_run import Runner

    return Runner(load(str(target["pipeline"])))
