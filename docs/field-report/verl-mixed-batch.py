"""verl 0.9.1: a batch for supervised training whose first sample is text, and another has images, cannot be collated.

Its data set leaves ``multi_modal_inputs`` out of a sample without images; its collator asks the first sample for every
key of any.
"""

import sys

import torch
from verl.utils.dataset.dataset_utils import DatasetPadMode, SFTTensorCollator


def sample(length: int, images: int) -> dict:
    """A row as ``MultiTurnSFTDataset.__getitem__`` returns it with ``pad_mode: no_padding``, the default."""
    row = {
        "input_ids": torch.arange(length), "position_ids": torch.arange(length).expand(4, -1),
        "loss_mask": torch.ones(length, dtype=torch.int64),
    }  # fmt: skip
    media = {"pixel_values": torch.zeros(4 * images, 8), "image_grid_thw": torch.tensor([[1, 2, 2]] * images)}
    return {**row, "multi_modal_inputs": media} if images else row


def main() -> int:
    """Print both, and say whether the bug shows."""
    collator = SFTTensorCollator(DatasetPadMode.NO_PADDING)
    results = {}
    for name, order in (("image, text", (1, 0)), ("text, text", (0, 0)), ("text, image", (0, 1))):
        try:
            batch = collator([sample(5, order[0]), sample(7, order[1])])
            results[name] = f"keys {sorted(batch)}"
        except KeyError as error:
            results[name] = repr(error)
        print(f"{name}: {results[name]}")
    return 1 if "KeyError" in results["text, image"] and "KeyError" not in results["image, text"] else 0


if __name__ == "__main__":
    sys.exit(main())
