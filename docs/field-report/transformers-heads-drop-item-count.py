"""transformers 5.23.0: BART, Whisper and others take the Trainer's count of items and ignore it: the loss grows with accumulation.

Their forward has **kwargs, so that Trainer hands them `num_items_in_batch` and does not divide by the number of micro-batches;
the loss inside is a mean of its own all the same. Second ways: the same samples in one batch; GPT-2 under the
same Trainer.
"""

import sys
import tempfile

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

draw = torch.Generator().manual_seed(0)
rows = torch.randint(3, 60, (4, 10), generator=draw)
samples = [{"input_ids": row, "labels": row} for row in rows]


def gradient(model, size):
    """Length of one step over all four samples, ``size`` in each forward."""
    told = TrainingArguments(
        tempfile.mkdtemp(), use_cpu=True, report_to=[], max_steps=1, learning_rate=1.0, max_grad_norm=0.0, optim="sgd",
        per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, save_strategy="no", disable_tqdm=True,
        lr_scheduler_type="constant",
    )  # fmt: skip
    state = {name: value.clone() for name, value in model.state_dict().items()}
    Trainer(model=model, args=told, train_dataset=samples).train()
    moved = torch.cat([(state[name] - value).flatten() for name, value in model.state_dict().items()])
    model.load_state_dict(state)
    return float(moved.norm())


torch.manual_seed(0)
bart = BartForConditionalGeneration(
    BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, dropout=0.0,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
    )
)  # fmt: skip
gpt2 = GPT2LMHeadModel(
    GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
               bos_token_id=1, eos_token_id=2)
)  # fmt: skip
ratios = {}
for name, model in (("GPT-2", gpt2), ("BART", bart)):
    whole, parts = gradient(model, 4), gradient(model, 1)
    ratios[name] = parts / whole
    print(f"{name}: one batch of four: step {whole:.4f}; four of one: {parts:.4f}; {ratios[name]:.2f} times (right: 1)")
sys.exit(1 if ratios["BART"] > 2 and abs(ratios["GPT-2"] - 1) < 1e-3 else 0)
