"""NeMo Automodel 0.7.0 trains on no token of an answer that begins with a line break, for Qwen's processors.

It looks for the ids of "assistant" and of one line break. Two line breaks are one token of Qwen's vocabulary, as in the
little one here, so that the template's and the answer's own become another id. Exit status 1: the bug shows.
"""

import sys
from types import SimpleNamespace

import torch
from nemo_automodel.components.datasets.vlm.collate_fns import build_labels_from_template
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MARKS = ("<|im_start|>", "<|im_end|>")


def tokenizer():
    """A byte-level vocabulary with one merge: of two line breaks, as 271 of Qwen's."""
    vocabulary = {sign: place for place, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    line = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("\n")[0][0]
    vocabulary[line * 2] = len(vocabulary)
    made = Tokenizer(models.BPE(vocabulary, [(line, line)]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def main() -> int:
    """Print what is trained on, and say whether the bug shows."""
    words = tokenizer()
    processor = type("Qwen2_5_VLProcessor", (SimpleNamespace,), {})(tokenizer=words)
    trained = {}
    for answer in ("yes", "\nyes"):
        text = f"<|im_start|>user\nwell?<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        encoded = words(text, return_offsets_mapping=True)
        labels = build_labels_from_template(torch.tensor([encoded["input_ids"]]), [[]], processor)[0]
        trained[answer] = words.decode(labels[labels >= 0])
        place = text.index("assistant\n") + len("assistant\n")
        end = text.rindex("<|im_end|>") + len("<|im_end|>")
        kept = [first < end and last > place for first, last in encoded["offset_mapping"]]
        right = words.decode([own for own, keep in zip(encoded["input_ids"], kept, strict=True) if keep])
        print(f"answer {answer!r}: trained on {trained[answer]!r}; by the places of characters {right!r}")
    return 1 if trained["yes"] == "yes<|im_end|>" and not trained["\nyes"] else 0


if __name__ == "__main__":
    sys.exit(main())
