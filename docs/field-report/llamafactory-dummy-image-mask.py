"""llamafactory 0.9.5: packs of texts crash a model that has images, with `neat_packing` and sdpa or eager attention.

A batch without an image gets a dummy one, whose tokens the mask has already; for packs the collator adds them to the mask again.
Second ways: the same samples with FlashAttention (which drops the mask) have rows of one length; the same packs with an image,
and the same texts without packing, run through the model.
"""

import importlib.machinery
import os
import sys
from types import ModuleType, SimpleNamespace

import torch

os.environ["DISABLE_VERSION_CHECK"] = "1"
sys.modules["torchaudio"] = ModuleType("torchaudio")  # not needed for images
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
operators = torch.library.Library("torchvision", "DEF")  # torchvision from the index is built for CUDA
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from llamafactory.data.collator import SFTDataCollatorWith4DAttentionMask
from llamafactory.data.processor.supervised import PackedSupervisedDatasetProcessor
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import DataArguments
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
bare = Tokenizer(models.BPE(vocab=letters, merges=[]))
bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bare.add_special_tokens(
    [f"<|{name}|>" for name in "im_start im_end vision_start vision_end image_pad video_pad".split()]
)
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|im_end|>", padding_side="right"
)
TEXT = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}  # fmt: skip
VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4}
image, video = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
model = Qwen2VLForConditionalGeneration(
    Qwen2VLConfig(text_config=TEXT, vision_config=VISION, image_token_id=image, video_token_id=video)
)
pictures = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 4096})
processor = SimpleNamespace(image_processor=pictures, video_processor=object(), model_input_names=[])
more = {"template": TEMPLATES["qwen2_vl"], "tokenizer": tokenizer, "processor": processor}


def tried(asked, images, attention):
    samples = {"_prompt": [[{"role": "user", "content": asked}]] * 2, "_response": [[{"role": "assistant", "content": "yes"}]] * 2,
               "_images": [images] * 2, "_videos": [None] * 2, "_audios": [None] * 2, "_system": [""] * 2, "_tools": [""] * 2}  # fmt: skip
    packs = PackedSupervisedDatasetProcessor(
        data_args=DataArguments(cutoff_len=400, packing=True, neat_packing=True), **more
    )
    made = packs.preprocess_dataset(samples)
    collator = SFTDataCollatorWith4DAttentionMask(
        model=model,
        block_diag_attn=True,
        neat_packing=True,
        attn_implementation=attention,
        pad_to_multiple_of=8,
        **more,
    )
    batch = collator([{name: values[0] for name, values in made.items()}])
    mask = None if batch["attention_mask"] is None else tuple(batch["attention_mask"].shape)
    if mask is None:
        return f"ids {tuple(batch['input_ids'].shape)}, mask left to FlashAttention"
    try:
        return f"ids {tuple(batch['input_ids'].shape)}, mask {mask}, loss {model(**batch).loss:.3f}"
    except RuntimeError as error:
        return f"ids {tuple(batch['input_ids'].shape)}, mask {mask}, RuntimeError: {error}"


print("a pack with images, sdpa:", tried("<image>a?", [Image.new("RGB", (32, 32))], "sdpa"))
print("a pack of texts, FlashAttention:", tried("a?", None, "flash_attention_2"))
found = tried("a?", None, "sdpa")
print("a pack of texts, sdpa:", found)
sys.exit(1 if "RuntimeError" in found else 0)
