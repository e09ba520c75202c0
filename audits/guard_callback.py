"""The guard in a Trainer of transformers, or of what derives from it: a callback, and its step where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from assay.audits import guard_model
from assay.audits.guard import Guard, Settings, settings


class GuardCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """``Trainer(..., callbacks=[assay.GuardCallback(every=100)])``: :func:`assay.guard` from ``train()`` on.

    Takes the options of :func:`assay.guard`. Without the Trainer itself labels that it keeps from the model, and the
    batches of a compiled model, are not seen: ``assay.guard(model, trainer)`` sees them. ``guard`` is the
    :class:`~assay.audits.guard.Guard` while and after it trains, None before.
    """

    def __init__(self, **options: Any) -> None:
        """Nothing is watched yet. TypeError and ValueError by the name of the option."""
        self.guard: Guard | None = None
        self._given: Settings = settings(**options)
        self._bound = False

    @classmethod
    def of(cls, guard: Guard) -> GuardCallback:
        """That of a guard which is there already."""
        made = cls()
        made.guard, made._bound = guard, True
        return made

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - transformers' signature
        """Make the guard, and tell it what the arguments say of the training."""
        if not self._bound:
            if self.guard is not None:
                self.guard.remove()
            self.guard = Guard(kwargs["model"], self._given, kwargs.get("processing_class", kwargs.get("tokenizer")))
        if self.guard is not None:
            self.guard.elsewhere = _elsewhere(args)
            self.guard.half = bool(getattr(args, "fp16", False))
            self.guard.split = getattr(args, "n_gpu", 1) > 1
            self.guard.sharded = _sharded(args)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - as above
        """The first micro-batch of a step comes."""
        if self.guard is not None:
            self.guard.restart()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - as above
        """The gradients are there."""
        if self.guard is not None:
            self.guard.grade([kwargs["optimizer"]] if kwargs.get("optimizer") is not None else [])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - as above
        """The step is made."""
        if self.guard is not None:
            self.guard.stepped()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - as above
        """Take the hooks out; the report stays."""
        if self.guard is not None and not self._bound:
            self.guard.remove()


def _elsewhere(args: Any) -> str:
    """Where gradients and steps are, if not at the parameters."""
    if getattr(args, "deepspeed", None) or getattr(args, "deepspeed_plugin", None):
        return "DeepSpeed holds the gradients and makes the steps"
    return ""


def _sharded(args: Any) -> bool:
    """Whether each sample is spread over several processes: context or sequence parallelism."""
    config = getattr(args, "parallelism_config", None)
    return any((getattr(config, name, 1) or 1) > 1 for name in ("cp_size", "sp_size"))


def attach(guard: Guard, trainer: Any) -> None:
    """Watch what a Trainer does. ValueError where it trains another model."""
    if guard_model.unwrapped(trainer.model) is not guard_model.unwrapped(guard.model):
        raise ValueError("model: expected the model of the trainer (trainer.model), got another one")
    if guard.processor is None:
        guard.processor = getattr(trainer, "processing_class", None)
    callback = GuardCallback.of(guard)
    trainer.add_callback(callback)
    guard.on_removal(lambda: trainer.remove_callback(callback))
    guard.on_removal(_wrapped(guard, trainer))


def _wrapped(guard: Guard, trainer: Any) -> Callable[[], None]:
    """Hand what the Trainer's step is given to the guard, in steps that are checked; the function that undoes it."""
    held = trainer.__dict__.get("training_step")
    step = trainer.training_step

    def training_step(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        watch = guard.watch
        if watch is None:
            return step(model, inputs, *rest, **more)
        watch.hand(inputs, more.get("num_items_in_batch", rest[0] if rest else None))
        before = watch.micros
        loss = step(model, inputs, *rest, **more)
        watch.finished(before, loss if isinstance(loss, torch.Tensor) else None)
        return loss

    trainer.training_step = training_step

    def undo() -> None:
        if trainer.__dict__.get("training_step") is not training_step:
            return  # somebody has wrapped it again: without a watch it hands on
        if held is None:
            del trainer.training_step
        else:
            trainer.training_step = held

    return undo
