"""ms-swift 4.6.0: ``truncation_strategy`` left or right leaves ``token_type_ids`` as long as they were."""

import sys
from types import SimpleNamespace

import torch
from swift.template import Template


def main() -> int:
    """Print both, and say whether the bug shows."""
    ids = [10, 11, 12, 13, 4, 4, 14, 15, 16, 17]
    types = [1 if token == 4 else 0 for token in ids]  # as Gemma 3's template makes them: 1 for an image
    template = SimpleNamespace(placeholder_tokens=[4], max_length=6)
    encoded = {"token_type_ids": list(types), "mm_token_type_ids": torch.tensor(types)}
    cut, _ = Template._truncate(template, list(ids), None, encoded, "left")
    right = [1 if token == 4 else 0 for token in cut]
    print("ids after the cut:     ", cut)
    print("their types:           ", right)
    print("mm_token_type_ids:     ", encoded["mm_token_type_ids"].tolist())
    print("token_type_ids:        ", encoded["token_type_ids"])
    return 1 if encoded["token_type_ids"] != right and encoded["mm_token_type_ids"].tolist() == right else 0


if __name__ == "__main__":
    sys.exit(main())
