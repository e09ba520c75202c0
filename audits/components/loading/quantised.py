"""Answers what a quantised model is made of: for each linear layer its memory, its levels and its error."""

from __future__ import annotations

import fnmatch
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.components.loading import scores, state, storage
from assay.audits.components.loading.made import Path
from assay.audits.making import called
from assay.audits.patch_runs import as_bytes
from assay.audits.terms import Outputs
from assay.audits.usage import BadUsage

GROUP = 32
"""Columns that share a scale where nothing is said: the fewest in common use."""


@dataclass(frozen=True, kw_only=True)
class QuantisedCall:
    """What to ask of a quantised model; ``seed`` is that of the batch, ``scores`` asks for what the models give."""

    seed: int = 0
    scores: bool = True


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for. ``bits`` by pattern of a name; ``exclude`` are layers that were to stay as they are."""

    model: nn.Module
    original: nn.Module
    bits: Mapping[str, int]
    group: int | None = None
    exclude: tuple[str, ...] = ()
    floating: bool = False
    warned: tuple[str, ...] = ()

    def asked(self, name: str) -> int:
        """The bits that were asked for of a layer; 0 where it was to stay."""
        if any(_fits(name, pattern) for pattern in self.exclude):
            return 0
        return next((bits for pattern, bits in self.bits.items() if _fits(name, pattern)), 0)


def _fits(name: str, pattern: str) -> bool:
    return pattern == "*" or pattern in name.split(".") or f".{pattern}." in f".{name}." or fnmatch.fnmatchcase(
        name, pattern
    )  # fmt: skip


def checked(made: Any) -> Request:
    """What ``make()`` returned. BadUsage names the part that is missing or wrong."""
    parts = {name: made.get(name) if isinstance(made, Mapping) else getattr(made, name, None)
             for name in ("model", "original", "bits", "group", "exclude", "float")}  # fmt: skip
    modules = {name: _module(name, parts[name]) for name in ("original", "model")}
    bits = parts["bits"]
    bits = {"*": bits} if isinstance(bits, int) else bits
    if not (isinstance(bits, Mapping) and bits and all(isinstance(item, int) and item > 0 for item in bits.values())):
        raise _wrong("bits", f"expected a whole number, or one for each pattern of a layer's name, got {bits!r}")
    exclude = parts["exclude"] or ()
    return Request(
        model=modules["model"], original=modules["original"], bits=dict(bits), group=parts["group"],
        exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude), floating=bool(parts["float"]),
    )  # fmt: skip


def _module(name: str, value: Any) -> nn.Module:
    found = value() if callable(value) and not isinstance(value, nn.Module) else value
    if not isinstance(found, nn.Module):
        raise _wrong(name, f"expected a torch module or a function that makes one, got a {type(found).__name__}")
    return found


def _wrong(field: str, what: str) -> BadUsage:
    return BadUsage(f"make(): {field}: {what}")


class Measured:
    """A quantised model beside its original."""

    def __init__(self, request: Request) -> None:
        """Measure each linear layer of the original at its place in the quantised model, before anything is run."""
        self._request = request
        layers = {name: layer for name, layer in request.original.named_modules() if isinstance(layer, nn.Linear)}
        if not layers:
            raise _wrong("original", "expected a model with linear layers, it has none")
        self._head = _head(request.original)
        self._record = {
            "layers": [self._layer(name, layer) for name, layer in layers.items()],
            "others": self._others(layers),
            "total": storage.stored(request.model),
            "allowed": self._allowed(layers),
            "config": _told(request.model),
            "warned": list(request.warned[:3]),
        }

    def __call__(self, call: QuantisedCall) -> Outputs:
        """``record``, JSON as bytes; with ``scores`` those of the original, of the ordinary form and of the model."""
        return self._scores(call) if call.scores else {"record": as_bytes(self._record)}

    def _layer(self, name: str, layer: nn.Linear) -> dict[str, Any]:
        request, bits = self._request, self._request.asked(name)
        told = {"name": name, "bits": bits, "numel": layer.weight.numel(), "head": layer.weight is self._head}
        try:
            found = request.model.get_submodule(name)
        except AttributeError:
            return {**told, "kind": "absent"}
        size = storage.stored(found, without_bias=True)
        told |= {"kind": type(found).__name__, "bytes": size, "limit": self._limit(layer, bits)}
        weight = storage.weights(found, layer.in_features, layer.weight.dtype)
        if isinstance(weight, str):
            return {**told, "refused": weight}
        return {**told, **self._against(layer, weight, bits)}

    def _against(self, layer: nn.Linear, weight: Tensor, bits: int) -> dict[str, Any]:
        """Levels and errors of the weights that are computed with."""
        truth = layer.weight.detach().float()
        window = self._window(layer.in_features)
        plain = weight if layer.bias is None else weight - layer.bias.detach().float()[:, None]
        if plain.shape != truth.shape:
            return {"refused": f"it gives {tuple(plain.shape)} for weights of {tuple(truth.shape)}"}
        told: dict[str, Any] = {"error": _rms(plain - truth, truth)}
        if bits:
            ordinary = storage.rounded(truth, bits, self._request.group or 0, floating=self._request.floating)
            told |= {"ordinary": _rms(ordinary - truth, truth), "window": window}
            told["levels"] = storage.levels(weight, window) if 2**bits < window else 0
        return told

    def _window(self, width: int) -> int:
        group = GROUP if self._request.group is None else self._request.group or width
        return min(group, width)

    def _limit(self, layer: nn.Linear, bits: int) -> float:
        """Bytes of a layer: its bits, and a scale and a zero of four bytes each for every group."""
        if not bits:
            return 0.0
        groups = layer.weight.numel() / self._window(layer.in_features)
        return layer.weight.numel() * bits / 8 + 8 * groups

    def _others(self, layers: Mapping[str, nn.Linear]) -> list[list[Any]]:
        """What was to stay and has other values: parameters of the original that belong to no layer that was asked."""
        mine = dict(self._request.model.named_parameters(remove_duplicate=False))
        rows = []
        for name, value in self._request.original.named_parameters(remove_duplicate=False):
            owner, _, last = name.rpartition(".")
            asked = owner in layers and (self._request.asked(owner) or value is self._head)
            if (asked and last == "weight") or value is self._head:
                continue
            rows += self._row(name, value, mine.get(name))
        return rows

    def _row(self, name: str, value: Tensor, mine: Tensor | None) -> list[list[Any]]:
        if mine is None or mine.shape != value.shape or not mine.is_floating_point():
            held = "absent" if mine is None else f"{mine.dtype} {list(mine.shape)}".removeprefix("torch.")
            return [[name, held, f"{value.dtype} {list(value.shape)}".removeprefix("torch.")]]
        gap = state.apart(value, mine)
        return [[name, f"{gap.count} other elements", "as in the original"]] if gap else []

    def _allowed(self, layers: Mapping[str, nn.Linear]) -> float:
        """Bytes of the whole model: what was asked at its bits, all else as in the original."""
        weights = {id(layer.weight): 0.0 for layer in layers.values()}
        for name, layer in layers.items():
            bits = self._request.asked(name)
            free = layer.weight is self._head
            whole = layer.weight.numel() * layer.weight.element_size()
            weights[id(layer.weight)] = whole if free or not bits else self._limit(layer, bits)
        rest = sum(value.numel() * value.element_size() for value in _tensors(self._request.original)
                   if id(value) not in weights)  # fmt: skip
        return sum(weights.values()) + rest

    def _scores(self, call: QuantisedCall) -> Outputs:
        """Of the batch: ``original``, ``ordinary`` (rounded to nearest in place), ``model``."""
        request = self._request
        path = Path(model=request.original)
        made = scores.batch("text", path, path, call.seed)
        found = {"original": scores.logits(path, request.original, made),
                 "model": scores.logits(Path(model=request.model), request.model, made)}  # fmt: skip
        ordinary = {"ordinary": self._rounded(path, made), "ordinary.inputs": self._rounded(path, made, inputs=True)}
        return {**found, **ordinary}

    def _rounded(self, path: Path, made: Mapping[str, Any], *, inputs: bool = False) -> Tensor:
        """The original's scores with its asked layers, and their inputs to eight bits, rounded to nearest.

        It is put back afterwards.
        """
        layers = {name: layer for name, layer in self._request.original.named_modules() if isinstance(layer, nn.Linear)}
        kept, hooks = {}, []
        with torch.no_grad():
            try:
                for name, layer in layers.items():
                    if bits := self._request.asked(name):
                        kept[name] = layer.weight.clone()
                        near = storage.rounded(layer.weight, bits, self._request.group or 0,
                                               floating=self._request.floating)  # fmt: skip
                        layer.weight.copy_(near)
                        hooks += [layer.register_forward_pre_hook(_rounded_input)] if inputs else []
                return scores.logits(path, path.model, made)
            finally:
                for name, old in kept.items():
                    layers[name].weight.copy_(old)
                for hook in hooks:
                    hook.remove()


def _rounded_input(_layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    first = args[0]
    near = storage.rounded(first.reshape(-1, first.shape[-1]), 8, 0, floating=False)
    return (near.reshape(first.shape).to(first), *args[1:])


def _head(model: nn.Module) -> Tensor | None:
    """The weight of the output head, which libraries leave as it is unless told otherwise."""
    told = getattr(model, "get_output_embeddings", None)
    try:
        found = told() if callable(told) else None
    except Exception:  # noqa: BLE001 - a model without a head may say so by raising
        found = None
    return getattr(found, "weight", None)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _rms(error: Tensor, truth: Tensor) -> list[float]:
    """Of each row, relative to the row: the largest, and over all rows."""
    rows = error.square().mean(-1).sqrt() / truth.square().mean(-1).sqrt().clamp(min=1e-12)
    return [float(rows.max()), float(rows.square().mean().sqrt())] if rows.numel() else [0.0, 0.0]


def _told(model: nn.Module) -> dict[str, Any] | None:
    """What the configuration says: bits, and the layers that it says were left."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return None
    told = dict(config) if isinstance(config, Mapping) else dict(vars(config))
    told = {str(name).lstrip("_"): value for name, value in told.items()}
    left = told.get("modules_to_not_convert") or told.get("llm_int8_skip_modules") or told.get("ignore") or []
    return {"bits": _bits(told), "left": [str(name) for name in left]}


def _bits(told: Mapping[str, Any]) -> int | None:
    if told.get("load_in_4bit"):
        return 4
    if told.get("load_in_8bit"):
        return 8
    for name in ("bits", "nbits", "w_bit", "weight_bits"):
        if isinstance(told.get(name), int):
            return int(told[name])
    digits = [char for char in str(told.get("weights") or told.get("quant_type") or "") if char.isdigit()]
    return int(digits[0]) if digits and digits[0] in "248" else None


@functools.lru_cache(maxsize=1)
def _measured(make: Callable[[], Any]) -> Measured:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        request = called(lambda: checked(make()))
    said = dict.fromkeys(str(item.message)[:200] for item in seen if issubclass(item.category, UserWarning))
    return Measured(replace(request, warned=tuple(said)))


def answer(make: Callable[[], Any], call: QuantisedCall) -> Outputs:
    """The answer about what ``make()`` returns, which is called once."""
    return _measured(make)(call)
