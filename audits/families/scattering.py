"""Tiny models of every family that puts features of media into text embeddings, found by reading source text.

What is built is the module that does it (``LlavaModel``, not the head on top), from its own configuration class. A
family with a file of its own comes from there.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

from assay.audits.families import _release, causal, discovery
from assay.audits.families._shrink import ORDINARY, VOCABULARY, shrunk
from assay.audits.terms import Family

SCATTERS = "masked_scatter"
"""What the source of such a family contains, in 4.57 to 5.23."""
ENDS = ("get_placeholder_mask", "get_image_placeholder_mask")
LARGEST = 100_000_000
"""Parameters of a model that is still tiny. Of a larger one only the embeddings are made: no more of it is run."""
_TIMM = "its tower is one of timm, which is not installed"
UNBUILT: dict[str, str] = {
    "blt": "blt: scatters bytes into patches; there are no media",
    "colqwen2": "colqwen2: its features come from the tower of another model, by no method that can be replaced",
    "gemma3n": f"gemma3n: {_TIMM}",
    "glm_image": "glm_image: puts ids of a codebook into its ids, not features into embeddings",
    "gradium_phonon_tts": "gradium_phonon_tts: speaks; the latents of its prompt come from a processor",
    "granite4_vision": "granite4_vision: empties its placeholders; its features are added layer by layer",
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
TEXT: dict[str, dict[str, Any]] = {
    "deepseek_ocr2": {"mlp_layer_types": ["dense"] * 2},
    "diffusion_gemma": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64},
    "t5gemma2": {"dropout_rate": 0.0},
}
"""Fields of the text model's configuration that it leaves open and its model cannot do without."""
PASSED_ON: dict[str, tuple[str, ...]] = {"llama4": ("multi_modal_projector",)}
"""Modules between the features and their placeholders: they are replaced by nothing, so that features stay known."""
SITES = {"florence2": "Florence2Model"}
"""The class that is meant, where source text does not tell."""
FLAT = ("diffusion_gemma", "fuyu", "inkling", "llama4")
"""Families whose image features come as one matrix, where a stack would do as well."""
ADDS = ("molmo2",)
"""Families that document that they add features to the embeddings of their placeholders."""
EXCLUSIVE = ("molmo2",)
"""Families that document that a batch has images or videos, not both."""
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


def forms(name: str, modality: str) -> tuple[str, ...]:
    """The forms in which a family's towers may give features (see ``scatter_given``), the usual one first."""
    shapes: tuple[str, ...] = ("flat", "stacked", "list") if modality == "audio" else ("list", "stacked", "flat")
    if modality == "image" and name in FLAT:
        shapes = ("flat",)
    if _release.within(">=5.0.0"):
        return shapes
    return tuple(f"{wrapped}:{shape}" for wrapped in ("bare", "pair") for shape in shapes)


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
        found = _inside(own.build(seed), kind)
        if found is not None:
            return found
    try:
        return _made(getattr(import_module(module), kind), name, seed)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise LookupError(f"{name}: no tiny model of it can be made: {type(error).__name__}: {text}") from error


def patched(name: str, patch: str) -> tuple[Any, Any]:
    """The module of :func:`build` under a user's patch, and the model that the patch leaves, which it is part of.

    The patch is given the model with its head where there is one.
    """
    from assay.audits.patch_users import patched_model

    _, kind = site(name)
    whole = Family(
        name=name, model_type=name, modalities=(), build=partial(_with_head, name), batch=dict, sites=None, rule=""
    )
    model = patched_model(patch, whole)
    found = _inside(model, kind)
    if found is None:
        raise LookupError(f"{name}: there is no {kind} in the model that the patch leaves")
    return found, model


def _with_head(name: str, seed: int) -> Any:
    """The model that users have, with its head; where none can be made, the module of :func:`build`."""
    import transformers

    own = discovery.family(name) if name in discovery.installed_families() else ""
    if isinstance(own, Family):
        return own.build(seed)
    headed = getattr(transformers, causal.classes().get(name, ""), None)
    if headed is None:
        return build(name, seed)
    model = _made(headed, name, seed)
    return model if _inside(model, site(name)[1]) is not None else build(name, seed)


def _inside(model: Any, kind: str) -> Any:
    """The first module in a model whose class, or a class it is made from, is called so; None where there is none."""
    return next((part for part in model.modules() if kind in {base.__name__ for base in type(part).__mro__}), None)


def _made(kind: Any, name: str, seed: int) -> Any:
    import torch
    from huggingface_hub.errors import StrictDataclassError

    from assay.audits.families._weights import randomise

    try:
        config = _identified(shrunk(kind.config_class(), **MORE.get(name, {})))
        for field, value in TEXT.get(name, {}).items():
            setattr(config.get_text_config(), field, value)
    except (StrictDataclassError, ValueError):  # sizes that have to fit one another in a way of the family's own
        config = _of_full_size(kind.config_class(**MORE.get(name, {})))
    with torch.device("meta"):
        hollow = kind(config)
    if sum(parameter.numel() for parameter in hollow.parameters()) > LARGEST:
        return _embedding_alone(hollow, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise(kind(config), seed)


def _identified(config: Any) -> Any:
    """The configuration with ids for the placeholders that it leaves to the processor."""
    for place, field in enumerate(IDS):
        if getattr(config, field, 0) is None:
            setattr(config, field, ORDINARY + place)
    return config


def _of_full_size(config: Any) -> Any:
    """The configuration as it is, but for a small vocabulary and placeholders in it."""
    text = config.get_text_config()
    text.vocab_size, text.pad_token_id = VOCABULARY, 0
    for place, field in enumerate(IDS):
        if hasattr(config, field):
            setattr(config, field, ORDINARY + place)
    return config


def _embedding_alone(hollow: Any, seed: int) -> Any:
    """A module without memory, but for its input embedding. LookupError where that is large too."""
    from assay.audits.families._weights import randomise

    layer = hollow.get_input_embeddings()
    size = sum(parameter.numel() for parameter in layer.parameters())
    if size > LARGEST or any(True for _ in layer.buffers()):
        raise LookupError(f"{size / 1e6:.0f} million parameters are left in its embedding after shrinking")
    randomise(layer.to_empty(device="cpu"), seed)
    return hollow.eval()
