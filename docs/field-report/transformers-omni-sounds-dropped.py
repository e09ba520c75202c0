"""transformers 5.23.0: Qwen2.5-Omni drops features of sounds that have no placeholder, without a word.

For images and videos the same function compares the two counts and raises. Second way: an image with one placeholder too few,
in the same model; sibling Qwen2-Audio, which raises.
"""

import sys

import torch
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}  # fmt: skip
config = Qwen2_5OmniThinkerConfig(
    text_config=TEXT,
    vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
                   "fullatt_block_indexes": [0]},
    audio_config={"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                  "d_model": 32, "n_window": 10, "output_dim": 32},
    audio_token_index=60, image_token_index=61, video_token_index=62, audio_token_id=60, image_token_id=61,
    video_token_id=62,
)  # fmt: skip
torch.manual_seed(0)
model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
positions = torch.arange(9)[None, None].expand(3, 1, 9)
mask = torch.ones(1, 40).long()  # 40 frames of a sound become 10 features
sound = {"input_features": torch.randn(1, 8, 40), "feature_attention_mask": mask}
image = {"pixel_values": torch.randn(16, 1176), "image_grid_thw": torch.tensor([[1, 4, 4]])}  # 4 features


def tried(token, places, given):
    ids = torch.tensor([[1, *[token] * places, *range(2, 10 - places)]])
    with torch.no_grad():
        try:
            model(ids, attention_mask=torch.ones_like(ids), position_ids=positions, **given)
        except (ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {str(error)[:80]}"
    return "accepted"


print("4 features of an image, 3 places:", tried(61, 3, image))
silent = tried(60, 7, sound)
print("10 features of a sound, 7 places:", silent, "(right: an error)")
sys.exit(1 if silent == "accepted" else 0)
