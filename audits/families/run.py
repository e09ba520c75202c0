"""Runs a tiny model of a family on a real batch, and keeps what its position sites saw.

This is the implementation behind family-level operations: a :class:`ModelCall` in, named tensors out. It lives in the
worker; the judge never imports transformers.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from assay.audits.families import sites
from assay.audits.families.adapt import SPECIAL, model_of, setting, special_id
from assay.audits.families.discovery import loaded
from assay.audits.terms import Family, Outputs

NEW_TOKENS = 3


@dataclass(frozen=True, kw_only=True)
class ModelCall:
    """What to run. ``samples`` in the notation of ``audits.families.samples``; ``keys`` say what each one holds.

    ``positions`` [A,B,S] replaces the model's own ids; ``drop`` leaves arguments out; ``before`` are samples of a call
    that the same model object answers first; ``decode`` asks for a few tokens one by one with a cache, and for the
    same tokens in one forward: by ``generate()``, or by ``forward`` with the cache handed over. ``dtype`` is float64 or
    float32.
    """

    samples: tuple[str, ...]
    keys: tuple[int, ...] = ()
    padding: str = "right"
    seed: int = 0
    dtype: str = "float64"
    positions: Tensor | None = None
    drop: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    decode: str = ""


def implementation(target: Mapping[str, Any]) -> Model:
    """The model of ``target["family"]``, under ``target["patch"]`` if there is one."""
    return Model(loaded(target["family"]), str(target.get("patch", "")))


class Model:
    """A family's tiny model: fresh for each call, equal weights each time."""

    def __init__(self, family: Family, patch: str = "") -> None:
        """Build once, to fail early where it cannot be built."""
        self._family, self._patch = family, patch
        self._spare: Any = self._made()

    def _made(self) -> Any:
        return model_of(self._family, self._patch)

    def _fresh(self, dtype: str) -> Any:
        model, self._spare = self._spare or self._made(), None
        return model.double() if dtype == "float64" else model.float()

    def __call__(self, call: ModelCall) -> Outputs:
        """Logits and captured positions; with ``generate``, those of decoding beside those of one forward."""
        model = self._fresh(call.dtype)
        if call.before:
            self._forward(model, self._batch(model, call, call.before, ()))
        batch = self._batch(model, call, call.samples, call.keys)
        facts = _facts(batch, model, self._family)
        dropped = [name for name in call.drop if batch.pop(name, None) is not None]
        if call.positions is not None:
            batch["position_ids"] = call.positions
        ways = {"": self._forward, "generate": self._generated, "forward": self._continued}
        out = ways[call.decode](model, batch)
        return {**facts, **out, "dropped": torch.tensor(len(dropped))}

    def _batch(self, model: Any, call: ModelCall, samples: tuple[str, ...], keys: tuple[int, ...]) -> dict[str, Any]:
        made = self._family.batch(model, samples, padding=call.padding, seed=call.seed, keys=keys)
        return dict(made)

    def _forward(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with captured(model, self._family) as seen, torch.no_grad():
            logits = model(**batch, use_cache=False).logits
        return {"logits": logits, **seen.tensors()}

    def _generated(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Greedy decoding of a few tokens, then one forward of another model object over all of them."""
        with captured(model, self._family) as seen, torch.no_grad():
            made = model.generate(
                **batch, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1,
                output_logits=True, return_dict_in_generate=True, eos_token_id=None, pad_token_id=0, use_cache=True,
                suppress_tokens=placeholders(model.config, model.get_input_embeddings().num_embeddings),
            )  # fmt: skip
        return self._beside_one_forward(model, batch, made.sequences, torch.stack(made.logits, dim=1), seen)

    def _continued(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """A forward over the prompt that keeps its cache, then one forward for each of a few more text tokens.

        For one sample: without padding there need not be a mask.
        """
        ids = batch["input_ids"]
        batch = {name: value for name, value in batch.items() if name != "attention_mask"}
        sequences = torch.cat([ids, ids[:, -1:].expand(-1, NEW_TOKENS)], dim=1)
        ordered = "cache_position" in inspect.signature(model.forward).parameters
        with captured(model, self._family) as seen, torch.no_grad():
            made = model(**batch, use_cache=True)
            logits = [made.logits[:, -1]]
            for length in range(ids.shape[1], sequences.shape[1] - 1):
                more = {"cache_position": torch.tensor([length])} if ordered else {}
                token = sequences[:, length : length + 1]
                made = model(input_ids=token, past_key_values=made.past_key_values, use_cache=True, **more)
                logits.append(made.logits[:, -1])
        return self._beside_one_forward(model, batch, sequences, torch.stack(logits, dim=1), seen)

    def _beside_one_forward(
        self, model: Any, batch: dict[str, Any], sequences: Tensor, logits: Tensor, seen: Seen
    ) -> dict[str, Tensor]:
        length = batch["input_ids"].shape[1]
        steps = [positions for positions in seen.positions if positions.shape[-1] == 1][: NEW_TOKENS - 1]
        whole = self._forward(self._fresh(str(model.dtype).rpartition(".")[2]), _longer(batch, sequences))
        return {
            "decoded.logits": logits,
            "decoded.positions": torch.cat([seen.positions[0], *steps], dim=-1),
            "full.logits": whole["logits"][:, length - 1 : -1],
            "full.positions": whole["positions"][..., : length + len(steps)],
        }


def _longer(batch: Mapping[str, Any], sequences: Tensor) -> dict[str, Any]:
    """The batch with generated tokens appended to everything that has one entry per token."""
    ids = batch["input_ids"]
    more = (len(ids), sequences.shape[1] - ids.shape[1])
    grown = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            grown[name] = torch.cat([value, value.new_full(more, int(name == "attention_mask"))], dim=1)
    return grown | {"input_ids": sequences}


@dataclass
class Seen:
    """What passed the sites during one forward."""

    positions: list[Tensor] = field(default_factory=list)
    turned: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    vision: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """The first positions, the first layer's queries and keys before and after, the vision tower's tables."""
        out = dict(self.parameters)
        if self.positions:
            out["positions"] = self.positions[0]
        if self.turned:
            out |= dict(zip(("site.q", "site.k", "site.q_out", "site.k_out"), self.turned[0], strict=True))
        if self.vision:
            out |= {"vision.cos": self.vision[0][0], "vision.sin": self.vision[0][1]}
        return out


@contextlib.contextmanager
def captured(model: Any, family: Family) -> Iterator[Seen]:
    """Watch a model's rotary module and apply function. What cannot be watched is absent from what is seen."""
    seen = Seen()
    resolved = sites.resolve(model, family.sites)
    handles = []
    if resolved.text_rotary is not None:
        handles.append(resolved.text_rotary.register_forward_hook(_rotary_hook(seen), with_kwargs=True))
        with contextlib.suppress(LookupError):
            seen.parameters |= _parameters(model, family)
    if resolved.vision_rotary is not None:
        handles.append(resolved.vision_rotary.register_forward_hook(_vision_hook(seen)))
    with contextlib.ExitStack() as stack:
        if resolved.text_apply_name:
            stack.enter_context(_watched(resolved.text_apply_name, seen))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _rotary_hook(seen: Seen) -> Any:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        ids = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        if isinstance(ids, Tensor):
            seen.positions.append(ids.detach().clone())

    return hook


def _vision_hook(seen: Seen) -> Any:
    """Tables are (cos, sin) from transformers 5.17 on; before, modules return angles, which are not kept."""

    def hook(_module: Any, _args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple) and len(output) == 2:
            seen.vision.append((output[0].detach().clone(), output[1].detach().clone()))

    return hook


@contextlib.contextmanager
def _watched(name: str, seen: Seen) -> Iterator[None]:
    module_name, _, function_name = name.partition(":")
    module = importlib.import_module(module_name)
    function = getattr(module, function_name)

    def watch(q: Tensor, k: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if k is None:  # an indexer that turns its own keys
            return function(q, *args, **kwargs)
        before = q.detach().clone(), k.detach().clone()
        out = function(q, k, *args, **kwargs)
        seen.turned.append((*before, out[0].detach().clone(), out[1].detach().clone()))
        return out

    setattr(module, function_name, watch)
    try:
        yield
    finally:
        setattr(module, function_name, function)


def _parameters(model: Any, family: Family) -> dict[str, Tensor]:
    found = sites.rotary_parameters(model, family.sites)
    return {
        "rotary.inv_freq": found.inv_freq.detach().sort(descending=True).values,
        "rotary.sections": torch.tensor(found.sections),
        "rotary.scaling": torch.tensor(found.attention_scaling, dtype=torch.float64),
    }


def _facts(batch: Mapping[str, Any], model: Any, family: Family) -> dict[str, Tensor]:
    """What the processor said of the batch, under our names."""
    ids = batch["input_ids"]
    facts = {"input_ids": ids, "attention_mask": batch.get("attention_mask", torch.ones_like(ids)).long()}
    facts["token_types"] = _token_types(batch, model, family)
    names = {
        "image_grids": ("image_grid_thw",),
        "video_grids": ("video_grid_thw",),
        "seconds_per_grid": ("second_per_grid_ts", "video_second_per_grid"),
    }
    for ours, theirs in names.items():
        for name in theirs:
            if batch.get(name) is not None:
                facts[ours] = torch.as_tensor(batch[name])
    return facts | _settings(model.config)


def placeholders(config: Any, vocabulary: int) -> list[int]:
    """Ids that a random model must not generate: they would ask for an image that is not there."""
    return sorted({token for role in SPECIAL if (token := special_id(config, role)) < vocabulary})


def _settings(config: Any) -> dict[str, Tensor]:
    """What a configuration says of the position rule."""
    names = {
        "spatial_merge": ("spatial_merge_size",),
        "ids_per_second": ("tokens_per_second", "position_id_per_seconds"),
    }
    found = {ours: setting(config, *theirs) for ours, theirs in names.items()}
    return {f"setting.{ours}": torch.tensor(value) for ours, value in found.items() if value is not None}


def _token_types(batch: Mapping[str, Any], model: Any, family: Family) -> Tensor:
    from assay.audits.components.mrope import stream
    from assay.reference.mrope_positions import token_types

    ids: dict[str, int] = {}
    for kind in ("image", "video", "audio"):
        if kind in family.modalities:
            ids[f"{kind}_id"] = special_id(model.config, kind)
    if family.rule in stream.MARKED_VIDEOS:
        ids.pop("video_id", None)
        for end in ("video_start", "video_end"):
            ids[f"{end}_id"] = special_id(model.config, end)
    return token_types(batch["input_ids"], **ids)
