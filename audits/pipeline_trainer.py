"""How a pipeline's loss is made: by its model, by a function of its own, or by the step of a ``Trainer``."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.pipeline_model import Asked, Step, plain_step
from assay.audits.pipelines import Pipeline


def step_of(pipeline: Pipeline) -> Step:
    """What makes the loss of a batch."""
    if pipeline.trainer is not None:
        return _of_trainer(pipeline.trainer)
    return plain_step if pipeline.loss is None else _of_function(pipeline.loss)


def takes_items(loss: Callable[..., Any]) -> bool:
    """Whether a function takes ``num_items_in_batch``."""
    return "num_items_in_batch" in inspect.signature(loss).parameters


def _of_function(loss: Callable[..., Any]) -> Step:
    def step(model: nn.Module, given: dict[str, Any], asked: Asked) -> Tensor | None:
        more = {"num_items_in_batch": torch.tensor(asked.items)} if asked.items and takes_items(loss) else {}
        return _alone(loss(model, given, **more))

    return step


def _alone(told: Any) -> Tensor | None:
    """The loss, of a function that may return the outputs too."""
    found = told[0] if isinstance(told, tuple) else told
    return found if isinstance(found, Tensor) else None


def _of_trainer(trainer: Any) -> Step:
    """``training_step`` where gradients are asked for, which makes them itself; else ``compute_loss``."""

    def step(model: nn.Module, given: dict[str, Any], asked: Asked) -> Tensor | None:
        items = torch.tensor(asked.items) if asked.items else None
        if "labels" not in given and "shift_labels" not in given:
            return plain_step(model, given, asked)
        with _one_of(trainer, asked.steps):
            if asked.gradients:
                return _alone(trainer.training_step(model, given, num_items_in_batch=items))
            given = getattr(trainer, "_prepare_inputs", dict)(given)
            return _alone(trainer.compute_loss(model, given, num_items_in_batch=items))

    return step


@contextlib.contextmanager
def _one_of(trainer: Any, steps: int) -> Iterator[None]:
    """With a number of micro-batches in the step, as the training loop tells it."""
    before = getattr(trainer, "current_gradient_accumulation_steps", None)
    trainer.current_gradient_accumulation_steps = steps
    try:
        yield
    finally:
        trainer.current_gradient_accumulation_steps = before


def counted(trainer: Any, batch: Mapping[str, Any]) -> int | None:
    """What a ``Trainer`` counts in a batch for ``num_items_in_batch``; None where it hands no count on."""
    found = trainer.get_batch_samples(iter([dict(batch)]), 1, torch.device("cpu"))[1]
    return None if found is None else int(found)


def smoothing(trainer: Any) -> float:
    """The ``label_smoothing_factor`` of a ``Trainer``."""
    return float(getattr(getattr(trainer, "args", None), "label_smoothing_factor", 0.0) or 0.0)
