"""transformers 5.23.0: under Trainer, packed samples see each other in models with a text model inside.

Samples in one row are told apart by restarting positions, which are looked at only where there is no cache. Trainer turns the
cache off in the outer configuration; the text model of Qwen3-VL reads its own, makes an empty cache and loses the mask.
Second ways: the same row with the text model's cache off; the same samples each alone.
"""

import sys
import tempfile

import torch
from transformers import DataCollatorWithFlattening, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers import Trainer, TrainingArguments

TEXT = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
}  # fmt: skip
VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
}  # fmt: skip
torch.manual_seed(0)
model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=TEXT, vision_config=VISION)).train()
torch.nn.init.normal_(model.model.language_model.embed_tokens.weight)
told = TrainingArguments(tempfile.gettempdir(), use_cpu=True, report_to=[], per_device_train_batch_size=2)
samples = [{"input_ids": list(range(10, 22))}, {"input_ids": list(range(30, 40))}]
trainer = Trainer(model=model, args=told, data_collator=DataCollatorWithFlattening(), train_dataset=samples)
seen, caches = [], []
model.register_forward_hook(
    lambda module, given, output: seen.append(output.logits.detach()) or caches.append(output.past_key_values)
)


def second(first):
    """Scores of the second sample behind another first one, by the Trainer's own loss."""
    batch = trainer.data_collator([{"input_ids": first}, samples[1]])
    trainer.compute_loss(model, batch)
    return seen[-1][0, len(first) :]


def change():
    """What another first sample does to the second one's scores, and what having one at all does."""
    behind = second(samples[0]["input_ids"])
    return float((behind - second(list(range(50, 62)))).abs().max()), float((behind - alone).abs().max())


trainer.compute_loss(model, trainer.data_collator([samples[1]]))
alone = seen[-1][0]
print("use_cache: outer", model.config.use_cache, "| text model", model.config.text_config.use_cache)
leak, company = change()
print("the forward of a training step returns a cache:", caches[-1] is not None, "(right: False)")
print(f"another first sample changes the second one's logits by {leak:.2e}, having one at all by {company:.2e}")
model.config.text_config.use_cache = False
sound, company = change()
print(f"with the text model's cache off: {sound:.2e} and {company:.2e} (right: 0, up to rounding)")
sys.exit(1 if leak > 1e-3 > 1e-6 > sound else 0)
