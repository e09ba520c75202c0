"""Megatron Core's multimodal rotary embedding cannot be used with ``rotary_interleaved=True``.

It reshapes by the number of axes where the number of tokens is meant. Right is a table [S,B,1,D] for any S, as without
the option and as its one-axis embedding gives with it. Exit status 1: the bug shows.
"""

import torch

torch.cuda.current_device = lambda: "cpu"  # the constructor asks for it

from megatron.core.models.common.embeddings.rotary_pos_embedding import MultimodalRotaryEmbedding, RotaryEmbedding

broken = False
plain = RotaryEmbedding(8, 1.0, rotary_interleaved=True, use_cpu_initialization=True)
for tokens in (1, 3, 6):
    positions = torch.arange(tokens).expand(3, 1, tokens)
    one = plain.get_freqs_non_repeated(tokens)
    for interleaved in (False, True):
        made = MultimodalRotaryEmbedding(8, 1.0, rotary_interleaved=interleaved)
        try:
            told = tuple(made(positions, [1, 1, 2]).shape)
        except RuntimeError as error:
            told = f"RuntimeError: {str(error)[:60]}..."
        broken |= interleaved and isinstance(told, str)
        print(f"{tokens} tokens, interleaved {interleaved!s:5}: {told}; angles {tuple(one.shape)}")
raise SystemExit(int(broken))
