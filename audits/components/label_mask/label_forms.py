"""How functions that label conversations are called, and how their answers become one batch."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from assay.audits.components.label_mask import templates, vocabularies
from assay.audits.terms import Form, Outputs
from assay.reference.label_mask import IGNORE

if TYPE_CHECKING:
    from assay.audits.components.label_mask.conversations import Turn
    from assay.audits.components.label_mask.labels import Inputs

Row = Mapping[str, Any]
CHATML = {"template": "qwen2_5"}


def messages(inputs: Inputs, sample: int) -> list[dict[str, Any]]:
    """A conversation as transformers has it; images are PIL images in the content and nowhere else."""
    made = []
    for turn in inputs.conversations[sample]:
        pictures = [{"type": "image", "image": _pil(inputs.images[place])} for place in turn.images]
        half = len(turn.text) // 2 if turn.split else 0
        first, words = ([{"type": "text", "text": text}] for text in (turn.text[:half], turn.text[half:]))
        content: Any = [*words, *pictures] if turn.late else [*pictures, *words]
        content = [*first, *pictures, *words] if turn.split else content
        said = {"role": turn.role, "content": content if inputs.parts or pictures else turn.text}
        made.append({**said, "tool_calls": _tool_calls(turn)} if turn.calls else said)
    return made


def _tool_calls(turn: Turn) -> list[dict[str, Any]]:
    """Calls as chat templates take them: the arguments are a dict."""
    return [
        {"type": "function", "function": {"name": call.tool, "arguments": json.loads(call.arguments)}}
        for call in turn.calls
    ]


def pictures(inputs: Inputs, sample: int) -> list[Any]:
    """The images of a conversation, in reading order."""
    return [_pil(inputs.images[place]) for turn in inputs.conversations[sample] for place in turn.images]


def _pil(image: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(image.cpu().numpy())


def encoder(inputs: Inputs, sample: int, processor: Any) -> Callable[[str], Mapping[str, Any]]:
    """What turns a rendering into ids and offsets, each image into as many placeholders as it has tokens."""
    found = pictures(inputs, sample)
    if not found:
        return lambda text: processor.tokenizer([text], add_special_tokens=False, return_offsets_mapping=True)
    return lambda text: processor(text=[text], images=found, add_special_tokens=False, return_offsets_mapping=True)


def by_reference(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    """The signature of ``assay.reference.label_mask.label``."""
    rows, processor = [], inputs.processor()
    for sample in range(len(inputs.conversations)):
        given = messages(inputs, sample)
        before = copy.deepcopy(given)
        found = function(
            given, processor, end_of_turn=inputs.style.end_of_turn, train=inputs.train, straddling="train",
            placeholders={name: processor.tokenizer.convert_tokens_to_ids(name) for name in PLACEHOLDERS},
            encode=encoder(inputs, sample, processor),
        )  # fmt: skip
        rows.append({
            "input_ids": found.input_ids, "labels": found.labels, "share": found.share, "untouched": given == before,
        })  # fmt: skip
    return stacked(rows, inputs.side)


PLACEHOLDERS = (templates.IMAGE, templates.VIDEO)
"""What stands for an image or a video, and is never trained."""


def stacked(rows: Sequence[Row], side: str) -> Outputs:
    """Rows of unequal lengths as one batch. Ids at padding are -1: no law reads them."""
    ids = [flat(row["input_ids"]) for row in rows]
    labels = [flat(row["labels"]) for row in rows]
    for place, (own, label) in enumerate(zip(ids, labels, strict=True)):
        if own.shape != label.shape:
            raise ValueError(f"conversation {place}: {len(own)} ids and {len(label)} labels")
    longest = max(map(len, ids), default=0)
    found = {
        "input_ids": _padded(ids, longest, side, -1),
        "labels": _padded(labels, longest, side, IGNORE),
        "attention_mask": _padded([torch.ones_like(own) for own in ids], longest, side, 0),
    }
    for name, dtype in (("share", torch.float64), ("untouched", torch.bool)):
        if all(name in row for row in rows):
            found[name] = torch.tensor([row[name] for row in rows], dtype=dtype)
    return found


def _padded(rows: Sequence[Tensor], length: int, side: str, fill: int) -> Tensor:
    wide = torch.full((len(rows), length), fill, dtype=torch.int64)
    for row, values in zip(wide, rows, strict=True):
        row[length - len(values) if side == "left" else 0 :][: len(values)] = values
    return wide


def flat(values: Any) -> Tensor:
    """A row as int64 [S]: a list, or a tensor of one row or of a batch of one. ValueError for anything else."""
    found = torch.as_tensor(values, dtype=None if len(values) else torch.int64)
    if found.ndim == 2 and len(found) == 1:
        found = found[0]
    if found.ndim != 1 or found.is_floating_point():
        raise ValueError(f"expected a row of whole numbers, got the shape {tuple(found.shape)} of {found.dtype}")
    return found.to(torch.int64)


def _each(ask: Callable[[Any, int, list[dict[str, Any]]], Row], inputs: Inputs) -> Outputs:
    """Conversation by conversation. One that the function leaves out, by None or by no tokens, is not in the batch."""
    rows, untouched, processor = [], [], inputs.processor()
    for sample in range(len(inputs.conversations)):
        given = messages(inputs, sample)
        before = copy.deepcopy(given)
        found = ask(processor, sample, given)
        untouched.append(given == before)
        if found is not None and len(flat(found["input_ids"])):
            rows.append({name: found[name] for name in ("input_ids", "labels")})
    return {**stacked(rows, inputs.side), "untouched": torch.tensor(untouched)}


def _messages(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return _each(lambda processor, _sample, given: function(given, processor.tokenizer), inputs)


def _sample(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return _each(lambda processor, _sample, given: function(given, processor), inputs)


def _mask(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    def ask(processor: Any, sample: int, given: list[dict[str, Any]]) -> Row:
        text = processor.apply_chat_template(given, tokenize=False)
        ids = torch.tensor(encoder(inputs, sample, processor)(text)["input_ids"][0])
        return {"input_ids": ids.clone(), "labels": function(ids, processor.tokenizer)}

    return _each(ask, inputs)


def _collator(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    several = range(len(inputs.conversations))
    examples = [{"messages": messages(inputs, sample), "images": pictures(inputs, sample)} for sample in several]
    before = copy.deepcopy(examples)
    batch = function(examples, inputs.processor())
    found = {name: torch.as_tensor(batch[name]) for name in ("input_ids", "labels", "attention_mask")}
    return {**found, "untouched": torch.tensor([now == then for now, then in zip(examples, before, strict=True)])}


def _all(*reasons: Callable[[Inputs], str | None]) -> Callable[[Inputs], str | None]:
    """The first reason that there is."""
    return lambda inputs: next((found for reason in reasons if (found := reason(inputs))), None)


def _text_only(inputs: Inputs) -> str | None:
    return "the form is for text without images" if inputs.pictured else None


def _only(train: str) -> Callable[[Inputs], str | None]:
    """A form without a choice of what is trained cannot be asked for another."""
    return lambda inputs: None if inputs.train == train else "the form has no choice of what is trained"


def _untyped(inputs: Inputs) -> str | None:
    typed = any(word in inputs.texts for word in PLACEHOLDERS)
    return "a processor refuses a placeholder that is typed" if typed else None


def _legible(inputs: Inputs) -> str | None:
    """Ids alone do not tell a marker that somebody typed from the template's."""
    typed = next((marker for marker in (inputs.style.opening, inputs.style.end_of_turn) if marker in inputs.texts), "")
    return f"ids do not tell a {typed} that somebody typed from the template's" if typed else None


def _byte_level(inputs: Inputs) -> str | None:
    """What Qwen's markers are written into is not asked about vocabularies of another kind than Qwen's."""
    other = inputs.vocabulary in vocabularies.SENTENCE_PIECES
    return "the form has Qwen's markers, and byte-level vocabularies as Qwen's is" if other else None


def _fixed(form: Form, train: str = "assistant", **fixes: str) -> Form:
    """The form for functions that train one thing; ``fixes`` are further fields that they take for granted."""
    more = [_byte_level] if "template" in fixes else []
    accepts = _all(_only(train), form.accepts, *more)
    return dataclasses.replace(form, accepts=accepts, fixes={"train": train, **fixes})


def _told(form: Form, summary: str) -> Form:
    """The form for functions with one more parameter: what is trained."""

    def call(function: Callable[..., Any], inputs: Inputs) -> Outputs:
        return form.call(partial(function, train=inputs.train), inputs)

    return dataclasses.replace(
        form, name=f"{form.name}-train", summary=summary, parameters=(*form.parameters, "train"), call=call
    )


MESSAGES = Form(
    name="messages",
    summary="function(messages, tokenizer) -> {input_ids, labels} of one conversation: the assistant's turns",
    parameters=("messages", "tokenizer"),
    call=_messages,
    accepts=_text_only,
)
SAMPLE = Form(
    name="sample",
    summary="function(messages, processor) -> {input_ids, labels} of one conversation with images",
    parameters=("messages", "processor"),
    call=_sample,
    accepts=_untyped,
)
COLLATOR = Form(
    name="collator",
    summary="function(examples, processor) -> padded {input_ids, labels, attention_mask}; an example has messages "
    "and images",
    parameters=("examples", "processor"),
    call=_collator,
    accepts=_untyped,
)
_ALONE = (MESSAGES, SAMPLE, COLLATOR)


def _named(form: Form, suffix: str, what: str, **fixes: str) -> Form:
    """A form that is asked for by its name only: its signature is that of another."""
    named = dataclasses.replace(form, name=f"{form.name}-{suffix}", summary=f"as {form.name}, {what}", parameters=())
    return _fixed(named, **fixes)


_VARIANTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("chatml", "for a function with Qwen's markers written into it: Qwen's template and no other", CHATML),
    ("last", "for a function that trains the last answer alone", {"train": "last"}),
    ("all", "for a function that trains everything but placeholders", {"train": "all"}),
)
FORMS = (
    Form(
        name="assay",
        summary="label(messages, tokenizer, *, end_of_turn, train, placeholders, straddling, encode) -> a record with "
        "input_ids and labels",
        parameters=("messages", "tokenizer", "end_of_turn", "train"),
        call=by_reference,
    ),
    *map(_fixed, _ALONE),
    _told(MESSAGES, "function(messages, tokenizer, train) -> the same; train is 'assistant', 'last' or 'all'"),
    _told(COLLATOR, "function(examples, processor, train) -> the same; train is 'assistant', 'last' or 'all'"),
    Form(
        name="mask",
        summary="function(input_ids, tokenizer) -> labels [S] of one conversation, found by Qwen's role markers",
        parameters=("input_ids", "tokenizer"),
        call=_mask,
        accepts=_all(_only("assistant"), _legible, _byte_level),
        fixes={"train": "assistant", **CHATML},
    ),
    *(_named(form, suffix, what, **fixes) for form in _ALONE for suffix, what, fixes in _VARIANTS),
)
