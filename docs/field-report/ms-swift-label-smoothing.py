"""ms-swift 4.6.0: with label smoothing a vision-language model is scored on the token that it was just given.

The trainer shifts labels for classes in the map of causal models alone, and Qwen2-VL is in another.
"""

import collections
import sys
from types import SimpleNamespace
from unittest import mock

import torch
from swift.trainers import Seq2SeqTrainer
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.trainer_pt_utils import LabelSmoother

ROPE = {"rope_type": "default", "rope_theta": 1e4}
TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0,
}  # fmt: skip


def smoothed(model, batch):
    """The trainer's loss with a smoothing so small that it should be the model's own."""
    args = SimpleNamespace(
        use_liger_kernel=False, enable_dft_loss=False, enable_channel_loss=False, past_index=-1, tuner_backend="peft",
        router_aux_loss_coef=None, average_tokens_across_devices=False, acc_strategy="token",
    )  # fmt: skip
    model.model_info = SimpleNamespace(is_moe_model=False)
    template = SimpleNamespace(
        sequence_parallel_size=1, padding_free=False,
        compute_sft_loss=lambda model, inputs, **_: model(**inputs),
    )  # fmt: skip
    trainer = SimpleNamespace(
        label_smoother=LabelSmoother(epsilon=1e-9), args=args, template=template, model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model), model_accepts_loss_kwargs=True,
        custom_metrics=collections.defaultdict(mock.MagicMock), _compute_acc=lambda *_args, **_options: None,
    )  # fmt: skip
    return float(Seq2SeqTrainer.compute_loss(trainer, model, dict(batch)))


def main() -> int:
    """Print the losses, and say whether the bug shows."""
    torch.manual_seed(0)
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}
    text = Qwen2ForCausalLM(Qwen2Config(**TEXT, rope_parameters=ROPE)).eval()
    sections = {**ROPE, "mrope_section": [2, 3, 3]}
    seeing = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config={**TEXT, "rope_parameters": sections}, vision_config=vision)
    ).eval()
    ids = torch.randint(6, 64, (1, 12))
    batch, gaps = {"input_ids": ids, "labels": ids}, {}
    for model in (text, seeing):
        with torch.no_grad():
            out = model(**batch)
            scores = torch.log_softmax(out.logits.double(), -1)
            same = -float(scores.gather(-1, ids[..., None]).mean())
            following = -float(scores[:, :-1].gather(-1, ids[:, 1:, None]).mean())
            got = smoothed(model, batch)
        name = type(model).__name__
        gaps[name] = abs(got - following) > 1e-3 and abs(got - same) < 1e-3
        print(f"{name}: own loss {float(out.loss):.5f}, with smoothing 1e-9 {got:.5f}")
        print(f"  by hand: next token {following:.5f}, same token {same:.5f}")
    return 1 if list(gaps.values()) == [False, True] else 0


if __name__ == "__main__":
    sys.exit(main())
