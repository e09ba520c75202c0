"""The configurations of transformers' families as knobs: each field in turn, on the family's own tiny model."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from assay.audits.components.config.knob_run import Knobs, Runner
from assay.audits.families import causal
from assay.audits.terms import Family

TEXTS = ("t23", "t7", "t1")
"""Samples that a window of a few tokens cuts; of several lengths."""
FURTHER = {"video": "t2 v4x4x6@2 t3", "audio": "t2 a1.5 t3"}
SEEN = "t3 i4x6 t4 i6x4 t2"
_IDS = r"im_\w+_id|\w*token_ids?|\w*token_index|\w*_patch_id|pad_id|forced_\w+"
_GENERATION = r"use_cache|cache_implementation|num_assistant\w*|is_decoder|cross_attention_hidden_size"
_RETURNED = r"output_\w+|return_dict|use_return_dict|torchscript"
_NAMED = (
    r"model_type|architectures|transformers_version|_?name_or_path|(torch_)?dtype|id2label|label2id|num_labels|"
    r"problem_type|tokenizer_class|task_specific_params|finetuning_task|auto_map|quantization_config|\w*_class|"
    r"_?attn_implementation\w*|_?experts_implementation\w*|summary_\w+|classifier_\w+|is_encoder_decoder|"
    r"tie_encoder_decoder|base_model_\w+|prefix|pruned_heads|add_cross_attention|bad_words_ids|\w*_repo_id"
)
_HOW = (
    r"chunk_size_\w+|use_fused\w*|use_kernels?\w*|use_mambapy|pretraining_tp|mamba_chunk_size|chunk_size|"
    r"use_mamba_kernels|gradient_checkpointing|\w*upcast\w*|\w*fp32\w*|\w*float32\w*"
)
_LONG = (
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len\w*|max_window_layers|original_max\w*|seq_length|"
    r"max_sequence_length|model_max_length|floor_scale|attn_scale|attn_temperature_tuning"
)
_SPELT = r"layer_types|mlp_layer_types|\w*_layers_block_type|block_types|attention_types"
_PICTURES = (
    r"(min|max)_image_size|img_max_token_num|max_vit_seq_len|(min|max)_pixels|image_size|num_frames|max_source_\w+"
)
_ELSEWHERE = r"seconds_per_chunk|conv_chunksize|n_window_infer|text_hidden_size|out_hidden_size|mask_\w+|apply_spec_\w+"
INERT: Mapping[str, str] = {
    _IDS: "an id of a token: it names one that a batch may lack",
    _GENERATION: "acts while generating",
    _RETURNED: "says what else is returned",
    _NAMED: "names or describes, or belongs to another head",
    _HOW: "says how something is computed, not what",
    _LONG: "acts beyond the lengths that a tiny model is run on",
    _PICTURES: "is for the processor, or for pictures larger than a tiny model is given",
    _ELSEWHERE: "repeats another size, or acts on sounds that a tiny model is not given",
    _SPELT: "spells out what other fields say",
    r"\w+_config|sub_configs": "a configuration of its own",
}
"""Fields that are not judged, by name, and why."""
_OUTER = {"tie_word_embeddings": "acts in the text model by itself: of the whole model the outer one is read"}
"""Fields of a configuration within another one that are not judged."""
NAMES = {
    "hidden_act": "relu", "hidden_activation": "relu", "activation_function": "relu", "act_fn": "relu",
    "projector_hidden_act": "relu", "activation": "relu", "feed_forward_proj": "relu", "hidden_activation_fn": "relu",
}  # fmt: skip
"""Choices by the name of their field."""
OPEN: Mapping[str, Any] = {
    "sliding_window": 3, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 0.5, "logit_scale": 0.5,
    "attention_chunk_size": 3, "router_z_loss_coef": 0.5, "clip_qkv": 0.05, "query_pre_attn_scalar": 64,
}  # fmt: skip
"""Values for fields that are left open."""
TOGETHER: Mapping[str, tuple[dict[str, Any], ...]] = {
    "tie_word_embeddings": ({"text_config.tie_word_embeddings": False},),
    "sliding_window": (
        {"use_sliding_window": True, "max_window_layers": 0, "layer_types": None},
        {"use_sliding_window": True, "max_window_layers": 64, "layer_types": None},
        {"layer_types": None},
    ),
    "use_sliding_window": (
        {"sliding_window": 3, "max_window_layers": 0, "layer_types": None},
        {"sliding_window": 3, "max_window_layers": 64, "layer_types": None},
    ),
    "sliding_window_pattern": ({"layer_types": None, "sliding_window": 3},),
    "num_hidden_layers": ({"layer_types": None},),
    "intermediate_size_mlp": ({"interleave_moe_layer_step": 2, "moe_layers": None}, {"moe_layers": [1]}),
    "router_aux_loss_coef": ({"output_router_logits": True},),
    "router_z_loss_coef": ({"output_router_logits": True},),
    "aux_loss_alpha": ({"output_router_logits": True},),
    "mlp_only_layers": ({"decoder_sparse_step": 1},),
    "decoder_sparse_step": ({"mlp_only_layers": []},),
    "intermediate_size": (
        {"mlp_only_layers": [0]},
        {"decoder_sparse_step": 2},
        {"first_k_dense_replace": 1},
        {"mlp_layer_types": ["dense", "sparse"]},
    ),
}
"""What a field needs beside it to act, in the same configuration."""


def implementation(target: Mapping[str, Any]) -> Runner:
    """The knobs of ``target["family"]``. LookupError with the reason where it has no tiny model."""
    return Runner(knobs(causal.loaded(str(target["family"]))))


def knobs(family: Family) -> Knobs:
    """Each field of the configurations of a tiny model, by dotted name, with other values to try."""
    model = family.build(0)
    told = model.config.to_dict()
    settings: dict[str, Sequence[Any]] = {}
    inert: dict[str, str] = {}
    for path, value in _fields(model.config):
        last, inner = path.rpartition(".")[2], path.partition(".")[2]
        reason = _inert(last) or _OUTER.get(inner, "") or _unseen(family, model, path)
        if reason:
            inert[path] = reason
        elif others := tuple(_others(path.rpartition(".")[2], value)):
            settings[path] = (value, *others)
    spelt = [path for path, value in _fields(model.config) if isinstance(value, list | tuple)]
    together = {path: [*_declared_beside(path), _unspelt(path, spelt)] for path in settings}

    def build(**changes: Any) -> Any:
        return _built(model, told, {name: value for name, value in changes.items()
                                    if name not in settings or value is not settings[name][0]})  # fmt: skip

    return Knobs(build=build, settings=settings, batches=_batches(family, model), together=together, inert=inert,
                 tolerant=True)  # fmt: skip


def _declared_beside(path: str) -> list[dict[str, Any]]:
    return [_beside(path, more) for more in TOGETHER.get(path.rpartition(".")[2], ())]


def _unspelt(path: str, spelt: Sequence[str]) -> dict[str, Any]:
    """The same configuration without the lists that a field may have been spelt out into."""
    head = path.rpartition(".")[0]
    return {name: None for name in spelt if name.rpartition(".")[0] == head and name != path}


def _beside(path: str, more: Mapping[str, Any]) -> dict[str, Any]:
    head = path.rpartition(".")[0]
    return {f"{head}.{name}" if head else name: value for name, value in more.items()}


def _unseen(family: Family, model: Any, path: str) -> str:
    """Why a field has nothing to act on: the family is given text alone, or no sound, and it is not of that part."""
    needs = {"vision_config": "image", "video_config": "video", "audio_config": "audio"}
    part = path.partition(".")[0]
    lone = not family.modalities and model.config.get_text_config() is not model.config
    if (lone and part != "text_config") or (needs.get(part, "") and needs[part] not in family.modalities):
        return "the tiny model is given no such content"
    return ""


def _inert(name: str) -> str:
    return next((reason for pattern, reason in INERT.items() if re.fullmatch(pattern, name)), "")


def _fields(config: Any, head: str = "") -> Iterator[tuple[str, Any]]:
    """Fields that the class of a configuration declares itself, of those within it too."""
    declared = _declared(type(config))
    told = config.to_dict()
    for name, value in told.items():
        inner = getattr(config, name, None)
        path = f"{head}.{name}" if head else name
        if hasattr(inner, "to_dict") and hasattr(inner, "model_type"):
            yield from _fields(inner, path)
        elif name in {"rope_parameters", "rope_scaling"} and isinstance(value, Mapping):
            yield from ((f"{path}.{key}", item) for key, item in value.items() if isinstance(item, float | int))
        elif name in declared:
            yield path, value


def _declared(kind: type) -> set[str]:
    """Names in the annotations of a configuration's own classes, the general one left out; or of its initialiser."""
    import inspect

    found: set[str] = set()
    for base in kind.__mro__:
        if base.__name__ in {"PretrainedConfig", "PreTrainedConfig"} or base is object:
            break
        found |= set(vars(base).get("__annotations__", {}))
        own = vars(base).get("__init__")
        found |= set(inspect.signature(own).parameters) if own is not None else set()
    return found


def _others(name: str, value: Any) -> Iterator[Any]:
    """Other values of a field: a few, of which some may not build."""
    if value is None:
        yield from (OPEN[name],) if name in OPEN else ()
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        narrow = (3,) if "window" in name or "chunk" in name else ()
        tries = (*narrow, value + 1, 2 * value, value // 2)
        yield from dict.fromkeys(item for item in tries if item != value and item >= 0)
    elif isinstance(value, float):
        small = "drop" in name or "jitter" in name or "prob" in name
        yield from (0.5,) if small and value != 0.5 else (2 * value + 0.1, value / 2 + 0.01, value / 1000)
    elif isinstance(value, str) and name in NAMES:
        yield "gelu" if value == NAMES[name] else NAMES[name]
    elif isinstance(value, list | tuple) and value and all(isinstance(item, int) for item in value) and name.endswith(
        ("indexes", "indices", "index", "interval", "layers")
    ):  # fmt: skip
        yield list(value[:-1])


def _built(model: Any, told: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    fields = copy.deepcopy(dict(told))
    for path, value in changes.items():
        *heads, last = path.split(".")
        inner = fields
        for head in heads:
            inner = inner[head]
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = value
    config = type(model.config).from_dict(fields)
    made = type(model)(config)
    if hasattr(made, "set_experts_implementation"):
        made.set_experts_implementation("eager")
    return made.float()


def _batches(family: Family, model: Any) -> list[dict[str, Any]]:
    """Texts, and pictures where the family takes them; with labels, so that the loss is looked at."""
    kinds: list[tuple[str, ...]] = [TEXTS]
    if "image" in family.modalities:
        kinds.append((SEEN,))
    kinds += [(sample,) for kind, sample in FURTHER.items() if kind in family.modalities]
    made = [dict(family.batch(model, samples, padding="right", seed=0)) for samples in kinds]
    return [{**batch, "labels": batch["input_ids"]} for batch in made]
