"""Right labels made otherwise are not accused: one rewrite or more for each call form."""

from __future__ import annotations

import pytest
import torch

from assay.audits import registry
from assay.audits.components.label_mask import drafts
from assay.audits.components.label_mask.labels import Inputs
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Outputs, Verdict

EXAMPLES = 4
IGNORE = -100
MARK = "\u241fhere\u241f"


PLACE = "<|image_pad|>"


def _spans(messages, renderer):
    """The rendering, and what is the assistant's in it: every answer is replaced by a mark, and what changed was it."""
    tokenizer = getattr(renderer, "tokenizer", renderer)
    whole = renderer.apply_chat_template(messages, tokenize=False)
    probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": MARK}]
    end = tokenizer.apply_chat_template(probe, tokenize=False).partition(MARK)[2].rstrip()
    spans = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            content = MARK if isinstance(message["content"], str) else [{"type": "text", "text": MARK}]
            other = [*messages[:place], {"role": "assistant", "content": content}, *messages[place + 1 :]]
            before, _, after = renderer.apply_chat_template(other, tokenize=False).partition(MARK)
            spans.append((len(before), len(whole) - len(after) + len(end)))
    if not spans:
        raise ValueError("nothing to train on")
    return whole, spans


def _hidden(tokenizer):
    return {tokenizer.convert_tokens_to_ids(name) for name in ("<|image_pad|>", "<|video_pad|>")}


def by_segments(messages, tokenizer):
    """The text cut at the borders of answers, each piece encoded by itself, and the ids of the pieces joined."""
    whole, spans = _spans(messages, tokenizer)
    ids, labels, at = [], [], 0
    for start, stop in [*spans, (len(whole), len(whole))]:
        for text, told in ((whole[at:start], False), (whole[start:stop], True)):
            own = tokenizer.encode(text, add_special_tokens=False)
            ids += own
            labels += [token if told and token not in _hidden(tokenizer) else IGNORE for token in own]
        at = stop
    return {"input_ids": ids, "labels": labels}


def by_offsets(messages, tokenizer):
    """The whole text encoded at once; a token that is not wholly the assistant's is left out."""
    whole, spans = _spans(messages, tokenizer)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    labels = _labelled(encoded["input_ids"], encoded["offset_mapping"], spans, _hidden(tokenizer))
    return {"input_ids": torch.tensor([encoded["input_ids"]]), "labels": torch.tensor([labels])}


def by_policy(messages, tokenizer, train):
    """The same, for any choice of what is trained."""
    whole, spans = _spans(messages, tokenizer)
    spans = {"assistant": spans, "last": spans[-1:], "all": [(0, len(whole))]}[train]
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    labels = _labelled(encoded["input_ids"], encoded["offset_mapping"], spans, _hidden(tokenizer))
    return {"input_ids": encoded["input_ids"], "labels": labels}


def _labelled(ids, offsets, spans, hidden):
    return [
        token if token not in hidden and any(a <= first < last <= b for a, b in spans) else IGNORE
        for token, (first, last) in zip(ids, offsets, strict=True)
    ]


def collator_by_expansion(examples, processor):
    """Placeholders written out by the sizes of the images, and spans moved by what that adds before them."""
    made, several = [], []
    for example in examples:
        whole, spans = _spans(example["messages"], processor)
        counts = [image.width * image.height // 64 for image in example["images"]]
        pieces = whole.split(PLACE)
        edges = [sum(map(len, pieces[: i + 1])) + i * len(PLACE) for i in range(len(counts))]
        grown = [(edge, (count - 1) * len(PLACE)) for edge, count in zip(edges, counts, strict=True)]
        made.append("".join(f"{piece}{PLACE * count}" for piece, count in zip(pieces, [*counts, 0], strict=True)))
        several.append([tuple(x + sum(more for edge, more in grown if edge < x) for x in span) for span in spans])
    tokenizer = processor.tokenizer
    batch = tokenizer(made, add_special_tokens=False, padding=True, return_offsets_mapping=True)
    rows = zip(batch["input_ids"], batch["offset_mapping"], several, batch["attention_mask"], strict=True)
    labels = []
    for ids, offsets, spans, mask in rows:
        own = _labelled(ids, offsets, spans, _hidden(tokenizer))
        labels.append([label if real else IGNORE for label, real in zip(own, mask, strict=True)])
    return {"input_ids": batch["input_ids"], "labels": labels, "attention_mask": batch["attention_mask"]}


def sample_by_expansion(messages, processor):
    """The same, of one conversation."""
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    images = [part["image"] for part in parts if part["type"] == "image"]
    return collator_by_expansion([{"messages": messages, "images": images}], processor)


VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def sample_without_markers(messages, processor):
    """The same, with the markers around images ignored as their placeholders are, in the assistant's turns too."""
    made = sample_by_expansion(messages, processor)
    hidden = {processor.tokenizer.convert_tokens_to_ids(name) for name in VISION}
    rows = zip(made["input_ids"][0], made["labels"][0], strict=True)
    return {"input_ids": made["input_ids"], "labels": [IGNORE if token in hidden else own for token, own in rows]}


def collator_of_everything(examples, processor):
    """All is trained but padding, placeholders and the markers around them."""
    batch = collator_by_expansion(examples, processor)
    ids = torch.tensor(batch["input_ids"])
    hidden = torch.tensor([processor.tokenizer.convert_tokens_to_ids(name) for name in VISION])
    kept = torch.tensor(batch["attention_mask"]).bool() & ~torch.isin(ids, hidden)
    return {**batch, "labels": ids.where(kept, IGNORE)}


def mask_by_decoding(input_ids, tokenizer):
    """Token by token: a turn opens with its marker, its role is what is written up to the end of the line."""
    labels = torch.full_like(input_ids, IGNORE)
    start, end = (tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>"))
    hidden = {tokenizer.convert_tokens_to_ids(name) for name in ("<|image_pad|>", "<|video_pad|>")}
    role, header, kept = "", False, 0
    for place, token in enumerate(input_ids.tolist()):
        if token == start:
            role, header = "", True
        elif header:
            role += tokenizer.decode([token])
            header = "\n" not in role
        elif role.startswith("assistant\n") and token not in hidden:
            labels[place] = token
            kept += 1
            role = "" if token == end else role
    if not kept:
        raise ValueError("nothing to train on")
    return labels


def nothing_wrong_each(inputs: Inputs) -> Outputs:
    """The faults' own form with no step replaced."""
    return drafts.each(inputs, lambda draft: draft.labels)


def cut_pair(input_ids, labels, max_length):
    """Plain slices, after a look at what they cut."""
    return cut_pair_side(input_ids, labels, max_length, "right")


def cut_pair_side(input_ids, labels, max_length, side):
    """An image that the cut falls into is left out whole; a sample without targets is refused."""
    ids = input_ids.tolist()
    keep = list(range(len(ids)))[:max_length] if side == "right" else list(range(len(ids)))[-max_length:]
    for first in [place for place, token in enumerate(ids) if token == 151_652]:
        last = ids.index(151_653, first)
        inside = [place for place in keep if first <= place <= last]
        if inside and len(inside) != last - first + 1:
            keep = [place for place in keep if place < first] if side == "right" else [p for p in keep if p > last]
    kept = torch.tensor(keep, dtype=torch.int64)
    if not (labels[kept] != IGNORE).any():
        raise ValueError("no target is left")
    return input_ids[kept], labels[kept]


def cut_to_lists(input_ids, labels, max_length, side):
    """The same, as lists."""
    return tuple(found.tolist() for found in cut_pair_side(input_ids, labels, max_length, side))


def pad_sequences(examples, pad_id, side):
    """PyTorch's own padding, each key by itself."""

    def padded(rows, fill):
        turned = [torch.as_tensor(row).flip(0) if side == "left" else torch.as_tensor(row) for row in rows]
        wide = torch.nn.utils.rnn.pad_sequence(turned, batch_first=True, padding_value=fill)
        return wide.flip(1) if side == "left" else wide

    ids = padded([example["input_ids"] for example in examples], pad_id)
    ones = [example.get("attention_mask", torch.ones(len(example["input_ids"]))).long() for example in examples]
    zeros = [example.get("token_types", torch.zeros(len(example["input_ids"]))).long() for example in examples]
    spans = []
    for row, example in enumerate(examples):
        ahead = ids.shape[1] - len(example["input_ids"]) if side == "left" else 0
        spans += [[row, int(a) + ahead, int(b) + ahead] for a, b in example.get("spans", [])]
    return {
        "input_ids": ids, "labels": padded([example["labels"] for example in examples], IGNORE),
        "attention_mask": padded(ones, 0), "token_types": padded(zeros, 0),
        "spans": torch.tensor(spans, dtype=torch.int64).reshape(-1, 3),
    }  # fmt: skip


def to_a_multiple_of_eight(features, tokenizer):
    """Longer rows than need be; nothing of optional keys that no sample has."""
    names = {"labels": IGNORE, "attention_mask": 0, "token_type_ids": 0, "input_ids": tokenizer.pad_token_id}
    width = -(-max(len(row["input_ids"]) for row in features) // 8) * 8
    batch = {}
    for name, fill in names.items():
        if name == "attention_mask" or name in features[0]:
            rows = [list(row.get(name, [1] * len(row["input_ids"]))) for row in features]
            pads = [[fill] * (width - len(row)) for row in rows]
            left = tokenizer.padding_side == "left"
            batch[name] = torch.tensor([p + r if left else r + p for p, r in zip(pads, rows, strict=True)])
    return batch


def stacked(features, tokenizer):
    """Rows of one length."""
    return {name: torch.tensor([row[name] for row in features]) for name in features[0]}


RIGHT = {
    "by_segments": ("label_mask.labels", "messages"),
    "by_offsets": ("label_mask.labels", "messages"),
    "by_policy": ("label_mask.labels", "messages-train"),
    "sample_by_expansion": ("label_mask.labels", "sample"),
    "sample_without_markers": ("label_mask.labels", "sample"),
    "collator_by_expansion": ("label_mask.labels", "collator"),
    "collator_of_everything": ("label_mask.labels", "collator-all"),
    "mask_by_decoding": ("label_mask.labels", "mask"),
    "nothing_wrong_each": ("label_mask.labels", ""),
    "cut_pair": ("label_mask.truncate", "pair"),
    "cut_pair_side": ("label_mask.truncate", "pair-side"),
    "cut_to_lists": ("label_mask.truncate", "pair-side"),
    "pad_sequences": ("label_mask.collate", "assay"),
    "to_a_multiple_of_eight": ("label_mask.collate", "features"),
    "stacked": ("label_mask.collate", "stacking"),
}


SCOPES = {"by_segments": {"vocabulary": "greedy"}}
"""Right for vocabularies that add no blank in front of what is encoded by itself."""


@pytest.mark.parametrize("name", RIGHT)
def test_a_harmless_rewrite_passes(name: str) -> None:
    operation, form = RIGHT[name]
    target = {"kind": "import", "ref": f"{__name__}:{name}", "operation": operation}
    scope = SCOPES.get(name, {})
    candidate = Candidate(operation=operation, name=name, form=form, target=target, scope=scope, trusted=True)
    report = audit(registry.operation(operation), candidate, Options(examples=EXAMPLES))
    found = [(f.rule, f.case, f.where, f.measured, f.limit, f.message) for f in report.findings]
    assert found == []
    assert report.verdict == Verdict.PASS


def test_each_signature_has_a_right_function() -> None:
    forms = [(name, form) for name in registry.operations() for form in registry.operation(name).forms]
    own = {(name, form.name) for name, form in forms if name.startswith("label_mask.") and form.parameters}
    references = {(name, "assay") for name in registry.operations()}
    assert own - set(RIGHT.values()) - references == {("label_mask.labels", "collator-train")}
