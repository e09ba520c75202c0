"""Trains a family's tiny model a few steps without and with a patch, each in a process of its own.

The process that is asked builds no model and applies nothing: it forks one child for the plain model and one for the
patched model, so that neither run can touch the other and a patch is applied exactly once to fresh code.
"""

from __future__ import annotations

import io
import json
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.families.discovery import loaded
from assay.audits.patch_reasons import why
from assay.audits.patch_users import Applied, apply_users, needs_model
from assay.audits.terms import Family, Outputs

IGNORED = -100
CONTENT = {"text": ("t9", "t4"), "image": ("t3 i4x6 t4", "t2 i4x4 t1 i6x4 t3")}
"""Samples of several lengths; unequal grids, so that height and width cannot be mistaken for each other."""
FURTHER = {"video": "t2 v3x4x6 t3", "audio": "t2 a0.5 t3"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What to train on. ``content`` is ``text``, ``image``, or ``all`` that the family takes (a sample of each kind).

    ``dtype`` is that of the judged runs; the truth is the plain model in float64. ``rate`` is the learning rate.
    """

    content: str = "image"
    padding: str = "right"
    seed: int = 0
    train: bool = True
    steps: int = 3
    rate: float = 0.01
    dtype: str = "float32"
    device: str = "cpu"


class PatchError(RuntimeError):
    """What the patch, or the model under it, raised; or how its process ended."""


def implementation(target: Mapping[str, Any]) -> Comparison:
    """The comparison of ``target["family"]`` with itself under ``target["patch"]``."""
    return Comparison(loaded(target["family"]), str(target["patch"]))


class Comparison:
    """Plain against patched, for the operation ``patch``.

    Gives ``truth.*`` (plain, float64), ``plain.*`` and ``patched.*`` with the names ``loss``, ``logits`` (of real
    tokens), ``grad:PARAMETER`` and ``step:PARAMETER`` (its value after the last step), and ``record``: JSON as bytes
    with the changes of the patch and the calls of each, or the reason why the plain model did not run.
    """

    def __init__(self, family: Family, patch: str) -> None:
        """Keep what to compare. LookupError when the family cannot be built, or the patch cannot be imported."""
        family.build(0)
        taken = _Child(lambda: {"model": torch.tensor(needs_model(patch))}).answer()
        if isinstance(taken, str):
            message = f"patch {patch}: {taken}"
            raise LookupError(message)
        self._family, self._patch = family, patch
        self.sites: dict[str, int] = {}

    def __call__(self, training: Training) -> Outputs:
        """Run both. :class:`PatchError` when the patch or the patched model raises."""
        children = (
            _Child(lambda: _plain(self._family, training, "float64")),
            _Child(lambda: _plain(self._family, training, training.dtype)),
            _Child(lambda: _patched(self._family, self._patch, training)),
        )
        wide, narrow, patched = (child.answer() for child in children)
        for out in (wide, narrow):
            if isinstance(out, str):
                return {"record": as_bytes({"plain": out, "changes": []})}
        if isinstance(patched, str):
            raise PatchError(patched)
        assert not isinstance(wide, str)
        assert not isinstance(narrow, str)
        changes = from_bytes(patched["record"])["changes"]
        self.sites = {item["site"]: item["forward"] for item in changes if item["forward"] is not None}
        named = {"truth": wide, "plain": narrow, "patched": patched}
        values = {f"{who}.{name}": value for who, out in named.items() for name, value in out.items()}
        values["record"] = values.pop("patched.record")
        return values


def as_bytes(record: Any) -> Tensor:
    """A JSON value as a tensor: the only thing that travels back from a worker."""
    return torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)


def from_bytes(tensor: Tensor) -> Any:
    """The inverse of :func:`as_bytes`."""
    return json.loads(bytes(tensor.tolist()))


def _plain(family: Family, training: Training, dtype: str) -> Outputs:
    return _trained(_built(family, training, dtype), family, training)


def _built(family: Family, training: Training, dtype: str) -> nn.Module:
    model: nn.Module = family.build(0).to(device=training.device, dtype=getattr(torch, dtype))
    return model.train(training.train)


def _patched(family: Family, patch: str, training: Training) -> Outputs:
    applied = apply_users(patch, family, _built(family, training, training.dtype))
    with applied.counted():
        out = _trained(applied.model, family, training)
    return {**out, "record": as_bytes({"changes": _record(applied, family)})}


def _record(applied: Applied, family: Family) -> list[dict[str, Any]]:
    calls = applied.meter.calls
    record = []
    for change in applied.changes:
        counted = calls.get(change.site)
        item: dict[str, Any] = {
            "site": change.site,
            "kind": change.kind,
            "before": change.before,
            "after": change.after,
        }
        item |= {"forward": counted and counted.forward, "backward": counted and counted.backward}
        silent = counted is not None and not counted.forward
        record.append({**item, "why": why(change, applied.model, family) if silent else ""})
    return record


def batches(family: Family, content: str) -> tuple[tuple[str, ...], ...]:
    """The samples of a case, for one family: one batch, or several where it cannot take all kinds in one."""
    if content in CONTENT:
        return (CONTENT[content],)
    further = tuple(FURTHER[kind] for kind in family.modalities if kind in FURTHER)
    if family.exclusive and further:
        return (CONTENT["image"], further)
    return ((*CONTENT["image"], *further),)


def _trained(model: nn.Module, family: Family, training: Training) -> dict[str, Tensor]:
    """Loss, logits and gradients of the first step, and the parameters after the last, of plain gradient descent."""
    torch.manual_seed(training.seed)
    model.train(training.train)
    made = [_batch(model, family, training, samples) for samples in batches(family, training.content)]
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    out: dict[str, Tensor] = {}
    with torch.enable_grad():
        for step in range(training.steps):
            batch = made[step % len(made)]
            model.zero_grad()
            answer = model(**batch, use_cache=False)
            answer.loss.backward()
            if step == 0:
                out = _first(answer, batch, named)
            _descend(named.values(), training.rate)
    return {**out, **{f"step:{name}": parameter.detach().clone() for name, parameter in named.items()}}


def _descend(parameters: Iterable[nn.Parameter], rate: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)


def _batch(model: nn.Module, family: Family, training: Training, samples: tuple[str, ...]) -> dict[str, Any]:
    """The keyword arguments of forward, with labels: every real token is trained on."""
    made = family.batch(model, samples, padding=training.padding, seed=training.seed)
    batch = {name: value for name, value in made.items() if value is not None}
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}


def _first(answer: Any, batch: Mapping[str, Any], named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    out = {"loss": answer.loss.detach().reshape(1)}
    if answer.logits is not None:
        real = batch["attention_mask"].bool()
        out["logits"] = answer.logits.detach()[real].clone()
    grads = {f"grad:{name}": p.grad.clone() for name, p in named.items() if p.grad is not None}
    return {**out, **grads}


class _Child:
    """A forked process that does one piece of work."""

    def __init__(self, work: Callable[[], Outputs]) -> None:
        """Start it."""
        self._reading, writing = os.pipe()
        with warnings.catch_warnings():  # Python 3.12 warns of threads, which a child on one thread does not need
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process = os.fork()
        if self._process == 0:
            _live(work, writing)
        os.close(writing)

    def answer(self) -> Outputs | str:
        """The tensors that the work returned, or what it raised, in words."""
        with os.fdopen(self._reading, "rb") as pipe:
            answer = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        if not answer:
            return f"its process ended with status {status}" if status >= 0 else f"its process got signal {-status}"
        out: Outputs | str = torch.load(io.BytesIO(answer), weights_only=True)
        return out


def _live(work: Callable[[], Outputs], writing: int) -> None:
    """A child's whole life; never returns."""
    status = 1
    try:
        torch.set_num_threads(1)
        answer = _told(work)
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(buffer.getvalue())
        status = 0
    finally:
        os._exit(status)


def _told(work: Callable[[], Outputs]) -> Outputs | str:
    try:
        return {name: value.detach().cpu().contiguous() for name, value in work().items()}
    except SystemExit as error:
        return f"exited with status {error.code}"
    except BaseException as error:  # noqa: BLE001 - foreign code: whatever it raises is the result
        last = traceback.format_exc().strip().splitlines()[-3:-1]
        return f"{type(error).__name__}: {error} {' '.join(line.strip() for line in last)}"[:1500]
