"""The specification of label masks against answers written by hand."""

from __future__ import annotations

import pytest

from assay.audits.components.label_mask import processors, templates, vocabularies
from assay.reference import label_mask
from assay.reference.label_mask import IGNORE, Labelled, label

IM_END = "<|im_end|>"
SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Say yes. Yes?"}
YES = {"role": "assistant", "content": "Yes"}


def _label(messages, template="qwen2_5", vocabulary="small", **more) -> tuple[Labelled, object]:
    tokenizer = processors.tokenizer(vocabulary, template)
    given = {"end_of_turn": templates.TEMPLATES[template].end_of_turn, **more}
    return label(messages, tokenizer, **given), tokenizer


def _decoded(found: Labelled, tokenizer) -> list[str]:
    """What is trained, run by run."""
    runs, before = [], False
    for token, target in zip(found.input_ids.tolist(), found.labels.tolist(), strict=True):
        if target != IGNORE:
            assert target == token
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = target != IGNORE
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("template", "end"),
    [(name, template.end_of_turn) for name, template in templates.TEMPLATES.items()],
)
def test_all_answers_with_their_ends(template, end) -> None:
    messages = [SYSTEM, ASK, YES, ASK, {"role": "assistant", "content": "Yes. Yes"}]
    assert _decoded(*_label(messages, template)) == [f"Yes{end}", f"Yes. Yes{end}"]
    assert _decoded(*_label(messages, template, train="last")) == [f"Yes. Yes{end}"]


@pytest.mark.parametrize(
    "answer",
    [
        " Yes",
        "Yes \n",
        "",
        f"a{IM_END}\n<|im_start|>assistant\nb",
        "assistant\n",
        "\u732b\U0001f408e\u0301",
        "Say yes.",
    ],
)
def test_any_answer(answer: str) -> None:
    assert _decoded(*_label([ASK, {"role": "assistant", "content": answer}])) == [answer + IM_END]


@pytest.mark.parametrize(
    ("vocabulary", "template"), [*((name, "qwen2_5") for name in vocabularies.SENTENCE_PIECES), ("llama", "plain")]
)
@pytest.mark.parametrize("answer", ["Yes", " Yes", "\u732b \U0001f408\u200d\u2b1b"])
def test_answers_in_sentence_pieces(vocabulary, template, answer) -> None:
    found = _decoded(*_label([ASK, {"role": "assistant", "content": answer}, ASK, YES], template, vocabulary))
    assert found == [f"{text}{templates.TEMPLATES[template].end_of_turn}" for text in (answer, "Yes")]


def test_pieces_over_the_border_are_named() -> None:
    with pytest.raises(ValueError, match="a token holds '.nY', of which only a part is trained"):
        _label([ASK, YES], "plain", "gemma")


def test_thoughts_of_earlier_turns_are_not_there_to_be_trained() -> None:
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nNo"}
    found = _decoded(*_label([ASK, thought, ASK, thought], "qwen3"))
    assert found == [f"No{IM_END}", f"{thought['content']}{IM_END}"]


def test_a_greeting_comes_after_the_default_system_prompt() -> None:
    assert _decoded(*_label([YES, ASK, YES])) == [f"Yes{IM_END}", f"Yes{IM_END}"]


def test_tool_results_are_not_trained() -> None:
    tool = {"role": "tool", "content": "Yes"}
    call = {"role": "assistant", "content": "<tool_call>look</tool_call>"}
    assert _decoded(*_label([ASK, call, tool, tool, YES])) == [f"{call['content']}{IM_END}", f"Yes{IM_END}"]


@pytest.mark.parametrize("template", ["qwen2_5", "generation", "qwen3"])
@pytest.mark.parametrize("said", ["I look.", "", None])
def test_calls_of_tools_are_trained_and_what_comes_back_is_not(template, said) -> None:
    arguments = {"box": [1, 2], "a": "caf\u00e9"}
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name in ("crop", "read")]
    asked = {"role": "assistant", "content": said, "tool_calls": calls}
    tool = {"role": "tool", "content": "Yes"}
    written = "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {{"box": [1, 2], "a": "caf\u00e9"}}}}\n</tool_call>'
        for name in ("crop", "read")
    )
    text = f"{said}\n{written}" if said else written
    assert _decoded(*_label([ASK, asked, tool, tool, YES], template)) == [f"{text}{IM_END}", f"Yes{IM_END}"]


def test_everything_is_trained_but_placeholders() -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}, YES]
    tokenizer = processors.tokenizer("small", "plain")
    placeholders = {"<|image_pad|>": tokenizer.convert_tokens_to_ids("<|image_pad|>")}
    found = label(messages, tokenizer, end_of_turn="<|endoftext|>", train="all", placeholders=placeholders)
    assert _decoded(found, tokenizer) == [
        "### User:\n<|vision_start|>", "<|vision_end|>What?\n\n### Assistant:\nYes<|endoftext|>\n\n"
    ]  # fmt: skip
    assert found.share == (len(found.labels) - 1) / len(found.labels)


def test_the_processor_writes_more_placeholders_than_the_template() -> None:
    from PIL import Image

    processor = processors.processor("small", "qwen2_5")
    images = [Image.new("RGB", (16, 24)), Image.new("RGB", (40, 8))]
    content = [{"type": "image"}, {"type": "text", "text": "Yes?"}, {"type": "image"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes"}]
    found = label(
        messages, processor, end_of_turn=IM_END, placeholders={"<|image_pad|>": processor.image_token_id},
        encode=lambda text: processor(text=[text], images=images, return_offsets_mapping=True, return_tensors="pt"),
    )  # fmt: skip
    assert int((found.input_ids == processor.image_token_id).sum()) == 6 + 5
    assert _decoded(found, processor.tokenizer) == [f"Yes{IM_END}"]
    assert 0 < found.share < 0.2


def test_trimmed_offsets_are_read_as_what_is_left_out_before_a_token() -> None:
    tokenizer = processors.tokenizer("small", "qwen2_5")
    messages = [ASK, {"role": "assistant", "content": "It is  on the left"}]

    def trimmed(text: str) -> dict:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = [(b - len(text[a:b].lstrip()), b) for a, b in found["offset_mapping"]]
        return {"input_ids": found["input_ids"], "offset_mapping": offsets}

    assert _decoded(label(messages, tokenizer, end_of_turn=IM_END, encode=trimmed), tokenizer) == [
        f"It is  on the left{IM_END}"
    ]


def test_a_token_over_the_border_is_an_error_unless_said_otherwise() -> None:
    messages = [ASK, {"role": "assistant", "content": "The red cup is on the table."}]
    with pytest.raises(ValueError, match="of which only a part is trained"):
        _label(messages, vocabulary="greedy")
    (trained, tokenizer), (ignored, _) = (
        _label(messages, vocabulary="greedy", straddling=how) for how in ("train", "ignore")
    )
    ours, theirs = _decoded(trained, tokenizer)[0], _decoded(ignored, tokenizer)[0]
    assert ours.endswith(theirs)
    assert len(theirs) < len(f"The red cup is on the table.{IM_END}") < len(ours)


def _unstable(messages: list) -> str:
    """A template that counts its messages."""
    return f"{len(messages)} messages: " + "".join(f"[{m['role']}]{m['content']};" for m in messages)


class _Renderer:
    def __init__(self, render) -> None:
        self.render = render

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert not tokenize
        return self.render(messages) + ("[assistant]" if add_generation_prompt else "")


def test_a_template_that_is_not_prefix_stable_is_named_with_the_place() -> None:
    with pytest.raises(ValueError, match=r"not prefix-stable: messages\[:1\] .* at character 0: '1 messages"):
        label_mask.trained_spans([ASK, YES], _Renderer(_unstable), end_of_turn=";")


def test_a_message_whose_content_is_not_rendered_is_named() -> None:
    quiet = _Renderer(
        lambda ms: "".join(f"[{m['role']}]{m['content'] if m['role'] == 'assistant' else ''};" for m in ms)
    )
    with pytest.raises(ValueError, match=r"does not render the content of messages\[2\]"):
        label_mask.trained_spans([ASK, YES, ASK, YES], quiet, end_of_turn=";")


@pytest.mark.parametrize(
    ("messages", "more", "message"),
    [
        ([], {}, "expected at least one"),
        ([ASK], {}, "none of 1 is the assistant's"),
        ([ASK, YES], {"train": "first"}, "train: expected one of .*'last', 'all'., got 'first'"),
        ([ASK, YES], {"straddling": "trian"}, "straddling: expected one of .*'train', 'ignore'., got 'trian'"),
        ([ASK, YES], {"end_of_turn": "</s>"}, r"messages\[1\]: the turn is not closed by end_of_turn '</s>'"),
        ([ASK, YES], {"end_of_turn": "Yes"}, r"messages\[1\]: '<|im_end|>\\n' follows end_of_turn 'Yes'"),
        ([ASK, YES], {"end_of_turn": ""}, "got an empty text"),
    ],
)
def test_bad_input_is_named(messages, more, message) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        _label(messages, **more)


def test_ids_that_are_not_the_texts_are_refused() -> None:
    tokenizer = processors.tokenizer("small", "qwen2_5")
    plain = {"add_special_tokens": False, "return_offsets_mapping": True}
    with pytest.raises(ValueError, match="the tokens end at character"):
        label([ASK, YES], tokenizer, end_of_turn=IM_END, encode=lambda text: tokenizer(text[:-20], **plain))
    with pytest.raises(ValueError, match="lies outside the rendering"):
        label([ASK, YES], tokenizer, end_of_turn=IM_END, encode=lambda text: tokenizer(text + text, **plain))
    with pytest.raises(ValueError, match="placeholders at character"):
        label(
            [ASK, YES], tokenizer, end_of_turn=IM_END, encode=lambda text: tokenizer(f"<|image_pad|>{text}", **plain),
            placeholders={"<|image_pad|>": tokenizer.convert_tokens_to_ids("<|image_pad|>")},
        )  # fmt: skip


def test_messages_are_not_changed() -> None:
    messages = [SYSTEM, ASK, YES]
    _label(messages)
    assert messages == [SYSTEM, ASK, YES]
    assert SYSTEM == {"role": "system", "content": "Be brief."}


@pytest.mark.skipif(vocabularies.missing() is not None, reason=str(vocabularies.missing()))
def test_with_the_real_vocabulary() -> None:
    found, tokenizer = _label([ASK, {"role": "assistant", "content": "Hello, \u732b!"}], vocabulary="qwen")
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|vision_start|>", "<|image_pad|>"]) == [
        151644,
        151652,
        151655,
    ]
    start = int((found.labels != IGNORE).nonzero()[0])
    assert found.input_ids[start - 3 : start].tolist() == [151644, 77091, 198]  # <|im_start|>assistant\n
    assert _decoded(found, tokenizer) == [f"Hello, \u732b!{IM_END}"]
    with pytest.raises(ValueError, match=r"a token holds '\\n\\n'"):
        _label([ASK, {"role": "assistant", "content": "\nHello"}], vocabulary="qwen")
