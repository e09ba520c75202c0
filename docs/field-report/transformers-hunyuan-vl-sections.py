"""transformers 5.23.0: the two channels that HunYuan-VL turns together are turned by different positions.

The sections of the axes are doubled one by one (a, a, b, b) where the list is to be doubled (a, b, a, b), as rotate_half pairs
channel i with channel i + head_dim / 2. Second ways: a rotation keeps lengths, this one does not; the released code of the
model's authors repeats the list, and so does this package for Qwen2.5-VL.
"""

import sys

import torch
from transformers.models.hunyuan_vl import modeling_hunyuan_vl as hunyuan
from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLTextConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

SECTIONS = [16, 16, 16, 16]  # those of the released checkpoint, heads of 128
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": SECTIONS}
config = HunYuanVLTextConfig(hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters=ROPE)
rotary = hunyuan.HunYuanVLRotaryEmbedding(config)

positions = torch.tensor([11, 3, 5, 0]).view(4, 1, 1)  # one token of an image: place, width, height, image
owner = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 1, 64)
axes = rotary.recomposition_frequencies(owner)[0, 0].int()
print("axis of every 8th channel, first half: ", axes[:64:8].tolist())
print("axis of every 8th channel, second half:", axes[64::8].tolist(), "(right: the same)")
print("channels whose partner turns by another axis:", int((axes[:64] != axes[64:]).sum()), "of 64")

generator = torch.Generator().manual_seed(0)
query = torch.randn(1, 2, 1, 128, generator=generator)
cos, sin = rotary(query, positions)
turned, _ = hunyuan.apply_rotary_pos_emb(query, query, cos, sin)
print(f"length before {query[0, 0].norm():.4f}, after {turned[0, 0].norm():.4f} (right: the same)")

freqs = positions[..., None].float() * rotary.inv_freq  # [4,1,1,64]
both = torch.cat([freqs, freqs], dim=-1)
pieces = both.split(SECTIONS * 2, dim=-1)
right = torch.cat([piece[index % 4] for index, piece in enumerate(pieces)], dim=-1)
good, _ = qwen.apply_rotary_pos_emb(query, query, right.cos(), right.sin())
print(f"with the list doubled: {good[0, 0].norm():.4f}; largest difference {(good - turned).abs().max():.3f}")
wrong = bool((axes[:64] != axes[64:]).any()) and abs(float(turned.norm() - query.norm())) > 1e-2
sys.exit(1 if wrong else 0)
