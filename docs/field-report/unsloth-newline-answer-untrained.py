"""Unsloth's train_on_responses_only trains on nothing of an answer that begins with a line break.

The response part is searched for as its tokens, one line break at the end. Qwen's vocabulary has a token of its own for
two line breaks, so before such an answer the part is not found. Right are the answer and its end of turn, as for the
same answer without the line break. Exit status 1: the bug shows.
"""

import os

os.environ.update(UNSLOTH_ALLOW_CPU="1", UNSLOTH_SKIP_TORCHVISION_CHECK="1", UNSLOTH_DISABLE_STATISTICS="1")

import torch

library = torch.library.Library("torchvision", "DEF")  # what a CUDA build of torchvision asks for
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import unsloth  # noqa: F401  # before unsloth_zoo
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from unsloth_zoo.dataset_utils import train_on_responses_only

BREAK = "\u010a"  # how byte-level vocabularies write a line break
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {letter: number for number, letter in enumerate([*letters, BREAK + BREAK])}
inner = Tokenizer(models.BPE(vocabulary, merges=[(BREAK, BREAK)]))  # as in Qwen's: id 198 is one, 271 two
together = pre_tokenizers.Split(Regex(r"[\r\n]+|[^\r\n]+"), "isolated")  # line breaks in a row, as Qwen's pattern
inner.pre_tokenizer = pre_tokenizers.Sequence([together, pre_tokenizers.ByteLevel(False, use_regex=False)])
inner.decoder = decoders.ByteLevel()
inner.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
parts = {"instruction_part": "<|im_start|>user\n", "response_part": "<|im_start|>assistant\n"}
broken = False
for answer in ("fine", "fine\n\nreally", "\nfine", "\n\nfine"):
    text = f"<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    ids = tokenizer(text, return_tensors="pt").input_ids
    for matched in (True, False):
        function = train_on_responses_only(
            None, tokenizer=tokenizer, return_function=True, force_match=matched, **parts
        )
        labels = function({"input_ids": ids})["labels"][0]
        found = tokenizer.decode(labels[labels != -100])
        print(f"answer {answer!r}, force_match {matched}: trained on {found!r}, right is {answer + '<|im_end|>'!r}")
        broken |= matched and "fine" not in found
raise SystemExit(int(broken))
