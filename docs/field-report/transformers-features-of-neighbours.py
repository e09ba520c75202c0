"""transformers 5.23.0: placeholders are counted over the batch, so that one too many here and one too few there pass in silence.

The features that follow go to other places, in one sample or into the next one. Second ways: each sample alone raises; what a
sample is given is another in company.
"""

import sys

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

TEXT = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
torch.manual_seed(0)
config = Qwen2VLConfig(text_config=TEXT, vision_config=VISION, image_token_id=28, video_token_id=29)
model = Qwen2VLForConditionalGeneration(config).eval()
ids = torch.tensor([[3, *[28] * 3, 4, 5, 6], [3, *[28] * 5, 4]])  # images of 4 features each: one too few, one too many
grids, pixels = torch.tensor([[1, 4, 4]] * 2), torch.randn(32, 1176)
positions = torch.arange(7)[None, None].expand(3, 2, 7)
merged = []
model.model.language_model.register_forward_pre_hook(
    lambda module, args, kwargs: merged.append(kwargs["inputs_embeds"]), with_kwargs=True
)


def run(rows, images):
    with torch.no_grad():
        model(
            ids[rows],
            position_ids=positions[:, rows],
            image_grid_thw=grids[images],
            pixel_values=pixels[:16] if images == [0] else pixels,
        )


try:
    run([0], [0])
    alone = "accepted"
except ValueError as error:
    alone = f"ValueError: {error}"
print("the first sample alone:", alone)
run([0, 1], [0, 1])
with torch.no_grad():
    features = torch.cat(model.model.get_image_features(pixels, grids).pooler_output)
places = [(row, place) for row in range(2) for place in range(7) if ids[row, place] == 28]
dealt = [int((features - merged[0][place]).abs().sum(-1).argmin()) for place in places]
print("both: accepted; the features that each sample got:", dealt[:3], dealt[3:], "(of image 0: 0-3, of image 1: 4-7)")
sys.exit(1 if alone != "accepted" and dealt[3] == 3 else 0)
