"""Runs an implementation once and notes all that it did: outputs, gradients, how it ended, what it left changed."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.audits.terms import Implementation, Outcome, Outputs, Raised

MAX_TEXT = 2000


class BadReturn(TypeError):
    """The implementation returned something that is not a mapping of names to tensors."""


def observe(
    implementation: Implementation, inputs: Any, upstream: Outputs | None = None, differentiable: tuple[str, ...] = ()
) -> Outcome:
    """Call ``implementation(inputs)``; with ``upstream``, also differentiate the outputs it names.

    ``inputs`` is a frozen record; those of its fields named in ``differentiable`` get gradients. Nothing that the
    implementation raises escapes, except KeyboardInterrupt.
    """
    before = {name: tensor.clone() for name, tensor in tensors(inputs)}
    state = process_state()
    values: Outputs = {}
    grads: Outputs = {}
    raised = None
    try:
        values, grads = evaluate(implementation, inputs, upstream, differentiable)
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raised = Raised("exit", f"exited with status {error.code}")
    except MemoryError as error:
        raised = Raised("memory", str(error)[:MAX_TEXT])
    except BaseException as error:  # noqa: BLE001 - foreign code: whatever it raises is the result
        kind = "memory" if "can't allocate memory" in str(error) else type(error).__name__
        raised = Raised(kind, str(error)[:MAX_TEXT], traceback.format_exc()[-MAX_TEXT:])
    notes = tuple(f"mutates:{name}" for name, tensor in tensors(inputs) if not same_bits(tensor, before[name]))
    changed = sorted(key for key, value in process_state().items() if state[key] != value)
    if changed:
        restore(state)
    notes += tuple(f"state:{key}" for key in changed)
    return Outcome(values=values, grads=grads, raised=raised, notes=notes)


def evaluate(
    implementation: Implementation, inputs: Any, upstream: Outputs | None, differentiable: tuple[str, ...]
) -> tuple[Outputs, Outputs]:
    """Outputs and gradients of one call, unguarded: what it raises passes through."""
    if upstream is None:
        with torch.no_grad():
            return _tensors_only(implementation(inputs)), {}
    leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in differentiable}
    with torch.enable_grad():
        values = _tensors_only(implementation(dataclasses.replace(inputs, **leaves)))
        heads = [(values[name], upstream[name]) for name in upstream if name in values]
        live = [(value, grad) for value, grad in heads if value.requires_grad]
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if live:
            found = torch.autograd.grad(
                [value for value, _ in live],
                list(leaves.values()),
                [grad for _, grad in live],
                allow_unused=True,
            )
    grads = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
    return {name: value.detach() for name, value in values.items()}, grads


def _tensors_only(values: Any) -> Outputs:
    if not isinstance(values, Mapping):
        message = f"expected a mapping of named tensors, got {type(values).__name__}"
        raise BadReturn(message)
    for name, value in values.items():
        if not isinstance(value, Tensor):
            message = f"{name} is a {type(value).__name__}, expected a tensor"
            raise BadReturn(message)
    return dict(values)


def tensors(record: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a record's fields, by name, those in its tuples and mappings included."""
    for field in dataclasses.fields(record):
        yield from _tensors_in(field.name, getattr(record, field.name))


def _tensors_in(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors_in(f"{name}.{key}", item)
    elif isinstance(value, (tuple, list)):
        for position, item in enumerate(value):
            yield from _tensors_in(f"{name}.{position}", item)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal in shape, dtype and every element, NaN equal to NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.dtype.is_floating_point:
        return torch.equal(left, right)
    return bool(torch.equal(left.nan_to_num(nan=0.0), right.nan_to_num(nan=0.0)) and torch.equal(left.isnan(), right.isnan()))


def process_state() -> dict[str, Any]:
    """The global settings that an implementation must leave as it found them."""
    return {
        "default_dtype": torch.get_default_dtype(),
        "default_device": str(torch.get_default_device()),
        "grad_enabled": torch.is_grad_enabled(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "rng_seed": torch.initial_seed(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "working_directory": os.getcwd(),
        "environment": dict(os.environ),
    }


def restore(state: Mapping[str, Any]) -> None:
    """Put back what a call changed, so that the next one is judged on its own."""
    torch.set_default_dtype(state["default_dtype"])
    if str(torch.get_default_device()) != state["default_device"]:
        torch.set_default_device(state["default_device"])
    torch.set_grad_enabled(state["grad_enabled"])
    torch.use_deterministic_algorithms(state["deterministic_algorithms"])
    torch.set_float32_matmul_precision(state["float32_matmul_precision"])
    if torch.get_num_threads() != state["threads"]:
        torch.set_num_threads(state["threads"])
    if torch.initial_seed() != state["rng_seed"]:
        torch.manual_seed(state["rng_seed"])
    if os.getcwd() != state["working_directory"]:
        os.chdir(state["working_directory"])
    if state["environment"] != os.environ:
        os.environ.clear()
        os.environ.update(state["environment"])
