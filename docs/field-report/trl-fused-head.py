"""trl 1.16.0: by default SFTTrainer trains some models with another head than their own, and says nothing.

Its fused head multiplies what the backbone returns with the output embeddings, and knows scales and caps by some names of the
configuration. What else stands between the two is skipped: the dense layer of ModernBERT's decoder, the cap of RecurrentGemma
(`logits_soft_cap`), the width multiplier of Inkling. Second ways: the model's own loss on the same batch, the cross-entropy of
its own scores, and transformers' Trainer; Llama and Gemma 2, for which all agree.
"""

import sys
import tempfile
import warnings

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    ModernBertDecoderConfig,
    PreTrainedTokenizerFast,
)
from transformers import RecurrentGemmaConfig, Trainer, TrainingArguments
from tokenizers import Tokenizer, models
from trl import SFTConfig, SFTTrainer

warnings.simplefilter("ignore")
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "Llama": LlamaConfig(**SIZES),
    "Gemma 2": Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=16),
    "ModernBERT decoder": ModernBertDecoderConfig(**SIZES, cls_token_id=1, sep_token_id=2),
    "RecurrentGemma": RecurrentGemmaConfig(**SIZES, num_key_value_heads=1, lru_width=32, attention_window_size=16),
}
words = {f"w{number}": number for number in range(64)}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, "w3")), pad_token="w0", eos_token="w2"
)
tokens = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(0))
data = Dataset.from_dict({"input_ids": tokens.tolist(), "labels": tokens.tolist()})
MORE = {
    "output_dir": tempfile.gettempdir(),
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "gradient_checkpointing": False,
}
found = {}
for name, config in CONFIGS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=4.0)  # scores as large as those of a trained model
        batch = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
        own = model(**batch)
        scored = float(torch.nn.functional.cross_entropy(own.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))
        plain = float(
            Trainer(model, TrainingArguments(tempfile.gettempdir(), use_cpu=True, report_to=[])).compute_loss(
                model, dict(batch)
            )
        )
        sft = SFTTrainer(model, SFTConfig(**MORE), train_dataset=data, processing_class=tokenizer)
        fused = float(sft.compute_loss(model.eval(), dict(batch)))
    found[name] = abs(fused - float(own.loss))
    print(f"{name}: model {float(own.loss):.4f}, its scores {scored:.4f}, Trainer {plain:.4f}, SFTTrainer {fused:.4f}")
right = max(found["Llama"], found["Gemma 2"]) < 1e-3
sys.exit(1 if right and found["ModernBERT decoder"] > 0.01 and found["RecurrentGemma"] > 0.01 else 0)
