"""verl 0.9.1 numbers the frames of a video for Qwen2-VL by the rule of Qwen2.5-VL: two ids a step, where it is one.

Its data set for supervised training asks this function for every processor with Qwen2VLImageProcessor.
"""

import sys
from types import SimpleNamespace

import torch
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from verl.models.transformers.qwen2_vl import get_rope_index

IMAGE, VIDEO, START, END = 4, 5, 2, 3
NAMES = {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<|vision_start|>": START}


def main() -> int:
    """Print both, and say whether the bug shows."""
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(merge_size=2),
        tokenizer=SimpleNamespace(convert_tokens_to_ids=NAMES.__getitem__),
    )
    steps = 3  # of 2 x 2 merged patches
    ids = torch.tensor([10, START] + [VIDEO] * 4 * steps + [END, 11])
    grid = torch.tensor([[steps, 4, 4]])
    theirs = get_rope_index(processor, ids, video_grid_thw=grid, attention_mask=torch.ones_like(ids))

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 64, "rope_parameters": rope}  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
                           vision_start_token_id=START)  # fmt: skip
    types = torch.where(ids == VIDEO, 2, 0)[None]
    model, _ = Qwen2VLModel(config).get_rope_index(ids[None], mm_token_type_ids=types, video_grid_thw=grid)

    video = ids == VIDEO
    frames = [row[video].reshape(steps, 4)[:, 0].tolist() for row in (theirs[0], model[0, 0])]
    by_formula = [2 + step for step in range(steps)]  # two tokens before the video, then one id a step
    print("time ids of the three steps by verl:      ", frames[0])
    print("by Qwen2VLModel.get_rope_index:           ", frames[1])
    print("by the rule of Qwen2-VL, one id a step:   ", by_formula)
    return 1 if frames[0] != by_formula and frames[1] == by_formula else 0


if __name__ == "__main__":
    sys.exit(main())
