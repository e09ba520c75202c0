"""transformers 5.23.0: text that follows a video gets positions that the video itself already has.

Qwen2.5-VL and Qwen2-VL number what follows a visual span from max(height, width); for a long video its time goes further.
Second ways: the delta of the same call, which counts from the largest position; and what the model itself does with
the next token when it decodes. Release 4.57.6 starts the text at the largest position of the video plus one.
"""

import sys

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

TEXT = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
    "fullatt_block_indexes": [0], "tokens_per_second": 2,
}  # fmt: skip
torch.manual_seed(0)
config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION, image_token_id=28, video_token_id=29)
model = Qwen2_5_VLForConditionalGeneration(config).eval()

grid = torch.tensor([[8, 4, 4]])  # 8 steps of 4 x 4 patches, merged 2 x 2: 32 tokens
ids = torch.tensor([[1, 2, 3, *[29] * 32, 4, 5, 6, 7]])
types = (ids == 29).int() * 2
positions, delta = model.model.get_rope_index(ids, types, video_grid_thw=grid, attention_mask=torch.ones_like(ids))
video, text = positions[:, 0, 3:35], positions[:, 0, 35:]
continues = ids.shape[1] + int(delta)
print("largest position of the video:", int(video.max()))
print("the four text tokens after it:", text[0].tolist())
print("right (largest + 1 and on):   ", [int(video.max()) + 1 + step for step in range(4)])
print("where the next token goes on by the delta of the same call:", continues)

pixels = torch.randn(128, 1176)
given = {"pixel_values_videos": pixels, "video_grid_thw": grid, "mm_token_type_ids": types}
more = torch.tensor([[8]])
with torch.no_grad():
    first = model(ids, attention_mask=torch.ones_like(ids), use_cache=True, **given)
    cached = model(more, past_key_values=first.past_key_values).logits[0, -1]
    longer = {**given, "mm_token_type_ids": torch.cat([types, torch.zeros_like(more, dtype=types.dtype)], 1)}
    whole = model(torch.cat([ids, more], 1), attention_mask=torch.ones(1, 40).long(), use_cache=False, **longer)
gap = (whole.logits[0, -1] - cached).abs().max()
print(f"the same token's logits, in one forward and with a cache, differ by {gap:.1e}")
wrong = int(text.min()) <= int(video.max())
sys.exit(1 if wrong else 0)
