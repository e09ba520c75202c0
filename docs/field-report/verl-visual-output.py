"""verl 0.9.1 reads the vision tower's output as a tensor where transformers 5 returns an object.

Two of its forwards raise: Qwen2-VL and Qwen2.5-VL on a batch without images, GLM-4.1V on any batch
(reported upstream, shown here and not counted).
"""

import sys

import torch
from transformers import Glm4vConfig, Glm4vForConditionalGeneration, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from verl.models.transformers.monkey_patch import apply_monkey_patch

ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "rope_parameters": ROPE, "pad_token_id": 0,
}  # fmt: skip
QWEN = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "patch_size": 14, "mlp_ratio": 2}
GLM = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14, "intermediate_size": 64}


def called(model, ids, images):
    """The logits of verl's own forward and of the model's as it was, or what is raised."""
    grid = torch.tensor([[1, 4, 4]])
    pixels = torch.linspace(-1, 1, 16 * 1176).reshape(16, 1176)
    media = {"pixel_values": pixels, "image_grid_thw": grid} if images else {}
    positions = torch.arange(ids.shape[1]).expand(4, 1, -1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions, "use_cache": False}
    try:
        return model(**given, **media).logits
    except AttributeError as error:
        return error


def main() -> int:
    """Print both, and say whether the bug shows."""
    torch.manual_seed(0)
    ids = {"image_token_id": 4, "video_token_id": 5}
    qwen = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=TEXT, vision_config=QWEN, **ids)).eval()
    glm = Glm4vForConditionalGeneration(Glm4vConfig(text_config=TEXT, vision_config=GLM, **ids)).eval()
    text, picture = torch.arange(10, 20)[None], torch.tensor([[10, 11, 4, 4, 4, 4, 12, 13]])
    cases = [("Qwen2-VL, text", qwen, text, False), ("Qwen2-VL, image", qwen, picture, True),
             ("GLM-4.1V, image", glm, picture, True)]  # fmt: skip
    before = [called(*case[1:]) for case in cases]
    for model in (qwen, glm):
        apply_monkey_patch(model, use_remove_padding=False)
    broken = False
    for case, right in zip(cases, before, strict=True):
        got = called(*case[1:])
        if isinstance(got, Exception):
            broken |= case[0].startswith("Qwen")
            print(f"{case[0]}: the model returns logits {tuple(right.shape)}; patched by verl: {got!r}")
        else:
            print(f"{case[0]}: patched by verl, logits differ by {(got - right).abs().max():.1e}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
