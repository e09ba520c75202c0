"""Qwen2.5-Omni: the audio encoder keeps `dropout`, `attention_dropout` and `activation_dropout`, and applies none.

Right: Qwen2-Audio's encoder, with the same three fields, drops in training: no two passes are alike.
"""

import torch
from transformers import Qwen2AudioEncoderConfig
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

SIZES = {
    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "num_mel_bins": 16,
    "max_source_positions": 50, "dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5,
}  # fmt: skip


def moved(encoder, *arguments, **named):
    """The largest difference between two passes in training mode."""
    with torch.no_grad():
        first, second = (encoder.train()(*arguments, **named).last_hidden_state for _ in range(2))
    return (first - second).abs().max().item()


torch.manual_seed(0)
audio = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**SIZES, encoder_layerdrop=0.0))
omni = Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**SIZES, n_window=25, output_dim=32))
other = moved(audio, torch.randn(1, 16, 100), attention_mask=None)
own = moved(omni, torch.randn(16, 100), feature_lens=torch.tensor([100]), aftercnn_lens=torch.tensor([50]))
print(f"two passes in training with all dropout at 0.5 differ by: Qwen2-Audio {other:.3g}, Qwen2.5-Omni {own:.3g}")
raise SystemExit(other > 0 and own == 0)
