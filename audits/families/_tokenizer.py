"""A small byte-level BPE tokenizer with a family's special tokens, trained on the spot from invented words."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

ORDINARY_TOKENS = 512
"""Size of the vocabulary before special tokens: 256 bytes and as many merges."""

END_OF_TEXT = "<|endoftext|>"


@lru_cache(maxsize=1)
def _trained() -> str:
    """The tokenizer without special tokens, as its own JSON. Its corpus is seeded: all processes train the same one."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    split = pre_tokenizers.Split(words, behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ORDINARY_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return str(tokenizer.to_str())


def _corpus() -> list[str]:
    """Sentences of 120 invented two-syllable words, the early ones more frequent, as in a natural text."""
    draw = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = ["".join(draw.choices(syllables, k=2)) for _ in range(120)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    return [" " + " ".join(draw.choices(words, weights, k=40)) for _ in range(200)]


@lru_cache(maxsize=64)
def tokenizer(special: tuple[str, ...], attributes: tuple[tuple[str, str], ...] = ()) -> Any:
    """A fast transformers tokenizer whose ids 512 and up are ``special``, in order.

    ``attributes`` names some of them (``image_token``), for processors that read them off the tokenizer. The first
    special token is the padding and the end of text.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer.from_str(_trained())
    base.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    untyped: Any = PreTrainedTokenizerFast
    fast = untyped(
        tokenizer_object=base,
        pad_token=special[0],
        eos_token=special[0],
        model_input_names=["input_ids", "attention_mask"],
    )
    for name, token in attributes:
        setattr(fast, name, token)
        setattr(fast, f"{name}_id", fast.convert_tokens_to_ids(token))
    return fast


@lru_cache(maxsize=64)
def single_token_words(fast: Any) -> tuple[str, ...]:
    """Words (with their leading space) that are one token each wherever they stand: what exact text lengths need."""
    ordinary = [token for token in fast.get_vocab() if token.startswith("Ġ") and token[1:].isalpha()]
    words = sorted(" " + token[1:] for token in ordinary if len(token) > 3 and token[1:].isascii())
    return tuple(word for word in words if len(fast.encode(word, add_special_tokens=False)) == 1)
