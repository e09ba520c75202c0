"""A family's own code as implementations: its position ids and its rotation, called as its model calls them.

Each is made in the worker from a tiny model of the family. Settings that an audit varies (frequencies, sections, merge
size, ids per second) are written into the live modules before each call, where their code reads them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from assay.audits.families import sites
from assay.audits.families.discovery import loaded
from assay.audits.terms import Family, Implementation, Inexpressible, Outputs

TEXT_OFFSET = 10_000
"""Where our text ids are moved to, clear of every special id of a tiny model."""


def implementation(target: Mapping[str, Any]) -> Implementation:
    """The implementation at ``target["site"]`` of ``target["family"]``, after ``target["patch"]`` if there is one.

    LookupError with the reason when the family cannot be built or lacks the site.
    """
    family = loaded(target["family"])
    kinds: dict[str, Any] = {"positions": Positions, "rotate": Rotation}
    found: Implementation = kinds[target["site"]](family, model_of(family, str(target.get("patch", ""))))
    return found


def model_of(family: Family, patch: str) -> Any:
    """A family's tiny model, after ``patch`` (``package.module:apply``) if there is one."""
    if not patch:
        return family.build(0)
    from assay.audits import patches

    return patches.patched_model(patch, family)


class Positions:
    """``get_rope_index`` of a family, for ``mrope.positions``."""

    def __init__(self, family: Family, model: Any) -> None:
        """Find the method. LookupError when the installed release has none."""
        self._family, self._model = family, model
        resolved = sites.resolve(model, family.sites)
        if resolved.positions is None:
            raise LookupError("; ".join(resolved.missing) or f"{family.name} has no position ids of its own")
        self._function, self._owner = resolved.positions, resolved.positions_owner
        self._parameters = frozenset(inspect.signature(resolved.positions).parameters)
        self._by_markers = "vision_start_token" in _source(resolved.positions)

    def __call__(self, inputs: Any) -> Outputs:
        """Ids and the id with which decoding continues."""
        from assay.audits.components.mrope.positions import answer, unmarked

        if self._by_markers and (reason := unmarked(inputs)):
            raise Inexpressible(reason)
        configure(self._model.config, inputs)
        if isinstance(getattr(self._owner, "spatial_merge_size", None), int):
            self._owner.spatial_merge_size = inputs.spatial_merge
        given = {name: value for name, value in self._arguments(inputs).items() if name in self._parameters}
        ids, deltas = self._function(**given)
        counts_padding = "mm_token_type_ids" not in self._parameters and not _masks_first(self._function)
        return answer(inputs, ids, torch.as_tensor(deltas), counts_padding=counts_padding)

    def _arguments(self, inputs: Any) -> dict[str, Any]:
        """The arguments of all families by their names; what is to be left out is not among them."""
        optional = {
            "image_grid_thw": "image_grids",
            "video_grid_thw": "video_grids",
            "second_per_grid_ts": "seconds_per_grid",
            "second_per_grids": "seconds_per_grid",
            "audio_seqlens": "audio_lengths",
            "attention_mask": "attention_mask",
        }
        return {
            "input_ids": _translated(inputs.input_ids, self._model.config, self._family),
            "mm_token_type_ids": inputs.token_types,
            **{theirs: inputs.given(ours) for theirs, ours in optional.items() if ours not in inputs.absent},
        }


def _source(function: Any) -> str:
    """A function's text; none for one that a patch made without a file."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""


def _masks_first(function: Any) -> bool:
    """Whether a method subtracts the length without padding: said by its source, which differs between releases."""
    source = inspect.getsource(function)
    return (
        "len(total_input_ids[i])" not in source
        and "input_ids.shape[1]" not in source.split("mrope_position_deltas")[-2]
    )


def configure(config: Any, inputs: Any) -> None:
    """Write the settings of a case into every part of a configuration that has them."""
    values = {
        "spatial_merge_size": inputs.spatial_merge,
        "tokens_per_second": inputs.ids_per_second,
        "position_id_per_seconds": inputs.ids_per_second,
    }
    for part in _parts(config):
        for name, value in values.items():
            if getattr(part, name, None) is not None:
                setattr(part, name, int(value) if float(value).is_integer() else value)


def _parts(config: Any) -> list[Any]:
    nested = [getattr(config, name, None) for name in ("vision_config", "text_config", "thinker_config")]
    return [config] + [part for item in nested if item is not None for part in _parts(item)]


SPECIAL = {
    "image": ("image_token_id", "image_token_index", "im_patch_id"),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index"),
    "vision_start": ("vision_start_token_id", "image_start_token_id"),
    "vision_end": ("vision_end_token_id", "image_end_token_id"),
    "audio_start": ("audio_start_token_id",),
    "audio_end": ("audio_end_token_id",),
    "video_start": ("video_start_token_id",),
    "video_end": ("video_end_token_id",),
}
"""What configurations call the ids of special tokens."""


def setting(config: Any, *names: str) -> float | None:
    """The first number of one of these names in a configuration or its parts."""
    for part in _parts(config):
        for name in names:
            if isinstance(getattr(part, name, None), (int, float)):
                return float(getattr(part, name))
    return None


def special_id(config: Any, role: str) -> int:
    """The id of a special token by its configuration; one that nothing uses where the configuration has none."""
    for part in _parts(config):
        for name in SPECIAL[role]:
            if isinstance(getattr(part, name, None), int):
                return int(getattr(part, name))
    return TEXT_OFFSET + 5000 + list(SPECIAL).index(role)


def _translated(ids: Tensor, config: Any, family: Family) -> Tensor:
    """Our ids as those of a model: special ones by its configuration, text moved out of the way."""
    from assay.audits.components.mrope import stream

    roles = {
        stream.START: "vision_start",
        stream.END: "vision_end",
        stream.IMAGE: "image",
        stream.VIDEO: "image" if family.rule in stream.MARKED_VIDEOS else "video",
        stream.AUDIO: "audio",
        stream.AUDIO_START: "audio_start",
        stream.AUDIO_END: "audio_end",
        stream.VIDEO_START: "video_start",
        stream.VIDEO_END: "video_end",
    }
    out = torch.where(ids == stream.PAD, 0, ids + TEXT_OFFSET)
    for ours, role in roles.items():
        out = torch.where(ids == ours, special_id(config, role), out)
    return out


def lane_order(inv_freq: Tensor) -> Tensor:
    """The lane whose frequency each entry of a rotary module holds: most keep lane order, some sort by axis.

    Frequencies fall strictly from lane to lane, so an entry's rank is its lane.
    """
    return torch.argsort(torch.argsort(inv_freq.double(), descending=True))


class Rotation:
    """A family's rotary module and apply function together, for ``mrope.rotate``."""

    def __init__(self, family: Family, model: Any) -> None:
        """Find both. LookupError when the installed release lacks one."""
        resolved = sites.resolve(model, family.sites)
        if resolved.text_rotary is None or resolved.text_apply is None:
            raise LookupError("; ".join(resolved.missing))
        self._rotary = resolved.text_rotary
        # Some keep parameters for each type of layer, under its name.
        per_layer = not hasattr(self._rotary, "inv_freq")
        self._kind = min(self._rotary.rope_type) if per_layer else ""
        self._lanes = lane_order(getattr(self._rotary, self._named("inv_freq")))
        module, _, name = resolved.text_apply_name.partition(":")
        self._module, self._name = importlib.import_module(module), name

    def _named(self, name: str) -> str:
        return f"{self._kind}_{name}" if self._kind else name

    def __call__(self, inputs: Any) -> Outputs:
        """Rotated queries and keys."""
        sections = list(inputs.sections)
        self._configure(inputs, sections)
        layer = {"layer_type": self._kind} if self._kind else {}
        cos, sin = self._rotary(inputs.q, inputs.positions, **layer)
        apply = getattr(self._module, self._name)
        extra = {"mrope_section": sections} if "mrope_section" in inspect.signature(apply).parameters else {}
        q, k = apply(inputs.q, inputs.k, cos, sin, **extra)
        return {"q": q, "k": k}

    def _configure(self, inputs: Any, sections: list[int]) -> None:
        """Write frequencies, scaling and sections where the module reads them."""
        rotary = self._rotary
        setattr(rotary, self._named("inv_freq"), self._in_their_order(inputs.inv_freq))
        setattr(rotary, self._named("attention_scaling"), inputs.attention_scaling)
        if hasattr(rotary, "mrope_section"):
            rotary.mrope_section = {self._kind: sections} if self._kind else sections
        for name in ("rope_parameters", "rope_scaling"):
            settings = getattr(rotary.config, name, None)
            settings = settings.get(self._kind) if isinstance(settings, dict) and self._kind else settings
            if isinstance(settings, dict) and "mrope_section" in settings:
                settings["mrope_section"] = sections

    def _in_their_order(self, inv_freq: Tensor) -> Tensor:
        if torch.equal(self._lanes, torch.arange(len(self._lanes))):
            return inv_freq.clone()
        if len(self._lanes) != len(inv_freq):
            message = f"the model orders {len(self._lanes)} frequencies in its own way, the case has {len(inv_freq)}"
            raise LookupError(message)
        return inv_freq[self._lanes]
