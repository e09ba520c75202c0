"""transformers 5.23.0: a hand-written decoding step of Qwen2-VL, Qwen2.5-VL or Qwen3-VL with an attention mask crashes after an image.

With a cache the mask covers what is cached and what is new, which all models of the package expect; these make one position
for each place of the mask instead of one for each new token. Second ways: the same step without the mask works, the same step
of a conversation without an image works, and `generate` (which makes positions itself) works.
"""

import sys

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

TEXT = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
torch.manual_seed(0)
config = Qwen2VLConfig(text_config=TEXT, vision_config=VISION, image_token_id=28, video_token_id=29)
model = Qwen2VLForConditionalGeneration(config).eval()
ids = torch.tensor([[1, 2, *[28] * 6, 3, 4, 5]])
image = {
    "image_grid_thw": torch.tensor([[1, 4, 6]]), "pixel_values": torch.randn(24, 1176),
    "mm_token_type_ids": (ids == 28).int(),
}  # fmt: skip


def step(ids, masked, **given):
    length = ids.shape[1]
    with torch.no_grad():
        first = model(ids, attention_mask=torch.ones(1, length).long(), use_cache=True, **given)
        more = {"attention_mask": torch.ones(1, length + 1).long()} if masked else {}
        try:
            return model(torch.tensor([[6]]), past_key_values=first.past_key_values, **more).logits[0, -1]
        except RuntimeError as error:
            return f"RuntimeError: {error}"


plain = step(ids[:, 8:], True)
print("text alone, mask of all tokens:", "works" if torch.is_tensor(plain) else plain)
bare = step(ids, False, **image)
print("with an image, without a mask: ", "works" if torch.is_tensor(bare) else bare)
masked = step(ids, True, **image)
print("with an image, mask of all:    ", "works" if torch.is_tensor(masked) else masked)
sys.exit(0 if torch.is_tensor(masked) and torch.equal(masked, bare) else 1)
