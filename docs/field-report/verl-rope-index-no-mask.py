"""verl 0.9.1: ``get_rope_index`` of Qwen2-VL and Qwen3-VL raises for a text without a mask, which is optional."""

import sys
from types import SimpleNamespace

import torch
from verl.models.transformers import glm4v, qwen2_vl, qwen3_vl


def main() -> int:
    """Print both, and say whether the bug shows."""
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(merge_size=2), image_token_id=4, video_token_id=5, vision_start_token_id=2,
        tokenizer=SimpleNamespace(convert_tokens_to_ids=lambda _name: 4),
    )  # fmt: skip
    ids, broken = torch.arange(10, 15), False
    for module in (qwen2_vl, qwen3_vl, glm4v):
        name = module.__name__.rsplit(".", 1)[-1]
        masked = module.get_rope_index(processor, ids, attention_mask=torch.ones_like(ids))
        try:
            bare = module.get_rope_index(processor, ids)
            print(f"{name}: with a mask {masked[0].tolist()}, without {bare[0].tolist()}")
        except IndexError as error:
            broken = True
            print(f"{name}: with a mask {masked[0].tolist()}, without {error!r}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
