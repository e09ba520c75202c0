"""llamafactory 0.9.5: `mask_history` trains the end of earlier turns, with templates that write no end of turn.

The option is documented to train on the last turn only. With `efficient_eos` templates (GLM-4V, GLM-4.5V, Yi-VL, ...) the label of
the first token of a prompt is the end of the turn before it; that label stays for turns whose answers are masked.
Second way: the answers of the conversation, encoded one by one: only the last one's tokens and its end may be labels.
"""

import importlib.machinery
import os
import sys
from types import ModuleType

import torch

os.environ["DISABLE_VERSION_CHECK"] = "1"
sys.modules["torchaudio"] = ModuleType("torchaudio")  # not needed for texts
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
operators = torch.library.Library("torchvision", "DEF")  # torchvision from the index is built for CUDA
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import DataArguments
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
bare = Tokenizer(models.BPE(vocab=letters, merges=[]))
bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bare.add_special_tokens(["<end>"])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<end>", pad_token="<end>")
TALK = ["one?", "first", "two?", "second", "three?", "third"]
roles = ["user", "assistant"] * 3
messages = [{"role": role, "content": text} for role, text in zip(roles, TALK)]


def trained(template, **options):
    """The tokens that a causal loss has as targets: labels, less that of the first token."""
    encode = SupervisedDatasetProcessor(
        template=TEMPLATES[template], tokenizer=tokenizer, processor=None, data_args=DataArguments(**options)
    )
    _, labels = encode._encode_data_example(messages[:-1], messages[-1:], "", "", [], [], [])
    return [label for label in labels[1:] if label != -100]


end = tokenizer.eos_token_id
answers = [tokenizer.encode(text, add_special_tokens=False) for text in TALK[1::2]]
found = trained("solar", mask_history=True)
right = answers[-1] + [end]
print("trained on, with mask_history:", [tokenizer.decode([token]) for token in found])
print("right (the last answer and its end):", [tokenizer.decode([token]) for token in right])
every = trained("solar")
print(
    "without the option, all three answers and their ends:", every == [t for answer in answers for t in [*answer, end]]
)
sys.exit(0 if found == right else 1)
