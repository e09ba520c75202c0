"""verl 0.9.1: ``truncation: left`` cuts off the end of a row, where ``pad_mode`` is ``no_padding`` (the default)."""

import sys
import tempfile
from pathlib import Path

import pandas as pd
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WORDS = ["[pad]", "[user]", "[assistant]", "[end]", *"abcdefgh"]


def main() -> int:
    """Print both, and say whether the bug shows."""
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[pad]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\[[a-z]+\]|[a-h]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[pad]", eos_token="[end]")
    tokenizer.chat_template = TEMPLATE
    talk = [{"role": "user", "content": "abcdef"}, {"role": "assistant", "content": "gh"}]
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pd.DataFrame({"messages": [talk]}).to_parquet(path)
        for mode in ("right", "no_padding"):
            config = {"pad_mode": mode, "truncation": "left", "max_length": 6}
            row = MultiTurnSFTDataset(str(path), tokenizer, config)[0]
            kept[mode] = tokenizer.convert_ids_to_tokens(row["input_ids"].tolist())
            trained = int(row["loss_mask"].sum())
            print(f"truncation left, pad_mode {mode:10}: {' '.join(kept[mode])}; {trained} tokens trained on")
    whole = ["[user]", *"abcdef", "[end]", "[assistant]", "g", "h", "[end]"]
    print("the last six tokens of the row:          ", " ".join(whole[-6:]))
    return 1 if kept["right"] == whole[-6:] and kept["no_padding"] == whole[:6] else 0


if __name__ == "__main__":
    sys.exit(main())
