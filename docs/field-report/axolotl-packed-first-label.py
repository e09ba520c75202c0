"""Axolotl's multipack collator trains the last token of a sample to predict the first of the next.

It does where that has a label, as in samples of which everything is trained on. Right is no label at the first
token of a sample in a row: alone, nothing predicts it; transformers' own packing collator writes -100 there, and so do
the labels of the samples each alone, shifted. Exit status 1: the bug shows.
"""

from axolotl.utils.collators.batching import V2BatchSamplerDataCollatorForSeq2Seq
from tokenizers import Tokenizer, models
from transformers import DataCollatorWithFlattening, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(40)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")
samples = [
    {"input_ids": own, "labels": own, "attention_mask": [1] * len(own), "position_ids": list(range(len(own)))}
    for own in ([11, 12, 13], [21, 22, 23, 24], [31, 32])
]
row = V2BatchSamplerDataCollatorForSeq2Seq(tokenizer)([dict(one) for one in samples])
other = DataCollatorWithFlattening()([{name: one[name] for name in ("input_ids", "labels")} for one in samples])


def pairs(labels, ids):
    """What the shifted loss trains: each token and what it is to predict."""
    wanted = zip(ids.tolist()[:-1], labels.tolist()[1:], strict=True)
    return {(given, label) for given, label in wanted if label != -100}


alone = {(one["input_ids"][at], one["input_ids"][at + 1]) for one in samples for at in range(len(one["input_ids"]) - 1)}
found = pairs(row["labels"][0], row["input_ids"][0])
flat = pairs(other["labels"][0], other["input_ids"][0])
print("trained pairs: samples alone", len(alone), "| transformers' packing", len(flat), "| axolotl's", len(found))
print("pairs of two samples: transformers' packing", sorted(flat - alone), "| axolotl's", sorted(found - alone))
raise SystemExit(int(bool(found - alone)))
