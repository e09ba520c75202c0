"""Runs an implementation once and notes all that it did: outputs, gradients, how it ended, what it left changed."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits import settings
from assay.audits.terms import MAX_TEXT, Implementation, Outcome, Outputs, Raised, Tape

MAX_BYTES = 1 << 30
"""More than this is no answer to a case of the sizes that an audit builds."""


class BadReturn(TypeError):
    """The implementation returned something that is not a mapping of names to ordinary tensors."""


MODES: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}
"""What each mode of a :class:`Tape` is entered with."""


def observe(
    implementation: Implementation, inputs: Any, upstream: Outputs | None = None, differentiable: tuple[str, ...] = (),
    tape: Tape | None = None,
) -> Outcome:  # fmt: skip
    """Call ``implementation(inputs)``; with ``upstream``, also differentiate the outputs it names, as ``tape`` says.

    ``inputs`` is a frozen record; those of its fields named in ``differentiable`` get gradients. Nothing that the
    implementation raises escapes, except KeyboardInterrupt. Inputs and settings that it changed are put back.
    """
    memory = _Memory.of(_given(inputs, upstream, tape))
    state = settings.read()
    changed: set[str] = set()

    def watched(given: Any) -> Outputs:
        """The settings are looked at before a context manager of ours puts the grad mode back."""
        before = settings.read()
        try:
            return implementation(given)
        finally:
            changed.update(settings.restore(before))

    values: Outputs = {}
    grads: Outputs = {}
    raised = None
    try:
        values, grads = evaluate(watched, inputs, upstream, differentiable, tape)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - foreign code: whatever it raises is the result
        raised = _raised(error)
    changed.update(settings.restore(state))
    # An answer may be an input that was written to, which is about to be put back; or little of much memory.
    values, grads = ({name: found.clone() for name, found in part.items()} for part in (values, grads))
    notes = [f"mutates:{name}" for name in memory.changed()] + [f"state:{key}" for key in sorted(changed)]
    return Outcome(values=values, grads=grads, raised=raised, notes=tuple(notes))


def _given(inputs: Any, upstream: Outputs | None, tape: Tape | None) -> Outputs:
    """All tensors that a call is given, by the names that a finding gives them."""
    between = tensors(tape.between) if tape and tape.between is not None else ()
    return {
        **dict(tensors(inputs)),
        **{f"grad:{name}": grad for name, grad in (upstream or {}).items()},
        **{f"between:{name}": tensor for name, tensor in between},
    }


def _raised(error: BaseException) -> Raised:
    if isinstance(error, SystemExit):
        return Raised("exit", f"exited with status {said(error.code)}")
    message = said(error)
    memory = isinstance(error, MemoryError) or "can't allocate memory" in message
    trace = legible("".join(traceback.format_exception(error)))[-MAX_TEXT:]
    return Raised("memory" if memory else type(error).__name__, message, trace)


def said(thing: object) -> str:
    """A foreign object as text of bounded length that any file can hold, whatever its ``__str__`` does."""
    try:
        return legible(str(thing)[:MAX_TEXT])
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        return f"<{type(thing).__name__} that cannot be shown>"


def legible(text: str) -> str:
    """Text without lone surrogates, which no encoding can write."""
    return text.encode("utf-8", "backslashreplace").decode()


def evaluate(
    implementation: Implementation, inputs: Any, upstream: Outputs | None, differentiable: tuple[str, ...],
    tape: Tape | None = None,
) -> tuple[Outputs, Outputs]:  # fmt: skip
    """Outputs and gradients of one call, unguarded: what it raises passes through."""
    if upstream is None:
        with torch.no_grad():
            return _plain(_tensors_only(implementation(inputs))), {}
    tape = tape or Tape()
    names = differentiable if tape.requiring is None else tape.requiring
    leaves = _leaves(inputs, names)
    with MODES[tape.mode]():
        values = _tensors_only(implementation(dataclasses.replace(inputs, **leaves)))
        if tape.between is not None:
            # Named, so that its graph lives until the backward pass is over, as that of another micro-batch does.
            _other = implementation(dataclasses.replace(tape.between, **_leaves(tape.between, names)))
        grads = _differentiated(values, leaves, upstream, tape.walks)
    return _plain(values), _plain(grads, "the gradient of ")


def _leaves(inputs: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    given = {name: getattr(inputs, name) for name in names}
    return {name: value.detach().requires_grad_() for name, value in given.items() if value is not None}


def _differentiated(values: Outputs, leaves: dict[str, Tensor], upstream: Outputs, walks: int) -> dict[str, Tensor]:
    """Gradients of the leaves, walking back ``walks`` times; the last ones."""
    heads = [(values[name], grad) for name, grad in upstream.items() if name in values]
    # What has another shape has no such gradient: its absence is found, beside the shape.
    live = [(value, grad.to(value.dtype)) for value, grad in heads if _recorded(value) and _fits(value, grad)]
    found: tuple[Tensor | None, ...] = (None,) * len(leaves)
    for walk in range(walks if live else 0):
        found = torch.autograd.grad(
            [value for value, _ in live],
            list(leaves.values()),
            [grad for _, grad in live],
            retain_graph=walk + 1 < walks,
            allow_unused=True,
        )
    return {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}


def _recorded(value: Tensor) -> bool:
    """Whether autograd has a record of it. A view that was taken where nothing is recorded has none, and still asks."""
    return value.requires_grad and (value.grad_fn is not None or not value._is_view())


def _fits(value: Tensor, grad: Tensor) -> bool:
    return value.shape == grad.shape and value.device == grad.device


def _tensors_only(values: Any) -> Outputs:
    if not isinstance(values, Mapping):
        message = f"expected a mapping of named tensors, got {type(values).__name__}"
        raise BadReturn(message)
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            message = f"{name} is a {type(value).__name__}, expected a tensor"
            raise BadReturn(message)
    return dict(values)


def _plain(values: Outputs, what: str = "") -> Outputs:
    """Detached tensors of torch's own class, in memory of reasonable size. :class:`BadReturn` for what has none."""
    plain = {name: _plain_tensor(f"{what}{name}", value) for name, value in values.items()}
    size = sum(value.numel() * value.element_size() for value in plain.values())
    if size > MAX_BYTES:
        message = f"{what}{', '.join(values)}: {size:.3g} bytes, expected no more than {MAX_BYTES:.3g}"
        raise BadReturn(message)
    return plain


def _plain_tensor(name: str, value: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        if value.layout != torch.strided or value.device.type == "meta":
            message = f"{name} is a {value.layout} tensor on {value.device}, expected strided memory"
            raise BadReturn(message)
        try:
            plain = value.detach().as_subclass(Tensor)
            plain.untyped_storage().data_ptr()
        except Exception as error:
            message = f"{name} is a {type(value).__name__}, whose memory cannot be read: {said(error)}"
            raise BadReturn(message) from error
    return plain


def tensors(record: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a record's fields, by name, those in its tuples, mappings and records included."""
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
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors_in(f"{name}.{field.name}", getattr(value, field.name))


@dataclass(frozen=True)
class _View:
    """A tensor and where it looked."""

    tensor: Tensor
    storage: torch.UntypedStorage
    place: tuple[int | torch.SymInt, torch.Size, tuple[int, ...]]

    @classmethod
    def of(cls, x: Tensor) -> _View:
        return cls(x, x.untyped_storage(), (x.storage_offset(), x.shape, x.stride()))

    def moved(self) -> bool:
        """Whether the tensor object itself was given another shape or other memory."""
        now = _View.of(self.tensor)
        return now.place != self.place or now.storage.data_ptr() != self.storage.data_ptr()

    def of_memory(self, octets: Tensor) -> Tensor:
        """What it saw when its storage held these bytes."""
        offset, shape, stride = self.place
        flat = torch.empty(0, dtype=self.tensor.dtype, device=self.tensor.device).set_(octets.untyped_storage())
        return flat.as_strided(shape, stride, offset)


@dataclass(frozen=True)
class _Memory:
    """Tensors and the whole storages behind them, as they were: a neighbour in a packed buffer counts too."""

    views: Mapping[str, _View]
    storages: Mapping[int, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, named: Mapping[str, Tensor]) -> _Memory:
        live = {x.untyped_storage().data_ptr(): _octets(x) for x in named.values()}
        views = {name: _View.of(x) for name, x in named.items()}
        return cls(views, {address: (octets, octets.clone()) for address, octets in live.items()})

    def changed(self) -> list[str]:
        """Names of what is not as it was, which is put back."""
        spoilt = {address: old for address, (now, old) in self.storages.items() if not torch.equal(now, old)}
        moved = {name for name, view in self.views.items() if view.moved()}
        if not spoilt and not moved:
            return []
        names = sorted(moved | {name for name, view in self.views.items() if self._differs(view, spoilt)})
        with torch.no_grad():
            for name in moved:
                self.views[name].tensor.set_(self.views[name].storage, *self.views[name].place)
            for now, old in self.storages.values():
                now.copy_(old)
        return names or ["memory beside the inputs"]

    def _differs(self, view: _View, spoilt: Mapping[int, Tensor]) -> bool:
        address = view.storage.data_ptr()
        if address not in spoilt:
            return False
        now = self.storages[address][0]
        return not same_bits(view.of_memory(now), view.of_memory(spoilt[address]))


def _octets(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal in shape, dtype and every element, NaN equal to NaN. Tensors without memory have no elements."""
    if left.shape != right.shape or left.dtype != right.dtype or left.is_meta != right.is_meta:
        return False
    if left.is_meta:
        return True
    if not left.dtype.is_floating_point:
        return torch.equal(left, right)
    if not torch.equal(left.isnan(), right.isnan()):
        return False
    return torch.equal(left.nan_to_num(nan=0.0), right.nan_to_num(nan=0.0))
