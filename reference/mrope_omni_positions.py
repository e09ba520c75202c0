"""Audio in the Omni families: how many tokens a clip becomes, and how it mixes with the frames of its video."""

import math

import torch

from assay.reference.mrope_blocks import audio_blocks, video_blocks
from assay.reference.mrope_rules import PositionRule

__all__ = ["audio_tokens", "interleaved_types"]


def audio_tokens(model_type: str, frames: int, *, window: int = 50) -> int:
    """Tokens that the audio tower makes of `frames` frames (10 ms each) of the spectrogram.

    `qwen2_5_omni`: two stages that halve, 40 ms a token. `qwen3_omni_moe`: chunks of `2 * window` frames, three stages
    that halve within each, so 13 tokens for 100 frames (about 80 ms a token); a shorter last chunk is halved alone.

    Raises:
        ValueError: another model type, or fewer frames than the first token needs.
    """
    if frames < 1 or window < 1:
        raise ValueError(f"frames, window: expected positive numbers, got {frames} and {window}")
    if model_type == "qwen2_5_omni":
        # The second stage pairs outputs of the first and drops an odd one; with one output nothing is left.
        if (tokens := math.ceil(frames / 2) // 2) < 1:
            raise ValueError(f"frames: expected at least 3, got {frames}")
        return tokens
    if model_type == "qwen3_omni_moe":
        whole, rest = divmod(frames, 2 * window)
        # Confession: the 13 is the published constant; it is ceil(100 / 8) and fits the default window only.
        return 13 * whole + math.ceil(rest / 8)
    raise ValueError(f"model_type: expected qwen2_5_omni or qwen3_omni_moe, got {model_type!r}")


def interleaved_types(rule: PositionRule, grid: torch.Tensor, seconds: float, audio_length: int) -> list[int]:
    """Token types (2 video, 3 audio) of one video mixed with its audio, in the order in which the processor puts them.

    Qwen2.5-Omni: chunks of `chunk_seconds`, the video tokens of a chunk before its audio tokens. Qwen3-Omni: by id,
    video before audio where both are equal.

    Args:
        rule: a rule with audio.
        grid: [1, 3] the video's grid.
        seconds: from one frame of the grid to the next.
        audio_length: tokens of the clip.
    """
    if not rule.audio:
        raise ValueError("rule: expected one with audio")
    [video], [audio] = video_blocks(rule, grid, [seconds]), audio_blocks(rule, [audio_length])
    times = [(float(time), kind) for kind, block in ((2, video), (3, audio)) for time in block.offsets[0]]
    if rule.chunk_seconds is not None:
        ids_per_chunk = int(rule.ids_per_second * rule.chunk_seconds)
        times = [(time // ids_per_chunk, kind) for time, kind in times]
    return [kind for _, kind in sorted(times)]
