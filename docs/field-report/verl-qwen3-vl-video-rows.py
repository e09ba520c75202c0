"""verl 0.9.1: its data set for supervised training asks Qwen2-VL's rule for the positions of Qwen3-VL's videos.

Qwen3-VL writes each step of a video as a block of its own, and one grid for the video. verl has a rule for that, which
the data set does not call: it goes by the name of the image processor, which both families share.
"""

import sys
from types import SimpleNamespace

import torch
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from verl.models.transformers import qwen3_vl
from verl.utils.dataset import multiturn_sft_dataset

IMAGE, VIDEO, START, END = 4, 5, 2, 3
NAMES = {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<|vision_start|>": START}


def main() -> int:
    """Print both, and say whether the bug shows."""
    print("image processor of qwen3_vl:", IMAGE_PROCESSOR_MAPPING_NAMES["qwen3_vl"])
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(merge_size=2), image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, tokenizer=SimpleNamespace(convert_tokens_to_ids=NAMES.__getitem__),
    )  # fmt: skip
    step = [20, START] + [VIDEO] * 4 + [END]  # a time stamp, and 2 x 2 merged patches
    ids = torch.tensor([10, *step, *step, *step, 11])
    given = {"input_ids": ids, "video_grid_thw": torch.tensor([[3, 4, 4]]), "attention_mask": torch.ones_like(ids)}
    right = qwen3_vl.get_rope_index(processor, **given)
    print("verl's rule for Qwen3-VL, time ids:", right[0].tolist())
    try:
        used = multiturn_sft_dataset.get_rope_index(processor, **given)
        print("the data set's rule, time ids:     ", used[0].tolist())
        return 1 if not torch.equal(used, right) else 0
    except (IndexError, RuntimeError) as error:
        print("the data set's rule:               ", repr(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
