"""Phi-3: `embd_pdrop`, "the dropout ratio for the embeddings", drops nothing.

Right: with the same field GPT-2 drops embeddings in training; with 0.9 no two passes are alike.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

PHI3 = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def moved(config, model_class):
    """The largest difference between two passes in training mode."""
    torch.manual_seed(0)
    model = model_class(config).train()
    with torch.no_grad():
        first, second = (model(input_ids=torch.arange(3, 15)[None]).logits for _ in range(2))
    return (first - second).abs().max().item()


phi3 = moved(Phi3Config(**PHI3, embd_pdrop=0.9), Phi3ForCausalLM)
gpt2 = moved(GPT2Config(**GPT2, embd_pdrop=0.9, bos_token_id=1, eos_token_id=1), GPT2LMHeadModel)
print(f"two passes in training with embd_pdrop=0.9 differ by: GPT-2 {gpt2:.3g}, Phi-3 {phi3:.3g}")
raise SystemExit(gpt2 > 0 and phi3 == 0)
