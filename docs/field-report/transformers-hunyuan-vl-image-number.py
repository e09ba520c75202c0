"""transformers 5.23.0: HunYuan-VL counts images over the batch, so that a sample is another in another place of it.

The docstring of `get_rope_index` says that the fourth axis is the ordinal of the image in its input sequence, from 0.
Second way: the same sample alone, and the same batch in another order.
"""

import sys

import torch
from transformers import HunYuanVLConfig, HunYuanVLForConditionalGeneration

config = HunYuanVLConfig(
    text_config={
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4, 4]},
    },
    vision_config={
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "out_hidden_size": 64, "text_hidden_size": 64, "patch_size": 4, "max_image_size": 64,
    },
    image_token_id=60, im_start_id=61, im_end_id=62, im_newline_id=63,
)  # fmt: skip
torch.manual_seed(0)
model = HunYuanVLForConditionalGeneration(config).eval()
places = model.model.get_vision_position_ids(torch.tensor([4, 4]), spatial_merge_size=2, device="cpu").shape[1] + 2
one = torch.tensor([[1, 2, *[60] * places, 3, 4]])
grid, pixels = torch.tensor([[1, 4, 4]]), torch.randn(16, 48)


def run(samples):
    ids = one.repeat(samples, 1)
    types = (ids == 60).int()
    grids = grid.repeat(samples, 1)
    numbers, _ = model.model.get_rope_index(ids, types, grids, torch.ones_like(ids))
    with torch.no_grad():
        logits = model(
            ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, image_grid_thw=grids,
            pixel_values=pixels.repeat(samples, 1),
        ).logits  # fmt: skip
    return numbers, logits


alone, scores = run(1)
numbers, logits = run(3)
middle = 2 + places // 2
print("three copies of one sample; the image's number in each:", numbers[3, :, middle].tolist(), "(right: 0, 0, 0)")
print("the sample alone:", alone[3, :, middle].tolist())
gaps = [float((logits[row] - scores[0]).abs().max()) for row in range(3)]
print("logits of each copy less those of the sample alone:", ", ".join(f"{gap:.1e}" for gap in gaps))
sys.exit(1 if numbers[3, 0, middle] != numbers[3, 2, middle] and gaps[2] > 1e-4 else 0)
