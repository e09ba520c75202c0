"""Megatron Core's rotation by ready-made cosines and sines takes them for angles where flash-attn is not installed.

Right is the rotation by the angles that they were made from: the formula, and the library's own function of angles. The
first token, at position 0, must stay as it is. Exit status 1: the bug shows.
"""

import torch
from megatron.core.models.common.embeddings import rope_utils

if rope_utils.apply_rotary_emb_flash is not None:
    raise SystemExit("flash-attn is installed: another function is called")
tokens, heads, width = 5, 2, 8
generator = torch.Generator().manual_seed(0)
x = torch.randn(tokens, 1, heads, width, generator=generator, dtype=torch.float64)
frequency = 1e4 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
angles = torch.outer(torch.arange(tokens, dtype=torch.float64), frequency)
cos, sin = (part[:, None, None] for part in (angles.cos(), angles.sin()))
low, high = x.chunk(2, dim=-1)
formula = torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
by_angles = rope_utils._apply_rotary_pos_emb_bshd(x, torch.cat([angles, angles], -1)[:, None, None])
found = rope_utils.apply_rotary_pos_emb_with_cos_sin(x, angles.cos(), angles.sin())
print(f"the library's rotation by angles and the formula: differ by {float((by_angles - formula).abs().max()):.1e}")
print(f"its rotation by cosines and sines and the formula: {float((found - formula).abs().max()):.4f}")
print(f"what position 0 changes: {float((found - x)[0].abs().max()):.4f}, right is 0")
raise SystemExit(int(not torch.allclose(found, formula)))
