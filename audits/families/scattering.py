"""Tiny models of every family that puts features of media into text embeddings, found by reading source text.

What is built is the module that does it (``LlavaModel``, not the head on top), from its own configuration class. A
family with a file of its own comes from there.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

from assay.audits.families import _release, discovery
from assay.audits.families._shrink import ORDINARY, shrunk
from assay.audits.terms import Family

SCATTERS = "masked_scatter"
"""What the source of such a family contains, in 4.57 to 5.23."""
ENDS = ("get_placeholder_mask", "get_image_placeholder_mask")
LARGEST = 100_000_000
"""Parameters of a model that is still tiny."""
_TIMM = "its tower is one of timm, which is not installed"
UNBUILT: dict[str, str] = {
    "blt": "blt: scatters bytes into patches; there are no media",
    "colqwen2": "colqwen2: its features come from the tower of another model, by no method that can be replaced",
    "gemma3n": f"gemma3n: {_TIMM}",
    "glm_image": "glm_image: puts ids of a codebook into its ids, not features into embeddings",
    "gradium_phonon_tts": "gradium_phonon_tts: speaks; the latents of its prompt come from a processor",
    "higgs_audio_v2": "higgs_audio_v2: embeds ids of sounds; no method makes features",
    "neomme": "neomme: its features are of another width than its embeddings until they are put in",
    "perception_lm": f"perception_lm: {_TIMM}",
    "pocket_tts": "pocket_tts: speaks; the latents of its prompt come from a processor",
    "qwen2_audio": "qwen2_audio: merges inside a forward that makes the features itself",
}
"""Families that are known and not audited, each with the reason; others say theirs when they are built."""
_TOWER = {
    "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
}  # fmt: skip
"""A tower in the place of one that is not installed: what makes features is replaced anyhow."""
MORE: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 127, "IMGIMGAZ": 100}},
    "emu3": {"vocabulary_map": {"<image>": 127, "<|visual token 000000|>": 100}},
    "fast_vlm": {"vision_config": _TOWER},
}
"""Fields that belong together in a way of the family's own."""
PASSED_ON: dict[str, tuple[str, ...]] = {"llama4": ("multi_modal_projector",)}
"""Modules between the features and their placeholders: they are replaced by nothing, so that features stay known."""
SITES = {"florence2": "Florence2Model"}
"""The class that is meant, where source text does not tell."""
FLAT = ("fuyu", "inkling", "llama4")
"""Families whose image features come as one matrix, where a stack would do as well."""
MASKED = ("embedding_gemma2", "gemma4", "gemma4_unified")
"""Families that cut the padding off stacked features of sounds by a mask of the tower's."""
IDS = ("image_token_id", "video_token_id", "audio_token_id")


@lru_cache(maxsize=1)
def installed_families() -> tuple[str, ...]:
    """Names of all such families, sorted; transformers is not imported."""
    files = sorted(_release.models_folder().glob("*/modeling_*.py"))
    return tuple(sorted({path.parent.name for path in files if SCATTERS.encode() in path.read_bytes()}))


@lru_cache(maxsize=256)
def site(name: str) -> tuple[str, str]:
    """The module and the class of a family in which features meet embeddings. LookupError where there is none."""
    found: list[tuple[int, int, str, str]] = []
    told = SITES.get(name, "")
    for path in sorted((_release.models_folder() / name).glob("modeling_*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body if SCATTERS in source else ():
            if isinstance(node, ast.ClassDef) and told in ("", node.name) and (rank := _rank(node, source)):
                found.append((rank, len(found), path.stem, node.name))
    if not found:
        raise LookupError(f"{name}: no class of it scatters features into embeddings")
    _, _, module, kind = max(found)
    return f"transformers.models.{name}.{module}", kind


def source(name: str) -> str:
    """The source text of a family's models."""
    files = sorted((_release.models_folder() / name).glob("modeling_*.py"))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def method(name: str, attribute: str) -> Callable[..., Any]:
    """The method of that name of a class of the family's own. LookupError where no class has it."""
    for path in sorted((_release.models_folder() / name).glob("modeling_*.py")):
        module = import_module(f"transformers.models.{name}.{path.stem}")
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__ and attribute in vars(kind):
                found: Callable[..., Any] = vars(kind)[attribute]
                return found
    raise LookupError(f"{name}: no class of it has a method {attribute}")


def _rank(node: ast.ClassDef, source: str) -> int:
    """How sure it is that a class is the one: it finds placeholders, has features made, scatters; 0 if it cannot be."""
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    if "forward" not in methods:
        return 0
    scatters = any(
        f".{SCATTERS}(" in (ast.get_source_segment(source, item) or "")
        for name, item in methods.items() if name != "generate"
    )  # fmt: skip
    finds = any(name in methods for name in ENDS)
    makes = any(name in methods for name in ("get_image_features", "get_video_features", "get_audio_features"))
    return (scatters or finds) * (1 + scatters + 2 * finds + 2 * makes)


def family(name: str) -> str:
    """In words why the family has no model here that can be asked; empty where it may have one."""
    if name not in installed_families():
        return f"{name}: the installed transformers has no such family that puts features into embeddings"
    return UNBUILT.get(name, "")


def build(name: str, seed: int = 0) -> Any:
    """A tiny float32 module in eval mode. LookupError with the reason where it cannot be made."""
    if reason := family(name):
        raise LookupError(reason)
    module, kind = site(name)
    own = discovery.family(name) if name in discovery.installed_families() else ""
    if isinstance(own, Family):
        whole = own.build(seed)
        found = next((part for part in whole.modules() if type(part).__name__ == kind), None)
        if found is not None:
            return found
    try:
        return _made(getattr(import_module(module), kind), name, seed)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise LookupError(f"{name}: no tiny model of it can be made: {type(error).__name__}: {text}") from error


def _made(kind: Any, name: str, seed: int) -> Any:
    import torch

    from assay.audits.families._weights import randomise

    config = shrunk(kind.config_class(), **MORE.get(name, {}))
    for place, field in enumerate(IDS):
        if getattr(config, field, 0) is None:  # left to the processor
            setattr(config, field, ORDINARY + place)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > LARGEST:
        raise LookupError(f"{size / 1e6:.0f} million parameters are left after shrinking")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise(kind(config), seed)
