"""transformers 5.23.0: Qwen2.5-VL without `mm_token_type_ids` numbers images as text, and says nothing.

Second ways: Qwen2-VL and Qwen3-VL, the families before and after it, raise in the same place; with the types the positions
have three different rows, and the logits are others. Release 4.57.6 found images by their ids and needed no types.
"""

import sys

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

TEXT = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}  # fmt: skip
OLD = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
NEW = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
    "fullatt_block_indexes": [0],
}  # fmt: skip
IDS = {"image_token_id": 28, "video_token_id": 29}
ids = torch.tensor([[1, 2, *[28] * 6, 3, 4, 5]])
batch = {
    "input_ids": ids, "attention_mask": torch.ones_like(ids), "image_grid_thw": torch.tensor([[1, 4, 6]]),
    "pixel_values": torch.randn(24, 1176, generator=torch.Generator().manual_seed(0)),
}  # fmt: skip
types = {"mm_token_type_ids": (ids == 28).int()}


def scores(model, **more):
    with torch.no_grad():
        return model(**batch, **more).logits


torch.manual_seed(0)
older = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=TEXT, vision_config=OLD, **IDS)).eval()
model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=TEXT, vision_config=NEW, **IDS)).eval()
try:
    scores(older)
    sibling = "nothing"
except ValueError as error:
    sibling = f"ValueError: {str(error)[:70]}..."
print("Qwen2-VL without types:", sibling)
right = scores(model, **types)
plain = torch.arange(ids.shape[1])[None, None].expand(3, 1, -1)
as_text = scores(model, position_ids=plain)
bare = scores(model)
print(f"Qwen2.5-VL without types: no error; logits differ from those with types by {(bare - right).abs().max():.2e}")
print(f"and from those with positions 0, 1, 2, ... for the image by {(bare - as_text).abs().max():.2e}")
silent = bool((bare - right).abs().max() > 1e-4) and torch.equal(bare, as_text)
sys.exit(1 if silent else 0)
