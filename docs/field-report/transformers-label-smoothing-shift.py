"""transformers 5.23.0: with label smoothing, Trainer does not shift the labels of vision-language models.

It shifts for classes in a list of causal language models, which Qwen2.5-VL, LLaVA and most models with images are not in:
each token is trained to repeat itself. Second ways: the model's own loss on the same labels, to which smoothing by (nearly) 0 must
lead; and Gemma 3, which is in the list. This package's own formula with a shift gives the model's loss.
"""

import sys
import tempfile

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

torch.manual_seed(0)
config = LlavaConfig(
    text_config={
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    },
    vision_config={
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 32,
    },
    image_token_index=63,
)  # fmt: skip
model = LlavaForConditionalGeneration(config).eval()
ids = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(1))
batch = {"input_ids": ids, "labels": ids.clone()}
with torch.no_grad():
    model.lm_head.weight.copy_(model.model.language_model.embed_tokens.weight * 4)  # prefers to repeat its input
    own = float(model(**batch).loss)

    def trained(factor):
        told = TrainingArguments(tempfile.gettempdir(), use_cpu=True, report_to=[], label_smoothing_factor=factor)
        return float(Trainer(model=model, args=told).compute_loss(model, dict(batch)))

    smoothed, barely = trained(0.1), trained(1e-9)
    logits = model(input_ids=ids).logits
    shifted = float(LabelSmoother(1e-9)({"logits": logits}, ids, shift_labels=True))
    itself = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()))
print(f"the model's own loss:                        {own:.4f}")
print(f"Trainer without smoothing:                   {trained(0.0):.4f}")
print(f"Trainer with smoothing of 1e-9:              {barely:.4f} (right: {own:.4f}); of 0.1: {smoothed:.4f}")
print(f"the package's LabelSmoother, told to shift:  {shifted:.4f}")
print(f"cross-entropy of each token with itself:     {itself:.4f}")
sys.exit(1 if abs(barely - itself) < 1e-4 and abs(shifted - own) < 1e-4 and abs(barely - own) > 0.01 else 0)
