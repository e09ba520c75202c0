"""Pairs of loading paths whose tokenizers, templates or image processors differ."""

from __future__ import annotations

from typing import Any

from assay.audits.components.loading.path_own import against
from assay.audits.components.loading.path_wrong import faulty

END = "<|im_end|>"


@faulty("tokens")
def other_padding_token() -> dict[str, Any]:
    """Inference uses the end of a turn as padding token.

    Effect: what is masked as padding in one script is a token to be learnt in the other.
    """

    def change(_made: Any, words: Any) -> None:
        words.tokenizer.pad_token = END

    return against(change)


@faulty("tokens", "encodes")
def added_tokens_of_training_only() -> dict[str, Any]:
    """Training has a token for boxes, inference loads the tokenizer of the base model.

    Effect: what was one token is several, none of which was trained.
    """

    def training() -> tuple[Any, Any]:
        from assay.audits.components.loading.path_own import plain

        made, words = plain()
        words.tokenizer.add_tokens(["<box>"])
        return made, words

    return against(lambda _made, _words: None, before=training)


@faulty("tokens")
def cut_at_another_end() -> dict[str, Any]:
    """Inference keeps the end of a long text, training its beginning.

    Effect: a long prompt loses its picture in one script and its question in the other.
    """

    def change(_made: Any, words: Any) -> None:
        words.tokenizer.truncation_side = "left"

    return against(change)


@faulty("encodes")
def lower_case_in_one_path() -> dict[str, Any]:
    """The tokenizer of inference has a normaliser that writes everything small.

    Effect: names and codes are other tokens than those that were trained; all settings agree.
    """

    def change(_made: Any, words: Any) -> None:
        from tokenizers import normalizers

        words.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    return against(change)


@faulty("template")
def template_lost() -> dict[str, Any]:
    """The chat template was set in the training script and not saved.

    Effect: prompts are written by whatever the inference script puts in its place.
    """

    def change(_made: Any, words: Any) -> None:
        words.chat_template = None
        words.tokenizer.chat_template = None

    return against(change)


@faulty("template")
def template_with_a_default_system_prompt() -> dict[str, Any]:
    """The template of inference writes a system prompt where a conversation has none.

    Effect: every prompt begins with words that training never had.
    """

    def change(_made: Any, words: Any) -> None:
        first = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
        words.chat_template = first + words.chat_template

    return against(change)


@faulty("template")
def prompt_without_a_line_break() -> dict[str, Any]:
    """The template of inference ends a prompt without the line break that training wrote after the role.

    Effect: the first token of every answer is predicted from a place that training never had.
    """

    def change(_made: Any, words: Any) -> None:
        words.chat_template = words.chat_template.replace("assistant\n{% endif %}", "assistant{% endif %}")

    return against(change)


@faulty("pictures")
def other_limit_of_pixels() -> dict[str, Any]:
    """Training allows half as many pixels as inference.

    Effect: pictures have another number of tokens, and what is in them another size.
    """

    def change(_made: Any, words: Any) -> None:
        size = dict(words.image_processor.size)
        words.image_processor.size = type(words.image_processor.size)(
            **{**size, "longest_edge": 2 * size["longest_edge"]}
        )

    return against(change)


@faulty("pictures")
def other_means() -> dict[str, Any]:
    """Inference normalises with one half, training with the means of the family.

    Effect: colours are shifted, and no shape shows it.
    """

    def change(_made: Any, words: Any) -> None:
        words.image_processor.image_mean = [0.5, 0.5, 0.5]
        words.image_processor.image_std = [0.5, 0.5, 0.5]

    return against(change)


@faulty("pictures")
def channels_turned() -> dict[str, Any]:
    """The image processor of inference reads pictures as OpenCV has them, blue first.

    Effect: red is blue; all settings agree.
    """

    def change(_made: Any, words: Any) -> None:
        inner = words.image_processor

        class Turned(type(inner)):  # type: ignore[misc]
            def __call__(self, images: Any, *args: Any, **more: Any) -> Any:
                return super().__call__(list(map(_blue_first, images)), *args, **more)

        inner.__class__ = type(type(inner).__name__, (Turned,), {})

    return against(change)


def _blue_first(image: Any) -> Any:
    from PIL import Image

    red, green, blue = image.split()
    return Image.merge("RGB", (blue, green, red))
