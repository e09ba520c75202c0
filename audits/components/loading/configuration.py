"""The fields of a model's configuration that say what it computes, flat, and what may differ between two of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

INERT = re.compile(
    r"_name_or_path|name_or_path|architectures|transformers_version|(torch_)?dtype|use_cache|_?attn_implementation\w*|"
    r"_?experts_implementation\w*|output_\w+|return_dict|use_return_dict|torchscript|auto_map|task_specific_params|"
    r"id2label|label2id|num_labels|problem_type|gradient_checkpointing|initializer_\w+|finetuning_task|chunk_size_\w+|"
    r"(pad|bos|eos|decoder_start)_token_id|\w*dropout\w*|\w*drop_path\w*|layerdrop|\w*jitter\w*|\w*aux_loss\w*|"
    r"\w*_pdrop|_commit_hash|peft_\w+|unsloth_\w+|base_model_tp_plan|pretraining_tp|use_mm_proj"
)
"""Fields that name, describe or act while training or generating only: no score in inference depends on them."""


def fields(config: Any) -> dict[str, Any] | None:
    """The fields by dotted name, without :data:`INERT` ones; None where a model has no configuration."""
    told = getattr(config, "to_dict", None)
    if config is None or not (callable(told) or isinstance(config, Mapping)):
        return None
    flat = dict(_flat("", told() if callable(told) else config))
    return {name: value for name, value in flat.items() if not _off(name, flat)}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not INERT.fullmatch(str(key)):
                yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, plain(value)


def plain(value: Any) -> Any:
    """As JSON has it: tuples as lists, whole fractions as whole numbers, all else as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _off(name: str, flat: Mapping[str, Any]) -> bool:
    """Whether a field says how something is done that the configuration turns off."""
    head, _, last = name.rpartition(".")
    switch = f"{head}.use_sliding_window" if head else "use_sliding_window"
    return last in {"sliding_window", "max_window_layers"} and flat.get(switch) is False
