"""Gemma 3: `attn_logit_softcapping` is documented, stored by every attention layer, and never handed to attention.

Right: the same field of Gemma 2 changes the scores, and a soft-cap of 0.01 leaves hardly any difference between keys.
"""

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.5, "attn_implementation": "eager",
}  # fmt: skip


def moved(config_class, model_class):
    """The largest change of the logits when the attention scores are capped at 0.01."""
    logits = []
    for cap in (None, 0.01):
        torch.manual_seed(0)
        config = config_class(**SIZES, attn_logit_softcapping=cap, final_logit_softcapping=None)
        with torch.no_grad():
            logits.append(model_class(config).eval()(input_ids=torch.arange(1, 13)[None]).logits)
    return (logits[0] - logits[1]).abs().max().item()


gemma2, gemma3 = moved(Gemma2Config, Gemma2ForCausalLM), moved(Gemma3TextConfig, Gemma3ForCausalLM)
print(f"logits moved by attn_logit_softcapping=0.01: Gemma 2 {gemma2:.3g}, Gemma 3 {gemma3:.3g}")
raise SystemExit(gemma2 > 0 and gemma3 == 0)
