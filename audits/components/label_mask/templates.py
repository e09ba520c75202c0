"""Chat templates in the styles that models come with, and the special tokens that they write."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
VISION = ("<|vision_start|>", "<|vision_end|>")
PAD, BOS = "<|pad|>", "<bos>"
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", *VISION, "<|vision_pad|>", IMAGE, VIDEO, "<start_of_turn>",
    "<end_of_turn>", PAD, BOS,
)  # fmt: skip
"""In the order of Qwen's own ids, so that the real vocabulary gives them the ids of the published models."""

_BODY = (
    "{%- macro body(content) -%}{%- if content is none -%}{%- elif content is string -%}{{- content -}}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- else -%}{{- part.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
_DEFAULT = (
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}{%- endif -%}"
)
_TOOL = (
    "{%- if message.role == 'tool' -%}"
    "{{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' -}}"
    "{{- '\n<tool_response>\n' -}}{{- body(message.content) -}}{{- '\n</tool_response>' -}}"
    "{{- '<|im_end|>\n' if loop.last or messages[loop.index0 + 1].role != 'tool' else '' -}}"
)
_CALLS = (
    "{%- macro calls(message) -%}{%- for call in message.tool_calls or [] -%}{%- set call = call.function or call -%}"
    "{{- '\n' if message.content or not loop.first else '' -}}"
    '{{- \'<tool_call>\n{"name": "\' ~ call.name ~ \'", "arguments": \' ~ (call.arguments | tojson) -}}'
    "{{- '}\n</tool_call>' -}}{%- endfor -%}{%- endmacro -%}"
)
_TURN = (
    "{{- '<|im_start|>' ~ message.role ~ '\n' -}}{{- body(message.content) -}}{{- calls(message) -}}"
    "{{- '<|im_end|>\n' -}}"
)
_CHATML = _BODY + _CALLS
_PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
_EACH, _END = "{%- for message in messages -%}", "{%- endif -%}{%- endfor -%}"
_MARKED = (
    "{%- elif message.role == 'assistant' -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- generation -%}{{- body(message.content) -}}{{- calls(message) -}}{{- '<|im_end|>' -}}"
    "{%- endgeneration -%}{{- '\n' -}}"
)
_THOUGHTLESS = (
    "{%- set state = namespace(last=-1) -%}{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}{%- set state.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
)
_ANSWER = (
    "{%- elif message.role == 'assistant' -%}{%- set text = body(message.content) -%}"
    "{%- if '</think>' in text and loop.index0 < state.last -%}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{{- '<|im_start|>assistant\n' -}}{{- text -}}{{- calls(message) -}}{{- '<|im_end|>\n' -}}"
)
_GEMMA = (
    "{%- set lead = body(messages[0].content) ~ '\n\n' if messages[0].role == 'system' else '' -%}"
    "{%- set first = 1 if lead else 0 -%}"
    "{%- for message in messages -%}{%- if message.role != 'system' -%}"
    "{{- '<start_of_turn>' ~ ('model' if message.role == 'assistant' else 'user') ~ '\n' -}}"
    "{{- lead if loop.index0 == first else '' -}}{{- body(message.content) | trim -}}{{- '<end_of_turn>\n' -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"
)
_PLAIN = (
    "{%- for message in messages -%}{%- if message.role == 'assistant' -%}"
    "{{- '### Assistant:\n' -}}{{- body(message.content) -}}{{- '<|endoftext|>\n\n' -}}{%- else -%}"
    "{{- '### ' ~ message.role | capitalize ~ ':\n' -}}{{- body(message.content) -}}{{- '\n\n' -}}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '### Assistant:\n' -}}{%- endif -%}"
)


@dataclass(frozen=True, kw_only=True)
class Template:
    """``source`` in Jinja; ``end_of_turn`` is what closes the assistant's turn, ``eos`` the tokenizer's end of text.

    ``marked``: the assistant's text stands in ``{% generation %}``. ``thoughts``: those of earlier turns are left out.
    ``header``: what opens the assistant's turn, ``opening`` what opens any. ``bos``: the template writes it at the
    beginning, and the tokenizer too unless it is told to add no special tokens.
    """

    source: str
    end_of_turn: str = "<|im_end|>"
    eos: str = "<|im_end|>"
    marked: bool = False
    thoughts: bool = False
    header: str = "<|im_start|>assistant\n"
    opening: str = "<|im_start|>"
    bos: str = ""

    @property
    def calling(self) -> bool:
        """Whether it writes the calls of tools."""
        return "tool_calls" in self.source


TEMPLATES = {
    "qwen2_5": Template(source=_CHATML + _DEFAULT + _EACH + _TOOL + "{%- else -%}" + _TURN + _END + _PROMPT),
    "generation": Template(
        source=_CHATML + _DEFAULT + _EACH + _TOOL + _MARKED + "{%- else -%}" + _TURN + _END + _PROMPT, marked=True
    ),
    "qwen3": Template(
        source=_CHATML + _THOUGHTLESS + _EACH + _TOOL + _ANSWER + "{%- else -%}" + _TURN + _END + _PROMPT, thoughts=True
    ),
    "gemma": Template(
        source=BOS + _BODY + _GEMMA, end_of_turn="<end_of_turn>", eos="<|endoftext|>", header="<start_of_turn>model\n",
        opening="<start_of_turn>", bos=BOS,
    ),
    "plain": Template(
        source=_BODY + _PLAIN, end_of_turn="<|endoftext|>", eos="<|endoftext|>", header="### Assistant:\n",
        opening="### ",
    ),
}  # fmt: skip
"""Qwen's with a default system prompt; the same with the assistant's text marked; one that leaves out the thoughts of
earlier turns. All three write calls of tools, and the answers of several in one turn. Gemma's begins with a token that
its tokenizer adds too, and its end of turn is not its end of text; the last is without special tokens but the end."""
