"""Vocabularies as SentencePiece makes them, trained on the spot: blanks are letters, and rare letters are bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

BLANK, UNKNOWN = "\u2581", "<unk>"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""The pieces that stand for a byte of a letter that has no piece of its own."""
PREFIXED: Mapping[str, str] = {"llama": "sections", "unigram": "start"}
"""Where a vocabulary writes a blank that the text has not: at its start, or at that of each section between special
tokens too."""
_SIZE = 160


def llama(lines: tuple[str, ...]) -> Any:
    """Llama 2's kind: byte pairs, a blank in front of each section, no piece for the end of a line."""
    from tokenizers import normalizers

    pieces, merges = _trained(tuple(line.replace("\n", " ") for line in lines))
    prefixed = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    return _pairs(pieces, merges, prefixed)


def gemma(lines: tuple[str, ...]) -> Any:
    """Gemma's kind: byte pairs, no blank in front, ends of lines that merge with each other."""
    from tokenizers import normalizers

    pieces, merges = _trained(lines)
    ends = [("\n", "\n"), ("\n\n", "\n")]
    more = tuple("".join(end) for end in ends)
    return _pairs((*pieces, *more), (*ends, *merges), normalizers.Replace(" ", BLANK))


def unigram(lines: tuple[str, ...]) -> Any:
    """T5's kind: the likeliest of all ways to cut a word, a blank in front of the text, runs of ends of lines."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces, _ = _trained(lines)
    likely = [(piece, -2.0 - place / len(pieces)) for place, piece in enumerate((*pieces, "\n\n"))]
    scores = [(UNKNOWN, 0.0), *((piece, -40.0) for piece in BYTES), *likely]
    made: Any = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="first")
    made.decoder = _decoder()
    return made


def spelling(piece: str) -> bytes:
    """The bytes that a piece stands for."""
    return bytes([BYTES.index(piece)]) if piece in BYTES else piece.replace(BLANK, " ").encode()


@lru_cache(maxsize=4)
def _trained(lines: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Pieces, of letters first, and the merges that make them; a blank stands at the beginning of a piece alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=_SIZE, initial_alphabet=[BLANK], show_progress=False)
    made.train_from_iterator([line for line in lines for _ in range(3)], trainer)
    model = json.loads(made.to_str())["model"]
    return tuple(sorted(model["vocab"], key=model["vocab"].get)), tuple((a, b) for a, b in model["merges"])


def _pairs(pieces: tuple[str, ...], merges: tuple[tuple[str, str], ...], normalizer: Any) -> Any:
    from tokenizers import Tokenizer, models

    vocabulary = {piece: token for token, piece in enumerate((UNKNOWN, *BYTES, *pieces))}
    model = models.BPE(vocabulary, list(merges), unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True)
    made: Any = Tokenizer(model)
    made.normalizer = normalizer
    made.decoder = _decoder()
    return made


def _decoder() -> Any:
    from tokenizers import decoders

    return decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])
