"""What a user's ``make()`` of two loading paths may return, looked at once and brought to one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from assay.audits.usage import BadUsage

WAYS = ("training", "inference")
_PARTS = {
    "model": ("model",),
    "processor": ("processor", "tokenizer", "processing_class"),
    "logits": ("logits",),
}


@dataclass(frozen=True, kw_only=True)
class Path:
    """What one way of loading gives. ``logits`` is a function of the model and a batch, where the model needs one."""

    model: nn.Module
    processor: Any = None
    logits: Any = None

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or the processor where it is one itself."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def image_processor(self) -> Any:
        """None for a tokenizer."""
        return getattr(self.processor, "image_processor", None)


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Two ways of loading. ``declared`` names what may differ between them; ``batch`` is one for both models.

    ``again`` loads a way once more; None where the user handed over what was loaded already.
    """

    training: Path
    inference: Path
    declared: tuple[str, ...] = ()
    batch: Mapping[str, Any] | None = None
    again: Mapping[str, Callable[[], Path]] | None = None


def checked(made: Any) -> Paths:
    """What ``make()`` returned, a mapping or an object. BadUsage names the part that is missing or wrong."""
    ways = {name: _part(made, name) for name in WAYS}
    for name, way in ways.items():
        if way is None:
            raise _wrong(name, "expected a function that loads a model and a processor, make() returned none")
    declared = _part(made, "declared") or ()
    names = (declared,) if isinstance(declared, str) else tuple(map(str, declared))
    lazy = all(_loads(way) for way in ways.values())
    return Paths(
        training=_path("training", ways["training"]),
        inference=_path("inference", ways["inference"]),
        declared=names,
        batch=_part(made, "batch"),
        again={name: partial(_path, name, ways[name]) for name in WAYS} if lazy else None,
    )


def _loads(way: Any) -> bool:
    return callable(way) and not isinstance(way, nn.Module)


def _path(name: str, way: Any) -> Path:
    got = way() if _loads(way) else way
    if isinstance(got, nn.Module):
        got = (got, None)
    if isinstance(got, tuple | list) and len(got) == 2:
        got = {"model": got[0], "processor": got[1]}
    parts = {part: next((v for n in names if (v := _part(got, n)) is not None), None) for part, names in _PARTS.items()}
    model = parts["model"]
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise _wrong(name, f"expected a torch module and its processor, got a {kind} for the module")
    return Path(model=model, processor=parts["processor"], logits=parts["logits"])


def _part(made: Any, name: str) -> Any:
    return made.get(name) if isinstance(made, Mapping) else getattr(made, name, None)


def _wrong(field: str, what: str) -> BadUsage:
    return BadUsage(f"make(): {field}: {what}")
