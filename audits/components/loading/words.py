"""What a tokenizer and a chat template do: settings, tokens, and their answers to probes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

SETTINGS = (
    "model_max_length", "truncation_side", "clean_up_tokenization_spaces", "split_special_tokens", "add_bos_token",
    "add_eos_token", "add_prefix_space", "do_lower_case",
)  # fmt: skip
"""Attributes of tokenizers that change what they return. The side of padding is the one that may differ."""
PROCESSOR = (
    "image_token", "video_token", "audio_token", "patch_size", "vision_feature_select_strategy",
    "num_additional_image_tokens", "image_seq_length", "image_seq_len", "tokens_per_tile", "tokens_per_frame",
)  # fmt: skip
"""Attributes of processors that say how many placeholders a picture becomes."""
TEXTS = (
    "", "a", " leading and trailing ", "The year 2024, 3.14 and 1,000,000.", "two\n\nlines\tand a tab",
    "Stra\u00dfe, na\u00efve, \u6771\u4eac, \U0001f600", "UPPER and lower", "it's , isn 't it ?",
)  # fmt: skip
"""Texts with what tokenizers treat in ways of their own; special tokens are added to these where they are known."""
MARKS = 60
"""So many special and added tokens are put into texts."""
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "looks",
            "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
        },
    }
]


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


_ASK, _ANSWER = _turn("user", "where is it?"), _turn("assistant", " left of the tree ")
_SEEN = _turn("user", [{"type": "image"}, {"type": "text", "text": "what is this?"}])
TALKS: Mapping[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a question": ([_ASK], {}),
    "a prompt": ([_ASK], {"add_generation_prompt": True}),
    "an answer": ([_ASK, _ANSWER], {}),
    "a system prompt": ([_turn("system", "be brief"), _ASK, _ANSWER], {}),
    "several turns": ([_ASK, _ANSWER, _turn("user", "and now?"), _turn("assistant", "")], {}),
    "a second prompt": ([_ASK, _ANSWER, _turn("user", "and now?")], {"add_generation_prompt": True}),
    "a picture": ([_SEEN, _turn("assistant", [{"type": "text", "text": "a boat"}])], {}),
    "a thought": ([_ASK, _turn("assistant", "<think>\nhm\n</think>\n\nleft")], {}),
    "an earlier thought": (
        [_ASK, _turn("assistant", "<think>\nhm\n</think>\n\nleft"), _turn("user", "sure?")],
        {"add_generation_prompt": True},
    ),
    "a tool": ([_ASK], {"tools": _TOOLS, "add_generation_prompt": True}),
    "a tool's answer": ([_ASK, _turn("assistant", "wait"), _turn("tool", "left"), _ANSWER], {}),
}
"""Conversations that templates treat in ways of their own."""


def attempt(call: Callable[[], Any]) -> Any:
    """What a call gives, or the kind of its error: two ways that refuse the same are alike."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - tokenizers and templates raise what they like
        return f"raises {type(error).__name__}"


def settings(tokenizer: Any, processor: Any) -> dict[str, Any]:
    """Attributes of the tokenizer, and of the processor around it."""
    found = {name: getattr(tokenizer, name) for name in SETTINGS if getattr(tokenizer, name, None) is not None}
    if processor is not tokenizer:
        found |= {name: getattr(processor, name) for name in PROCESSOR if getattr(processor, name, None) is not None}
    special = getattr(tokenizer, "special_tokens_map", None) or {}
    return {**found, **{name: _text(value) for name, value in special.items()}}


def _text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): str(item) for key, item in value.items()}
    return [str(item) for item in value] if isinstance(value, tuple | list) else str(value)


def vocabulary(tokenizer: Any) -> dict[str, Any]:
    """The id of each token, and of added ones how they are found in a text."""
    found: dict[str, Any] = dict(attempt(tokenizer.get_vocab)) if hasattr(tokenizer, "get_vocab") else {}
    names = ("special", "normalized", "lstrip", "rstrip", "single_word")
    for number, token in dict(getattr(tokenizer, "added_tokens_decoder", None) or {}).items():
        ways = [name for name in names if getattr(token, name, False)]
        found[str(token)] = f"{number} ({', '.join(ways) or 'ordinary'})"
    return found


def marks(*tokenizers: Any) -> list[str]:
    """The special and added tokens that any of them has."""
    found: dict[str, None] = {}
    for tokenizer in tokenizers:
        found |= dict.fromkeys(map(str, getattr(tokenizer, "all_special_tokens", None) or ()))
        found |= dict.fromkeys(map(str, (getattr(tokenizer, "added_tokens_decoder", None) or {}).values()))
    return list(found)


def encodings(tokenizer: Any, tokens: Sequence[str]) -> dict[str, Any]:
    """Ids of each probe with and without special tokens, and what those ids read as."""
    texts = [*TEXTS, *(f"a{token}b {token} c" for token in tokens[:MARKS])]
    found: dict[str, Any] = {}
    for text in texts:
        ids = attempt(partial(_ids, tokenizer, text))
        bare = attempt(partial(_ids, tokenizer, text, add_special_tokens=False))
        found[f"{text!r}"] = ids
        found[f"{text!r} without special tokens"] = bare
        if isinstance(bare, list):
            found[f"{text!r} read back"] = attempt(partial(tokenizer.decode, bare))
    return found


def _ids(tokenizer: Any, text: str, **more: Any) -> list[int]:
    return list(tokenizer(text, **more)["input_ids"])


def renderings(processor: Any, tokenizer: Any) -> dict[str, Any] | None:
    """What the chat template in force makes of each probe; None where there is none."""
    owner = next((item for item in (processor, tokenizer) if getattr(item, "chat_template", None)), None)
    if owner is None:
        return None
    return {
        name: attempt(partial(owner.apply_chat_template, copy.deepcopy(talk), tokenize=False, **more))
        for name, (talk, more) in TALKS.items()
    }
