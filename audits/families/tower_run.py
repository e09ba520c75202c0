"""Runs a family's own vision tower on pictures whose patches are known, for ``masked_scatter.tower``.

Pictures go through the family's own image processor. With the outputs of all attention set to zero nothing is exchanged
between patches, so that gradients say which pixels a feature is made of, and which row of a learned table of positions
a patch was given. It lives in the worker; the judge never imports transformers.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from assay.audits.families import discovery
from assay.audits.families._processor import patches_of
from assay.audits.families._recipe import Recipe
from assay.audits.families.adapt import model_of
from assay.audits.families.samples import Image, Video, parse
from assay.audits.terms import Inexpressible, Outputs

LEVELS = 250
"""Shades of grey that patches are numbered with."""


@dataclass(frozen=True, kw_only=True)
class TowerCall:
    """What to run. ``samples`` hold images or videos, not both, in the notation of ``audits.families.samples``.

    ``keys`` say what each sample shows. ``traced``: also what each feature is made of. ``training``: the model is in
    training mode, without dropout. ``dtype``: float64 or float32.
    """

    samples: tuple[str, ...]
    keys: tuple[int, ...]
    traced: bool = True
    training: bool = False
    seed: int = 0
    dtype: str = "float64"

    @property
    def media(self) -> list[Image | Video]:
        """The images or videos of all samples, in order. ValueError where there are none, or both."""
        found = [part for sample in self.samples for part in _media(sample)]
        if len({type(part) for part in found}) != 1:
            message = f"samples: expected images or videos, not both, got {self.samples}"
            raise ValueError(message)
        return found


def _media(sample: str) -> list[Image | Video]:
    segments = parse(sample).segments
    return [part for part in segments if isinstance(part, Image | Video)]


def implementation(target: Mapping[str, Any]) -> TowerModel:
    """The tower of ``target["family"]``, under ``target["patch"]`` if there is one."""
    return TowerModel(str(target["family"]), str(target.get("patch", "")))


class TowerModel:
    """A family's tiny model, whose tower is asked for features."""

    def __init__(self, name: str, patch: str = "") -> None:
        """Build it; LookupError where the family has no processor here."""
        self.recipe: Recipe | None = getattr(import_module(f"{__package__}.{name}"), "RECIPE", None)
        if self.recipe is None:
            message = f"{name}: no processor is written down for it here"
            raise LookupError(message)
        self._family, self._patch = discovery.loaded(name), patch
        self.models = {"float64": self._made().double()}

    def _made(self) -> Any:
        model = model_of(self._family, self._patch)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # what training mode is to show is not what is drawn
        return model

    def model(self, dtype: str) -> Any:
        """The model in float64 or float32; each is made once."""
        if dtype not in self.models:
            self.models[dtype] = self._made().to(getattr(torch, dtype))
        return self.models[dtype]

    def __call__(self, call: TowerCall) -> Outputs:
        """``features`` [N,H] of all media, one after another, and ``deepstack:LAYER`` [N,H] where there are such.

        Traced also ``reach`` and ``reach:LAYER`` [N,P], how much each feature depends on each patch of the pictures in
        reading order; ``cell`` [P], which feature a patch belongs to; ``place`` [P,3], the medium, row and column of
        it; ``enters`` [M,P], how much what enters the first layer depends on each patch, and ``weight`` [M,T], the
        share of each row of a learned table of positions in it, where the tower has one, of ``side`` rows and columns;
        ``silenced``, how many answers of attention were set to zero; ``unread`` [P], how many values of a patch no
        feature depends on; ``sight`` [N,P], as ``reach`` with attention as it is.
        """
        assert self.recipe is not None
        model = self.model(call.dtype).train(call.training)
        out = dict(_named(self.features(call, _noise(self.recipe, call))))
        values = {name: value.detach() for name, value in out.items()}
        return values | self._traced(model, call) if call.traced else values

    def _traced(self, model: Any, call: TowerCall) -> dict[str, Tensor]:
        assert self.recipe is not None
        rows, order = _numbered(self.recipe, call)
        with _seen(model) as seen, torch.enable_grad():
            leaf = rows.to(getattr(torch, call.dtype)).requires_grad_()
            made = {
                f"reach{name.removeprefix('features').removeprefix('deepstack')}": _sensitive(given, leaf)[:, order]
                for name, given in _named(self.features(call, leaf))
            }
            made["silenced"] = torch.tensor(seen.silenced)
            made |= _entering(model, seen.entered, leaf, order) | self._places(call)
        with torch.enable_grad():
            grads = torch.stack([x for (x,) in _walked(dict(_named(self.features(call, leaf)))["features"], [leaf])])
        made["unread"] = (grads == 0).all(0).flatten(1).sum(-1)[order]
        return made | {"sight": grads.abs().flatten(2).amax(-1)[:, order].detach()}

    def features(self, call: TowerCall, rows: Tensor) -> Any:
        """What the family's own method makes of the rows of patches that its processor made."""
        image = isinstance(call.media[0], Image)
        holder = _holder(self.model(call.dtype), "get_image_features" if image else "get_video_features")
        kind, pixels = ("image", "pixel_values") if image else ("video", "pixel_values_videos")
        method = getattr(holder, f"get_{kind}_features")
        return method(**{pixels: rows.to(getattr(torch, call.dtype)), f"{kind}_grid_thw": _grids(call)})

    def _places(self, call: TowerCall) -> dict[str, Tensor]:
        assert self.recipe is not None
        config = self.model(call.dtype).config
        merge, joined = self.recipe.merge_size, getattr(config.vision_config, "temporal_merge_size", 1)
        cells: list[int] = []
        places: list[tuple[int, int, int]] = []
        for number, (steps, height, width) in enumerate(_grids(call).tolist()):
            start = max(cells, default=-1) + 1
            for step, y, x in itertools.product(range(steps), range(height), range(width)):
                cells.append(start + (step // joined * (height // merge) + y // merge) * (width // merge) + x // merge)
                places.append((number, y, x))
        return {"cell": torch.tensor(cells), "place": torch.tensor(places)}


def _holder(model: Any, method: str) -> Any:
    """The innermost module with a method of that name."""
    found = [module for module in model.modules() if hasattr(module, method)]
    if not found:
        raise Inexpressible(f"has no {method}")
    return found[-1]


def _named(given: Any) -> Iterator[tuple[str, Tensor]]:
    """The features of an output of transformers: since 5.0 a record, before a list, alone or with deepstack's."""
    inner: Any = getattr(given, "deepstack_features", None)
    if hasattr(given, "pooler_output"):
        given = given.pooler_output
    elif isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], list):  # features, layers
        given, inner = given
    yield "features", _flat(given)
    for layer, rows in enumerate(inner or ()):
        yield f"deepstack:{layer}", _flat(rows)


def _flat(rows: Any) -> Tensor:
    parts: list[Tensor] = list(rows) if isinstance(rows, list | tuple) else [rows]
    return torch.cat([part.flatten(0, -2) for part in parts])


def _grids(call: TowerCall) -> Tensor:
    """[K,3] int64: steps, rows and columns of patches."""
    return torch.tensor([[getattr(part, "steps", 1), part.height, part.width] for part in call.media])


def _noise(recipe: Recipe, call: TowerCall) -> Tensor:
    """Rows of patches of noise: what a sample shows depends on seed and key alone."""
    drawn = [
        np.random.default_rng([call.seed, key, place])
        for key, sample in zip(call.keys, call.samples, strict=True)
        for place, _ in enumerate(_media(sample))
    ]
    side = recipe.patch_size

    def fill(part: Any, number: int) -> Any:
        shape = (_frames(recipe, part), part.height * side, part.width * side, 3)
        return drawn[number].integers(0, 256, shape, dtype=np.uint8)

    return _processed(recipe, call, fill)


def _numbered(recipe: Recipe, call: TowerCall) -> tuple[Tensor, Tensor]:
    """Rows of patches whose shade of grey is their number in reading order, and the row of each number."""
    media = call.media
    if max(_patches(part) for part in media) > LEVELS:
        message = f"samples: at most {LEVELS} patches can be told apart in one medium, got {call.samples}"
        raise ValueError(message)
    side = recipe.patch_size

    def fill(part: Any, _number: int) -> Any:
        shades = np.arange(_patches(part), dtype=np.uint8).reshape(-1, part.height, part.width)
        steps = np.repeat(shades, _frames(recipe, part) // len(shades), axis=0)
        return np.repeat(steps.repeat(side, 1).repeat(side, 2)[..., None], 3, axis=-1)

    rows = _processed(recipe, call, fill)
    means = torch.split(rows.double().flatten(1).mean(-1), [_patches(part) for part in media])
    if any(len({*own.tolist()}) != len(own) for own in means):
        message = f"{recipe.name}: its processor makes patches alike that are not"
        raise LookupError(message)
    starts = np.cumsum([0, *(len(own) for own in means)]).tolist()
    return rows, torch.cat([own.argsort() + start for own, start in zip(means, starts, strict=False)])


def _patches(part: Any) -> int:
    return int(getattr(part, "steps", 1)) * int(part.height) * int(part.width)


def _frames(recipe: Recipe, part: Any) -> int:
    return int(part.steps) * recipe.step if isinstance(part, Video) else 1


def _processed(recipe: Recipe, call: TowerCall, fill: Callable[[Any, int], Any]) -> Tensor:
    """Rows of patches [P,C] as the family's processor makes them of pictures."""
    pictures = [fill(part, number) for number, part in enumerate(call.media)]
    return patches_of(recipe, pictures, video=isinstance(call.media[0], Video))


def _sensitive(rows: Tensor, leaf: Tensor) -> Tensor:
    """[N,P]: the largest gradient of a fixed projection of each row with respect to each row of ``leaf``."""
    return torch.stack([x.abs().flatten(1).amax(-1) for (x,) in _walked(rows, [leaf])]).detach()


def _walked(rows: Tensor, leaves: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    weights = torch.linspace(-1, 1.5, rows.shape[-1], dtype=rows.dtype)
    for row in rows @ weights:
        if not row.requires_grad:
            yield [torch.zeros_like(leaf) for leaf in leaves]
            continue
        grads = torch.autograd.grad(row, list(leaves), retain_graph=True, allow_unused=True)
        yield [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, grads, strict=True)]


def _entering(model: Any, entered: Sequence[Tensor], leaf: Tensor, order: Tensor) -> dict[str, Tensor]:
    """What enters the first layer: on which patch each row depends, and on which rows of a table of positions."""
    found = _table(model)
    if found is None or not entered or entered[0].numel() % len(leaf):
        return {}
    rows = entered[0].flatten(0, -2)
    whole = list(_walked(rows, [leaf, found]))
    weights = torch.stack([_shares(grad) for _, grad in whole])
    side = math.isqrt(len(found))
    enters = torch.stack([grad.abs().flatten(1).amax(-1) for grad, _ in whole])[:, order]
    return {
        "enters": enters.detach(),
        "weight": weights[:, len(found) - side**2 :].detach(),
        "side": torch.tensor(side),
    }


def _shares(grad: Tensor) -> Tensor:
    """[T]: how much of each row of a table [T,H] was added to a vector, from the vector's gradient to the table."""
    whole = grad.sum(0)
    return grad @ whole / whole.square().sum().clamp_min(torch.finfo(grad.dtype).tiny)


def _table(model: Any) -> Tensor | None:
    """The weight of the tower's learned positions; None where there is none."""
    for name, module in model.named_modules():
        own = name.rpartition(".")[2]
        if isinstance(module, torch.nn.Embedding) and own.startswith("pos") and "language_model" not in name:
            weight: Tensor = module.weight
            return weight.requires_grad_()
    return None


class _Silence(TorchFunctionMode):
    """Sets what attention gives to zero, also where it is no module, or one of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.silenced = 0
        self.entered: list[Tensor] = []

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        weighs = function in _SOFTMAXES and out.ndim > 2  # of two dimensions: a choice of experts
        if function is not functional.scaled_dot_product_attention and not weighs:
            return out
        self.silenced += 1
        return out * 0


_SOFTMAXES = (torch.softmax, functional.softmax, Tensor.softmax)


@contextlib.contextmanager
def _seen(model: Any) -> Iterator[_Silence]:
    """What the tower's first attention is given, while the answers of every attention are set to zero."""
    seen = _Silence()

    def look(_module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor) and not seen.entered:
            seen.entered.append(given)

    def silence(_module: Any, _args: Any, output: Any) -> Any:
        seen.silenced += 1
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    layers = [m for m in model.modules() if type(m).__name__.endswith("Attention") and _mixes(m)]
    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(silence) for layer in layers]
    try:
        with seen:
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def _mixes(module: Any) -> bool:
    return "hidden_states" in inspect.signature(module.forward).parameters
