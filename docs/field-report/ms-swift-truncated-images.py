"""ms-swift 4.6.0 cuts off the markers of images and keeps their placeholders: two images become one block.

``truncation_strategy`` left or right keeps the placeholders of a row that is too long, but not the tokens around them.
The model finds images by blocks of placeholders, and there is one block for two grids.
"""

import sys
from types import SimpleNamespace

import torch
from swift.template import Template
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

IMAGE, START, END = 4, 2, 3
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "rope_parameters": ROPE,
}  # fmt: skip


def positions(model, ids):
    """The model's time, height and width ids, or what it raises."""
    ids = torch.tensor([ids])
    grids = torch.tensor([[1, 4, 4], [1, 2, 4]])  # 2 x 2 and 1 x 2 merged patches
    try:
        return model.get_rope_index(ids, mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=grids)[0][:, 0].tolist()
    except (RuntimeError, StopIteration) as error:
        return f"{type(error).__name__}: {error}"


def main() -> int:
    """Print both, and say whether the bug shows."""
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}
    model = Qwen2VLModel(Qwen2VLConfig(text_config=TEXT, vision_config=vision, image_token_id=IMAGE))
    whole = [*range(10, 20), START, *[IMAGE] * 4, END, 21, 22, START, *[IMAGE] * 2, END, 23, 24]
    template = SimpleNamespace(placeholder_tokens=[IMAGE], max_length=14)
    cut, labels = Template._truncate(template, list(whole), list(whole), {}, "right")
    names = {IMAGE: "<image>", START: "<start>", END: "<end>"}
    print("the row:         ", *(names.get(token, token) for token in whole))
    print("cut to 14 tokens:", *(names.get(token, token) for token in cut))
    print("positions of the row:", positions(model, whole)[0])
    broken = positions(model, cut)
    print("positions of what is left:", broken)
    return 1 if START not in cut and cut.count(IMAGE) == 6 and isinstance(broken, str) else 0


if __name__ == "__main__":
    sys.exit(main())
