"""What a pipeline's model, processor and tokenizer say of its tokens: placeholders, padding, ends of turns."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from assay.audits.pipeline_heads import frames, heads
from assay.audits.pipeline_samples import attempted
from assay.audits.pipeline_talks import plain
from assay.audits.pipeline_trainer import smoothing
from assay.audits.pipelines import Pipeline
from assay.reference.mrope_rules import RULES

KINDS = ("image", "video", "audio")
MARKED = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")
"""Rules that write the frames of a video with the image's placeholder, between two markers."""
_TOKENS = {
    "image": ("<|image_pad|>", "<image>", "<|image|>", "<image_soft_token>", "[IMG]"),
    "video": ("<|video_pad|>", "<video>", "<|video|>"),
    "audio": ("<|audio_pad|>", "<|AUDIO|>", "<audio>"),
}
_PROBE = "assayprobe"
_PROCESSORS = {
    "Qwen2VLProcessor": "qwen2_vl",
    "Qwen2_5_VLProcessor": "qwen2_5_vl",
    "Qwen3VLProcessor": "qwen3_vl",
    "Glm4vProcessor": "glm4v",
    "Glm46VProcessor": "glm46v",
}
"""The rule that a processor's family has, where no model tells it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Plain data about a pipeline, for laws that see no object of it.

    ``placeholders`` are token ids by kind, ``markers`` those around a video where it needs them; ``pad`` is None where
    there is no padding token; ``ends`` are the tokens that may end an assistant's turn, with their texts, ``end``
    the text of that which the chat template writes, empty where it is not known;
    ``trims`` says that the chat template cuts the blanks around a text; ``rule`` is a name of
    ``RULES``, or empty; ``spatial_merge`` and ``ids_per_second`` are what the configuration says. ``needs_types`` says
    that the family finds its images by ``mm_token_type_ids``. ``model`` is the class, empty without one. ``heads`` are
    what the chat template writes right before a message of each role, ``frames`` what it writes of a picture but for
    its placeholder, as plain text. ``smoothing`` is the label smoothing of a ``Trainer``,
    ``trained_by`` says that there is one, ``begins`` is the token that texts begin with. ``normalised`` says that the
    image processor is set to normalise.
    """

    placeholders: dict[str, int]
    markers: dict[str, int]
    pad: int | None
    special: tuple[int, ...]
    ends: dict[str, str]
    end: str
    trims: bool
    rule: str
    spatial_merge: int | None
    ids_per_second: float | None
    needs_types: bool
    model: str
    texts: bool
    heads: dict[str, str]
    frames: tuple[str, ...]
    smoothing: float
    trained_by: bool
    begins: str
    normalised: bool


def facts(pipeline: Pipeline) -> Facts:
    """Read off the model's configuration first, then the processor, then the tokenizer."""
    config = getattr(pipeline.model, "config", None)
    rule = _rule(config, pipeline.processor)
    return Facts(
        placeholders=dict(_placeholders(pipeline, config)),
        markers=dict(_markers(config)) if rule in MARKED else {},
        pad=getattr(pipeline.tokenizer, "pad_token_id", None),
        special=tuple(sorted(_special(pipeline.tokenizer))),
        ends={str(token): str(pipeline.tokenizer.decode([token])) for token in _ends(pipeline)},
        end="" if (end := _written_end(pipeline)) is None else str(pipeline.tokenizer.decode([end])),
        trims=_trims(pipeline),
        rule=rule,
        spatial_merge=_merge(config, pipeline.processor),
        ids_per_second=_per_second(config),
        needs_types=_needs_types(pipeline),
        model="" if pipeline.model is None else type(pipeline.model).__name__,
        texts=pipeline.tokenizer is not None,
        heads=heads(partial(attempted, partial(_templated, pipeline))),
        frames=frames(partial(attempted, partial(_templated, pipeline)), _texts_of(pipeline, config)),
        smoothing=smoothing(pipeline.trainer),
        trained_by=pipeline.trainer is not None,
        begins=plain(str(getattr(pipeline.tokenizer, "bos_token", None) or "")),
        normalised=bool(getattr(getattr(pipeline.processor, "image_processor", None), "do_normalize", False)),
    )


def _templated(pipeline: Pipeline, talk: list[dict[str, Any]], *, prompt: bool = False) -> str:
    owners = (pipeline.processor, pipeline.tokenizer)
    owner: Any = next((owner for owner in owners if getattr(owner, "chat_template", None)), None)
    return "" if owner is None else str(owner.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt))


def _texts_of(pipeline: Pipeline, config: Any) -> list[str]:
    """What placeholders decode to."""
    if pipeline.tokenizer is None:
        return []
    return [str(pipeline.tokenizer.decode([token])) for _, token in _placeholders(pipeline, config)]


def _special(tokenizer: Any) -> set[int]:
    """Control tokens: those that the tokenizer names, and those that were added as such."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    named = {int(token) for token in getattr(tokenizer, "all_special_ids", ())}
    return named | {int(place) for place, token in added.items() if getattr(token, "special", False)}


def _rule(config: Any, processor: Any) -> str:
    """Of the configuration's type; of the processor's class only where there is no model."""
    name = str(getattr(config, "model_type", "")) if config is not None else _processors_rule(processor)
    return name if name in RULES else ""


def _processors_rule(processor: Any) -> str:
    names = (kind.__name__ for kind in type(processor).__mro__)
    return next((_PROCESSORS[name] for name in names if name in _PROCESSORS), "")


def _placeholders(pipeline: Pipeline, config: Any) -> Iterator[tuple[str, int]]:
    for kind in KINDS:
        found = _configured(config, kind)
        if found is None:
            found = _spoken(pipeline, kind)
        if found is not None:
            yield kind, found


def _configured(config: Any, role: str) -> int | None:
    from assay.audits.families.adapt import SPECIAL, setting

    found = setting(config, *SPECIAL[role]) if config is not None else None
    return None if found is None else int(found)


def _spoken(pipeline: Pipeline, kind: str) -> int | None:
    """By the attributes of a processor, or the usual names of such tokens in the vocabulary."""
    for owner in (pipeline.processor, pipeline.tokenizer):
        found = getattr(owner, f"{kind}_token_id", None)
        if isinstance(found, int):
            return found
    names = set(map(str, getattr(pipeline.tokenizer, "all_special_tokens", ())))
    names |= set(map(str, getattr(pipeline.tokenizer, "get_added_vocab", dict)()))
    token = next((name for name in _TOKENS[kind] if name in names), None)
    return None if token is None else int(pipeline.tokenizer.convert_tokens_to_ids(token))


def _markers(config: Any) -> Iterator[tuple[str, int]]:
    for role in ("video_start", "video_end"):
        found = _configured(config, role)
        if found is not None:
            yield role, found


def _merge(config: Any, processor: Any) -> int | None:
    from assay.audits.families.adapt import setting

    found = setting(config, "spatial_merge_size") if config is not None else None
    if found is None:
        found = getattr(getattr(processor, "image_processor", None), "merge_size", None)
    return None if found is None else int(found)


def _per_second(config: Any) -> float | None:
    from assay.audits.families.adapt import setting

    return setting(config, "tokens_per_second", "position_id_per_seconds") if config is not None else None


def _needs_types(pipeline: Pipeline) -> bool:
    """Whether the model's ``get_rope_index`` asks for token types; the processor's word where there is no model."""
    if pipeline.model is None:
        return bool(getattr(pipeline.processor, "return_mm_token_type_ids", False))
    found = (getattr(module, "get_rope_index", None) for module in pipeline.model.modules())
    return any("mm_token_type_ids" in inspect.signature(method).parameters for method in found if method)


def _ends(pipeline: Pipeline) -> list[int]:
    """The end of text, and what the chat template writes after an assistant's text; any control token without one."""
    tokenizer = pipeline.tokenizer
    if tokenizer is None:
        return []
    written = _written_end(pipeline)
    if written is None:
        return sorted(_special(tokenizer))
    last = getattr(tokenizer, "eos_token_id", None)
    return sorted({written, *([last] if isinstance(last, int) else [])})


def _written_end(pipeline: Pipeline) -> int | None:
    """The control token that the chat template writes right after an assistant's text."""
    owners = [owner for owner in (pipeline.processor, pipeline.tokenizer) if getattr(owner, "chat_template", None)]
    found = (_after_an_answer(owner, pipeline.tokenizer) for owner in owners if pipeline.tokenizer is not None)
    return next((token for token in found if token is not None), None)


def _after_an_answer(owner: Any, tokenizer: Any) -> int | None:
    rest = _rendered(owner, _PROBE).partition(_PROBE)[2]
    if not rest:
        return None
    first = tokenizer(rest, add_special_tokens=False)["input_ids"][0]
    return int(first) if first in _special(tokenizer) else None


def _trims(pipeline: Pipeline) -> bool:
    wide = f" {_PROBE} "
    owners = [owner for owner in (pipeline.processor, pipeline.tokenizer) if getattr(owner, "chat_template", None)]
    return any(_PROBE in (said := _rendered(owner, wide)) and wide not in said for owner in owners)


def _rendered(owner: Any, answer: str) -> str:
    """A short conversation by a chat template; empty where it cannot be rendered."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    parts = [{**item, "content": [{"type": "text", "text": item["content"]}]} for item in talk]
    for form in (talk, parts):
        try:
            rendered = str(owner.apply_chat_template(form, tokenize=False))
        except Exception:  # noqa: BLE001, S112 - a foreign template may take one form of content only
            continue
        if answer.strip() in rendered:
            return rendered
    return ""
