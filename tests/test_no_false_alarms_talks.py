"""Right pipelines whose rows are not their conversations word by word: cut, windowed, or written by other templates."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from assay.audits import registry
from assay.audits.components.pipeline.own import IGNORED, TEMPLATE, Collator, Talks, padded, text_model
from assay.audits.components.pipeline.wrong import FAMILY, model
from assay.audits.pipeline_run import Runner
from assay.audits.pipelines import Pipeline, checked
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Verdict

LAWS = ("hidden", "messages", "answers", "kept", "alone", "placement", "pictures")
HEAD, END = "<|im_start|>assistant\n", "<|im_end|>"
WORDS = ("the", "red", "cup", "on", "table", "is", "left", "of", "a", "tree", "where", "birds", "sing", "umbrella")
Talk = list[dict[str, Any]]
Row = tuple[list[int], list[int]]


def _tokenizer(template: str | None = TEMPLATE) -> Any:
    made = copy.deepcopy(Collator(FAMILY).processor.tokenizer)
    made.chat_template = template
    return made


def _talks(count: int = 6, *, turns: tuple[int, int] = (1, 4), seed: int = 1) -> list[dict[str, Talk]]:
    """Conversations of unequal lengths, every other with a system prompt; many answers are one short word."""
    draw, made = random.Random(seed), []
    for place in range(count):
        talk = [{"role": "system", "content": f"Be {_say(2, draw)}"}] if place % 2 == 0 else []
        for _ in range(draw.randint(*turns)):
            answer = draw.choice(["yes", "no", _say(4, draw), _say(8, draw)])
            talk += [{"role": "user", "content": f"{_say(draw.randint(2, 9), draw)}?"}]
            talk += [{"role": "assistant", "content": answer}]
        made.append({"messages": talk})
    return made


def _say(count: int, draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(count))


def _same(value: Any) -> Any:
    return value


class Text:
    """Conversations of text: ``prepare`` changes the messages first, ``cut`` the ids and labels at last."""

    def __init__(self, tokenizer: Any, prepare: Callable[[Talk], Talk] = _same, cut: Callable[[Row], Row] = _same):
        self.tokenizer, self.prepare, self.cut = tokenizer, prepare, cut

    def __call__(self, samples: list[dict[str, Talk]]) -> dict[str, torch.Tensor]:
        made = [self.one(sample["messages"]) for sample in samples]
        return padded(made, self.tokenizer.padding_side, self.tokenizer.pad_token_id)

    def one(self, talk: Talk) -> dict[str, torch.Tensor]:
        full = self.written(self.prepare(copy.deepcopy(talk)))
        encoded = self.tokenizer(full, add_special_tokens=False, return_offsets_mapping=True)
        spans, place = [], 0
        while (start := full.find(HEAD, place)) >= 0:
            place = full.index(END, start) + len(END)
            spans.append((start + len(HEAD), place))
        several = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        kept = [token if any(a <= x < y <= b for a, b in spans) else IGNORED for token, (x, y) in several]
        ids, labels = self.cut((encoded["input_ids"], kept))
        row = torch.tensor([ids])
        return {"input_ids": row, "labels": torch.tensor([labels]), "attention_mask": torch.ones_like(row)}

    def written(self, talk: Talk) -> str:
        return str(self.tokenizer.apply_chat_template(talk, tokenize=False))


class ByHand(Text):
    """Writes turns itself: the tokenizer has no chat template."""

    def written(self, talk: Talk) -> str:
        return "".join(f"<|im_start|>{item['role']}\n{item['content']}{END}\n" for item in talk)


def _pipeline(collator: Text, dataset: list[Any] | None = None) -> Pipeline:
    return Pipeline(dataset=dataset or _talks(), collator=collator, tokenizer=collator.tokenizer, model=text_model(576))


def _windowed(length: int, *, from_left: bool, **kind: Any) -> Pipeline:
    """Whole turns are left out until a conversation fits."""
    tokenizer = _tokenizer()

    def fitting(talk: Talk) -> Talk:
        system = [item for item in talk if item["role"] == "system"]
        rest = talk[len(system) :]
        while len(rest) > 2 and len(tokenizer(text.written([*system, *rest]))["input_ids"]) > length:
            rest = rest[2:] if from_left else rest[:-2]
        return [*system, *rest]

    text = Text(tokenizer, prepare=fitting)
    return _pipeline(text, _talks(8, **kind))


def _prompt(labels: list[int]) -> int:
    return next(place for place, label in enumerate(labels) if label != IGNORED)


def _clipped_left(row: Row) -> Row:
    start = max(0, _prompt(row[1]) - 40)
    return row[0][start:], row[1][start:]


def _clipped_right(row: Row) -> Row:
    start = _prompt(row[1])
    return (row[0][:40] + row[0][start:], row[1][:40] + row[1][start:]) if start > 40 else row


PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TRIMS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}<|im_end|>\n{% endfor %}" + PROMPT
SILENT = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
) + PROMPT
THOUGHTLESS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content and loop.index0 < ns.last %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
) + PROMPT
REASONS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
) + PROMPT
CALLS = (
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n</tool_response>{% else %}"
    "{% if m.content %}{{ m.content }}\n{% endif %}{% for c in (m.tool_calls or []) %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments|tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
) + PROMPT


def _each(change: Callable[[dict[str, Any]], Any], roles: tuple[str, ...] = ("assistant",)) -> list[Any]:
    """Conversations whose messages of some roles were changed in place."""
    made = _talks()
    for sample in made:
        for item in sample["messages"]:
            if item["role"] in roles:
                change(item)
    return made


def _calling(said: str | None) -> Pipeline:
    """The assistant calls a tool, with a word before or without any."""
    made = _talks(turns=(1, 2))
    call = {"type": "function", "function": {"name": "find", "arguments": {"q": "cup"}}}
    for sample in made:
        sample["messages"] += [
            {"role": "user", "content": "look it up"},
            {"role": "assistant", "content": said, "tool_calls": [call]},
            {"role": "tool", "content": "on the table"},
            {"role": "assistant", "content": "it is on the table"},
        ]
    return _pipeline(Text(_tokenizer(CALLS)), made)


def _ended(more: dict[str, str], place: int | None, kept: slice) -> Pipeline:
    """One message more in each sample, which the collator leaves out."""
    made = _talks()
    for sample in made:
        talk = [item for item in sample["messages"] if item["role"] != "system"]
        talk.insert(len(talk) if place is None else place, more)
        sample["messages"] = talk
    return _pipeline(Text(_tokenizer(), prepare=lambda talk: talk[kept]), made)


def _pieces() -> Pipeline:
    """A vocabulary of pieces that changes letters before it looks: small, composed, a blank before each word."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made: Any = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<pad>", "<|im_start|>", END]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator([*WORDS * 8, "system user assistant yes be"], trainer)
    untyped: Any = PreTrainedTokenizerFast
    tokenizer = untyped(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", eos_token=END, chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    shouted = _each(lambda item: item.update(content=f"{item['content'].title()} ünï ①"), ("user", "system"))
    return _pipeline(Text(tokenizer), shouted)


class OfMarks(Collator):
    """Texts in which a mark stands for an image, images beside them."""

    def __call__(self, samples: Any) -> dict[str, torch.Tensor]:
        return self.labelled([self.one(self._parts(sample)) for sample in samples])

    def _parts(self, sample: Any) -> Talk:
        images, made = list(sample["images"]), []
        for item in sample["conversations"]:
            parts: list[dict[str, Any]] = []
            for place, said in enumerate(item["value"].split("<image>\n")):
                parts += [{"type": "image", "image": images.pop(0)}] if place else []
                parts += [{"type": "text", "text": said}] if said else []
            made.append({"role": {"human": "user", "gpt": "assistant"}.get(item["from"], "system"), "content": parts})
        return made


def _marked(sample: Any) -> dict[str, Any]:
    images, made = [], []
    for item in sample["messages"]:
        images += [part["image"] for part in item["content"] if part["type"] == "image"]
        said = "".join("<image>\n" if part["type"] == "image" else part["text"] for part in item["content"])
        made.append({"from": {"user": "human", "assistant": "gpt"}.get(item["role"], "system"), "value": said})
    return {"conversations": made, "images": images}


def _marks() -> Pipeline:
    own = OfMarks(FAMILY)
    samples = list(map(_marked, Talks(int(own.processor.image_processor.patch_size))))
    return Pipeline(dataset=samples, collator=own, processor=own.processor, model=model())


KIND: dict[str, str] = {"role": "system", "content": "be kind"}
RIGHT: dict[str, Callable[[], Pipeline]] = {
    "as it is": lambda: _pipeline(Text(_tokenizer())),
    "cut on the left": lambda: _pipeline(Text(_tokenizer(), cut=lambda row: (row[0][-70:], row[1][-70:]))),
    "cut on the right": lambda: _pipeline(Text(_tokenizer(), cut=lambda row: (row[0][:120], row[1][:120]))),
    "the oldest turns left out": lambda: _windowed(140, from_left=True),
    "the latest turns left out": lambda: _windowed(140, from_left=False),
    "many turns left out": lambda: _windowed(110, from_left=True, turns=(1, 7), seed=5),
    "prompts cut on the left": lambda: _pipeline(Text(_tokenizer(), cut=_clipped_left), _talks(8, turns=(1, 1))),
    "prompts cut on the right": lambda: _pipeline(Text(_tokenizer(), cut=_clipped_right), _talks(8, turns=(1, 1))),
    "a template that trims": lambda: _pipeline(
        Text(_tokenizer(TRIMS)),
        _each(lambda item: item.update(content=f"  {item['content']} \n"), ("system", "user", "assistant")),
    ),
    "a template without system prompts": lambda: _pipeline(
        Text(_tokenizer(SILENT)), _each(lambda item: item.update(content="no"), ("system",))
    ),
    "thoughts of earlier turns left out": lambda: _pipeline(
        Text(_tokenizer(THOUGHTLESS)),
        _each(lambda item: item.update(content=f"<think>\nlet me see\n</think>\n\n{item['content']}")),
    ),
    "thoughts by their key": lambda: _pipeline(
        Text(_tokenizer(REASONS)), _each(lambda item: item.update(reasoning_content="let me see"))
    ),
    "a tool called without a word": lambda: _calling(None),
    "a tool called with a word": lambda: _calling("let me look"),
    "a system prompt of its own": lambda: _pipeline(
        Text(_tokenizer(), prepare=lambda talk: [KIND, *(item for item in talk)])
    ),
    "a last question left out": lambda: _ended({"role": "user", "content": "and that?"}, None, slice(None, -1)),
    "a greeting left out": lambda: _ended({"role": "assistant", "content": "how can I help?"}, 0, slice(1, None)),
    "no template": lambda: _pipeline(ByHand(_tokenizer(None))),
    "another tokenizer": _pieces,
    "marks of images": _marks,
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_row_is_not_accused(name: str, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    runner = Runner(checked(RIGHT[name]()))
    monkeypatch.setattr("assay.audits.resolve.implementation", lambda _target, _form: runner)
    candidate = Candidate(operation="pipeline.batch", name=name, target={}, trusted=True)
    report = audit(registry.operation("pipeline.batch"), candidate, Options(laws=LAWS))
    assert [(found.rule, found.case, found.message) for found in report.findings] == []
    assert report.verdict == Verdict.PASS
