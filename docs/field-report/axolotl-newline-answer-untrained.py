"""Axolotl trains on nothing of an answer that begins with a line break, for images and Qwen's template.

The start of a turn is searched for as the tokens of ``<|im_start|>assistant`` and one line break. Qwen's vocabulary has
a token of its own for two line breaks, so before such an answer the marker is not there. Right are the answer and its
end of turn, as for the same answer without the line break. Exit status 1: the bug shows.
"""

from types import SimpleNamespace

from axolotl.processing_strategies import Qwen2VLProcessingStrategy
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BREAK = "\u010a"  # how byte-level vocabularies write a line break
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {letter: number for number, letter in enumerate([*letters, BREAK + BREAK])}
inner = Tokenizer(models.BPE(vocabulary, merges=[(BREAK, BREAK)]))  # as in Qwen's: id 198 is one, 271 two
together = pre_tokenizers.Split(
    Regex(r"[\r\n]+|[^\r\n]+"), "isolated"
)  # line breaks in a row, as Qwen's pattern has it
inner.pre_tokenizer = pre_tokenizers.Sequence([together, pre_tokenizers.ByteLevel(False, use_regex=False)])
inner.decoder = decoders.ByteLevel()
inner.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
strategy = Qwen2VLProcessingStrategy(SimpleNamespace(tokenizer=tokenizer))


def trained(answer):
    """What the labels of a conversation keep, as text."""
    text = f"<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    ids = tokenizer(text, return_tensors="pt").input_ids
    labels = strategy.process_labels(ids)[0]
    return tokenizer.decode(labels[labels != -100])


broken = False
for answer in ("fine", "fine\n\nreally", "\nfine", "\n\nfine"):
    found, wanted = trained(answer), f"{answer}<|im_end|>"
    print(f"answer {answer!r}: trained on {found!r}, right is {wanted!r}")
    broken |= "fine" not in found
raise SystemExit(int(broken))
