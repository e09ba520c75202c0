"""transformers 5.23.0: Trainer accumulates gradients of Qwen2.5-VL as a mean of means, of other models as one mean.

The class says that it takes no count of items, so Trainer hands it none; its loss would take one. Second ways: the same samples
in one batch; Qwen2, the text model of the same family, under the same Trainer.
"""

import sys
import tempfile

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM
from transformers import Trainer, TrainingArguments

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
          "fullatt_block_indexes": [0]}  # fmt: skip
draw = torch.Generator().manual_seed(0)
rows = [torch.randint(3, 64, (12,), generator=draw) for _ in range(2)]
answers = [2, 10]  # how many tokens of each row are trained on
samples = [
    {"input_ids": row, "labels": torch.where(torch.arange(12) >= 12 - count, row, -100)}
    for row, count in zip(rows, answers)
]


def gradient(model, size):
    """Of one step over both samples, ``size`` in each forward."""
    told = TrainingArguments(
        tempfile.mkdtemp(), use_cpu=True, report_to=[], max_steps=1, learning_rate=1.0, max_grad_norm=0.0, optim="sgd",
        per_device_train_batch_size=size, gradient_accumulation_steps=2 // size, save_strategy="no", disable_tqdm=True,
        lr_scheduler_type="constant",
    )  # fmt: skip
    state = {name: value.clone() for name, value in model.state_dict().items()}
    Trainer(model=model, args=told, train_dataset=samples).train()
    moved = torch.cat([(state[name] - value).flatten() for name, value in model.state_dict().items()])
    model.load_state_dict(state)
    return moved


torch.manual_seed(0)
text = Qwen2ForCausalLM(Qwen2Config(**SIZES))
vision = Qwen2_5_VLForConditionalGeneration(
    Qwen2_5_VLConfig(text_config={**SIZES, "rope_parameters": ROPE}, vision_config=VISION)
)
gaps = {}
for name, model in (("Qwen2", text), ("Qwen2.5-VL", vision)):
    whole, parts = gradient(model, 2), gradient(model, 1)
    gaps[name] = float((whole - parts).norm() / whole.norm())
    print(f"{name}: one batch of two, and two batches of one: steps differ by {gaps[name]:.1%}")
sys.exit(1 if gaps["Qwen2.5-VL"] > 0.05 > 1e-4 > gaps["Qwen2"] else 0)
