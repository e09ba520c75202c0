"""Axolotl never trains the end of a turn, for images, where the padding token is the end token.

Its labels for images leave out every token that is the padding token. Where a tokenizer has no padding token, axolotl's
own loader takes the end token for it. Right is to leave out what is padding: the attention mask tells, and its
collator for texts goes by lengths. Exit status 1: the bug shows.
"""

import tempfile
from types import SimpleNamespace

from axolotl.loaders.tokenizer import load_tokenizer
from axolotl.processing_strategies import Qwen2VLProcessingStrategy
from axolotl.utils.collators.batching import DataCollatorForSeq2Seq
from axolotl.utils.dict import DictDefault
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, merges=[]))
inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
inner.decoder = decoders.ByteLevel()
inner.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")])
TALK = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nfine<|im_end|>\n"


def loaded(**known):
    """A tokenizer as axolotl loads it from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", **known).save_pretrained(folder)
        Qwen2Config().save_pretrained(folder)
        told = {"base_model": folder, "tokenizer_config": folder, "tokenizer_type": "PreTrainedTokenizerFast"}
        return load_tokenizer(DictDefault(told))


found = {}
for name, known in (("of its own", {"pad_token": "<|endoftext|>"}), ("none", {})):
    tokenizer = loaded(**known)
    ids = tokenizer(TALK, return_tensors="pt").input_ids
    labels = Qwen2VLProcessingStrategy(SimpleNamespace(tokenizer=tokenizer)).process_labels(ids)[0]
    found[name] = tokenizer.decode(labels[labels != -100])
    print(f"padding token {name} (loaded: {tokenizer.pad_token}): for images trained on {found[name]!r}")
    sample = {"input_ids": ids[0].tolist(), "labels": ids[0].tolist(), "attention_mask": [1] * ids.shape[1]}
    batch = DataCollatorForSeq2Seq(tokenizer)([dict(sample), {key: value[:5] for key, value in sample.items()}])
    kept = int((batch["labels"][0] == tokenizer.eos_token_id).sum())
    print(f"  the collator for texts keeps {kept} of {TALK.count('<|im_end|>')} end tokens")
raise SystemExit(int(found["none"] != found["of its own"]))
