"""What a model is and does, measured so that two of them can be compared: start, outputs, gradients."""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.observe import said, same_bits
from assay.audits.pipelines import seeded

SEED = 20_011
_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class Probe:
    """``start`` is what parameters and buffers are when built; ``forms`` what says how they belong together.

    ``answers`` are, for each batch that was run, outputs in eval and in training mode and gradients; ``read`` the
    parameters that got a gradient.
    """

    start: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    forms: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[Mapping[str, Tensor], ...] = ()
    read: frozenset[str] = frozenset()
    raised: str = ""


def probe(build: Callable[[], Any], batches: Sequence[Any], until: Probe | None = None) -> Probe:
    """Build under a fixed seed, look, and run. What running raises is part of the answer; building raises through.

    With ``until`` no further batch is run once one has other answers than it has there.
    """
    with seeded(SEED):
        made = build()
    if not isinstance(made, nn.Module):
        return Probe(answers=(_called(made, batches),))
    parameters = dict(made.named_parameters())
    buffers = {name: value for name, value in made.named_buffers() if isinstance(value, Tensor)}
    start = {name: value.detach().clone() for name, value in {**parameters, **buffers}.items()}
    forms = _forms(made)
    varied(made)
    try:
        answers, read = _ran(made, batches, until)
    except Exception as error:  # noqa: BLE001 - under another setting a batch may not fit any more
        return Probe(start=start, buffers=frozenset(buffers), forms=forms,
                     raised=f"{type(error).__name__}: {said(error)[:120]}")  # fmt: skip
    return Probe(start=start, buffers=frozenset(buffers), forms=forms, answers=answers, read=read)


def _forms(model: nn.Module) -> dict[str, str]:
    """Which parameters are one, and which are not to be trained."""
    groups: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(value), []).append(name)
    frozen = {name: "frozen" for name, value in model.named_parameters() if not value.requires_grad}
    return frozen | {names[0]: " = ".join(names) for names in groups.values() if len(names) > 1}


def varied(model: nn.Module) -> None:
    """Redraw each parameter from its own name, so that every part matters and none moves the others' draws."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(value.shape, generator=draw)
            if value.dim() < 2:
                drawn = value.numel() > 1 and bool((value != value.flatten()[0]).any())
                value.copy_((0.0 if drawn else value) + 0.1 * noise.to(value))  # a neutral 0 or 1 stays in sight
            else:
                fan = value.shape[-1] if value.dim() == 3 else math.prod(value.shape[1:])
                value.copy_(noise / math.sqrt(fan))


def _ran(
    model: nn.Module, batches: Sequence[Any], until: Probe | None
) -> tuple[tuple[Mapping[str, Tensor], ...], frozenset[str]]:
    found: list[Mapping[str, Tensor]] = []
    read: set[str] = set()
    for place, batch in enumerate(batches):
        answers, graded = _once(model, batch)
        found.append(answers)
        read |= graded
        if until is not None and place < len(until.answers) and _unlike(until.answers[place], answers):
            break
    return tuple(found), frozenset(read)


def _once(model: nn.Module, batch: Any) -> tuple[dict[str, Tensor], set[str]]:
    """Outputs in eval mode, outputs and gradients in training mode; and which parameters got one."""
    model.eval()
    with torch.no_grad(), seeded(SEED):
        found = {f"eval{name}": value for name, value in _tensors(_call(model, batch, model))}
    model.train()
    model.zero_grad(set_to_none=True)
    with torch.enable_grad(), seeded(SEED):
        out = _call(model, batch, model)
        total = _total(value for _, value in _tensors(out, keep=True))
        if total is not None:
            total.backward()  # type: ignore[no-untyped-call]
    found |= {f"training{name}": value for name, value in _tensors(out)}
    grads = {name: value.grad.detach().clone() for name, value in model.named_parameters() if value.grad is not None}
    return found | {f"gradient {name}": grad for name, grad in grads.items()}, set(grads)


def _called(function: Any, batches: Sequence[Any]) -> dict[str, Tensor]:
    if not callable(function):
        message = f"build() returned a {type(function).__name__}: expected a module or a function"
        raise TypeError(message)
    found: dict[str, Tensor] = {}
    for place, batch in enumerate(batches):
        with seeded(SEED):
            out = _call(function, batch, None)
        found |= {f"output {place}{name}": value for name, value in _tensors(out)}
    return found


def _call(function: Any, batch: Any, model: Any) -> Any:
    if callable(batch):
        batch = batch(model) if inspect.signature(batch).parameters else batch()
    if isinstance(batch, Mapping):
        return function(**batch)
    return function(*batch) if isinstance(batch, tuple | list) else function(batch)


def _tensors(out: Any, path: str = "", depth: int = _DEPTH, *, keep: bool = False) -> Iterator[tuple[str, Tensor]]:
    """All tensors of an output by their place in it; whole numbers and fractions count as tensors."""
    if isinstance(out, Tensor):
        yield path, out if keep else out.detach().clone()
    elif isinstance(out, bool | int | float):
        yield path, torch.tensor(float(out))
    elif depth and isinstance(out, Mapping):
        for name, item in out.items():
            yield from _tensors(item, f"{path}.{name}", depth - 1, keep=keep)
    elif depth and isinstance(out, tuple | list):
        for place, item in enumerate(out):
            yield from _tensors(item, f"{path}[{place}]", depth - 1, keep=keep)


def _total(values: Iterator[Tensor]) -> Tensor | None:
    """One number that all outputs enter, no two elements alike."""
    parts = [
        (value.double() * torch.cos(torch.arange(value.numel(), dtype=torch.float64)).reshape(value.shape)).sum()
        for value in values
        if value.requires_grad and value.is_floating_point()
    ]
    return torch.stack(parts).sum() if parts else None


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a knob changes: ``does`` in outputs, gradients or buffers; ``held`` are parameters that are others.

    ``unread``: some are, and no output reads any of them.
    """

    does: tuple[str, ...]
    held: tuple[str, ...]
    unread: bool

    @property
    def dead(self) -> bool:
        """Whether it changes nothing."""
        return not self.does and not self.held


def compared(one: Probe, two: Probe) -> Change:
    """What is different between two probes, in the batches that both were run on."""
    changed = _unlike(one.start, two.start)
    buffers = one.buffers | two.buffers
    held = [name for name in changed if name not in buffers]
    gone = {f"gradient {name}" for name in held if name not in one.start or name not in two.start}
    answers = [_unlike(here, there) for here, there in zip(one.answers, two.answers, strict=False)]
    does = [f"batch {place}: {name}" for place, names in enumerate(answers) for name in names if name not in gone]
    if one.raised != two.raised:
        does.insert(0, f"raises {two.raised or 'no more'}")
    does += ["ties"] if one.forms != two.forms else []
    does += [name for name in changed if name in buffers]
    sizes = [{name: value.shape for name, value in start.items()} for start in (one.start, two.start)]
    made = [name for name in held if sizes[0].get(name) != sizes[1].get(name)]
    # what is made draws from the generator that all share, so that first values of the others change with it
    unread = bool(held) and not does and not (set(made or held) & (one.read | two.read))
    return Change(does=tuple(does), held=tuple(held), unread=unread)


def _unlike(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> list[str]:
    """Names of what only one has or is not the same in both."""
    names = dict.fromkeys([*one, *two])
    return [name for name in names if name not in one or name not in two or not same_bits(one[name], two[name])]
