"""A real processor of transformers around one of our tokenizers: what a user's collator is called with."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from assay.audits.components.label_mask import templates, vocabularies

PATCH, MERGE = 4, 2


def tokenizer(vocabulary: str, template: str, *, pad: str = "own", side: str = "right") -> Any:
    """A fast tokenizer with a chat template.

    ``pad`` is ``own``, a token of no other use, ``eos``, or ``zero``, the letter whose id is 0.
    A new one for each call, so that nobody's settings are another's; but to copy a real vocabulary takes half a second.
    """
    return (_kept if vocabulary == "qwen" else _tokenizer)(vocabulary, template, pad, side)


def _tokenizer(vocabulary: str, template: str, pad: str, side: str) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    style = templates.TEMPLATES[template]
    untyped: Any = PreTrainedTokenizerFast
    made = untyped(
        tokenizer_object=vocabularies.backend(vocabulary),
        eos_token=style.eos,
        pad_token={"own": templates.PAD, "eos": style.eos, "zero": "!"}[pad],
        padding_side=side,
        chat_template=style.source,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    if style.bos:
        start = (style.bos, made.convert_tokens_to_ids(style.bos))
        made.backend_tokenizer.post_processor = TemplateProcessing(single=f"{style.bos} $A", special_tokens=[start])
    return made


_kept = lru_cache(maxsize=8)(_tokenizer)


def processor(vocabulary: str, template: str, *, pad: str = "own", side: str = "right") -> Any:
    """Qwen2.5-VL's own processor, with images in patches of 4 x 4 pixels, four of which make a token."""
    from transformers import Qwen2_5_VLProcessor

    untyped: Any = Qwen2_5_VLProcessor
    lenient = type(
        untyped.__name__, (untyped,), {"check_argument_for_proper_class": lambda _self, _name, part: type(part)}
    )
    inner = tokenizer(vocabulary, template, pad=pad, side=side)
    return lenient(image_processor=_image_processor(), tokenizer=inner, chat_template=inner.chat_template)


@lru_cache(maxsize=1)
def _image_processor() -> Any:
    """The family's image processor that does without torchvision, with resizing off."""
    import transformers

    name = "Qwen2VLImageProcessor"
    exported = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    cls = getattr(import_module(exported.__module__), exported.__name__)
    return cls(do_resize=False, patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2)
