"""Inverse frequencies of rotary position embeddings: how fast each lane turns, for every scaling recipe in use.

A rotary embedding of `R` channels has `R/2` lanes; lane `i` turns by `inv_freq[i]` radians per position, and
`inv_freq[i] = base ** (-2 i / R)` unless a recipe stretches it. All arithmetic is float64; the result is rounded once,
to the dtype that was asked for.

Sources: RoFormer (arXiv 2104.09864) for the default; position interpolation (2306.15595) for `linear`; dynamic NTK
scaling as published by its authors for `dynamic`; YaRN (2309.00071); LongRoPE (2402.13753); Llama 3.1's model card code
for `llama3`; Gemma 4 for `proportional`; HunYuan's `alpha` form of NTK scaling for `ntk_alpha`.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

__all__ = ["ROPE_TYPES", "inverse_frequencies", "rope_parameter_names"]


class _Recipe(Protocol):
    def __call__(self, dim: int, base: float, **parameters: Any) -> tuple[torch.Tensor, float]: ...


def inverse_frequencies(
    rotary_dim: int,
    *,
    base: float,
    rope_type: str = "default",
    sequence_length: int | None = None,
    dtype: torch.dtype = torch.float64,
    **parameters: Any,
) -> tuple[torch.Tensor, float]:
    """Radians per position of every lane, and the factor that multiplies cos and sin.

    Args:
        rotary_dim: number of rotated channels `R` (even, positive). With partial rotary embeddings this is the rotated
            part of the head, not the head; for `proportional` it is the whole head.
        base: the base of the geometric series (`rope_theta`), finite and greater than 0.
        rope_type: a key of `ROPE_TYPES`.
        sequence_length: tokens in the sequence; read by `dynamic` and `longrope` only, optional for both
            (None means: not longer than the trained length).
        dtype: floating dtype of the result.
        **parameters: what the recipe needs; `rope_parameter_names(rope_type)` lists it.

    Returns:
        `inv_freq` of shape [R/2] on the CPU, and `attention_scaling`, 1.0 where the recipe has none.

    Raises:
        TypeError: an argument of the wrong type, a parameter the recipe does not know, or one that is missing.
        ValueError: a value outside its range, or an unknown `rope_type`.
    """
    _even("rotary_dim", rotary_dim)
    base = _positive("base", base)
    if sequence_length is not None:
        _count("sequence_length", sequence_length)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype: expected a floating torch.dtype, got {dtype!r}")
    recipe = _recipe(rope_type)
    required, optional = rope_parameter_names(rope_type)
    missing, unknown = required - parameters.keys(), parameters.keys() - required - optional
    if missing:
        raise TypeError(f"parameters: rope_type {rope_type!r} also needs {sorted(missing)}, got {sorted(parameters)}")
    if unknown:
        known = sorted(required | optional)
        raise TypeError(f"parameters: rope_type {rope_type!r} knows {known}, got unknown {sorted(unknown)}")
    if "sequence_length" in inspect.signature(recipe).parameters:
        parameters["sequence_length"] = sequence_length
    inv_freq, scaling = recipe(rotary_dim, base, **parameters)
    return inv_freq.to(dtype), scaling


def rope_parameter_names(rope_type: str) -> tuple[set[str], set[str]]:
    """The names of the parameters that a rope type requires, and of those it accepts besides."""
    given = inspect.signature(_recipe(rope_type)).parameters.values()
    keywords = [p for p in given if p.kind is inspect.Parameter.KEYWORD_ONLY]
    required = {p.name for p in keywords if p.default is inspect.Parameter.empty} - {"sequence_length"}
    return required, {p.name for p in keywords} - required - {"sequence_length"}


def _default(dim: int, base: float) -> tuple[torch.Tensor, float]:
    return _geometric(dim, base), 1.0


def _linear(dim: int, base: float, *, factor: float) -> tuple[torch.Tensor, float]:
    """Positions are squeezed by `factor`, which is the same as slower lanes."""
    return _geometric(dim, base) / _positive("factor", factor), 1.0


def _ntk_alpha(dim: int, base: float, *, alpha: float) -> tuple[torch.Tensor, float]:
    """A larger base: the slowest lane is stretched by `alpha`, the fastest not at all."""
    return _geometric(dim, base * _positive("alpha", alpha) ** _ntk_exponent(dim)), 1.0


def _dynamic(
    dim: int, base: float, *, factor: float, max_position_embeddings: int, sequence_length: int | None
) -> tuple[torch.Tensor, float]:
    """NTK scaling that grows with the sequence; nothing changes up to the trained length."""
    factor, trained = _positive("factor", factor), _count("max_position_embeddings", max_position_embeddings)
    ratio = max(sequence_length or 0, trained) / trained
    return _geometric(dim, base * (factor * ratio - (factor - 1)) ** _ntk_exponent(dim)), 1.0


def _yarn(
    dim: int,
    base: float,
    *,
    factor: float,
    original_max_position_embeddings: int,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> tuple[torch.Tensor, float]:
    """Lanes that turn often within the trained length keep their speed, those that turn less than once are slowed.

    Between `beta_fast` and `beta_slow` turns there is a linear ramp over lane numbers; `truncate` rounds its ends
    outwards to whole lanes. Confession: the upper end is clipped at `R - 1` although lanes stop at `R/2 - 1`; the
    published code does so and released models depend on it.
    """
    factor = _positive("factor", factor)
    trained = _count("original_max_position_embeddings", original_max_position_embeddings)
    if base <= 1.0:
        raise ValueError(f"base: yarn needs a base above 1, got {base}")

    def lane_that_turns(times: float) -> float:
        return dim * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = lane_that_turns(_positive("beta_fast", beta_fast)), lane_that_turns(_positive("beta_slow", beta_slow))
    if truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, dim - 1.0)
    width = high - low if high != low else 0.001
    slowed = ((torch.arange(dim // 2, dtype=torch.float64) - low) / width).clamp(0, 1)
    fast = _geometric(dim, base)
    if attention_factor is None:
        attention_factor = _yarn_attention(factor, mscale, mscale_all_dim)
    return fast * (1 - slowed) + fast / factor * slowed, float(attention_factor)


def _yarn_attention(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return temperature(mscale) / temperature(mscale_all_dim)
    return temperature(1.0)


def _longrope(
    dim: int,
    base: float,
    *,
    short_factor: Sequence[float],
    long_factor: Sequence[float],
    original_max_position_embeddings: int,
    sequence_length: int | None,
    factor: float | None = None,
    max_position_embeddings: int | None = None,
    attention_factor: float | None = None,
) -> tuple[torch.Tensor, float]:
    """Each lane has its own stretch, one list up to the trained length and another beyond it.

    `factor` is the ratio of the extended to the trained length; where it is absent, `max_position_embeddings` gives it.
    One of `factor`, `max_position_embeddings` and `attention_factor` has to be there.
    """
    trained = _count("original_max_position_embeddings", original_max_position_embeddings)
    beyond = sequence_length is not None and sequence_length > trained
    stretch = _per_lane("long_factor", long_factor, dim), _per_lane("short_factor", short_factor, dim)
    inv_freq = _geometric(dim, base) / (stretch[0] if beyond else stretch[1])
    if attention_factor is None:
        attention_factor = _longrope_attention(trained, factor, max_position_embeddings)
    return inv_freq, float(attention_factor)


def _longrope_attention(trained: int, factor: float | None, longest: int | None) -> float:
    if factor is None and longest is None:
        raise TypeError("parameters: longrope needs factor, max_position_embeddings or attention_factor, got none")
    ratio = _positive("factor", factor) if factor is not None else _count("max_position_embeddings", longest) / trained
    return 1.0 if ratio <= 1.0 else math.sqrt(1 + math.log(ratio) / math.log(trained))


def _llama3(
    dim: int,
    base: float,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> tuple[torch.Tensor, float]:
    """Lanes slower than one of two wavelengths are divided by `factor`, faster ones kept, blended in between."""
    trained = _count("original_max_position_embeddings", original_max_position_embeddings)
    low, high = _positive("low_freq_factor", low_freq_factor), _positive("high_freq_factor", high_freq_factor)
    if high <= low:
        raise ValueError(f"high_freq_factor: expected more than low_freq_factor ({low}), got {high}")
    plain = _geometric(dim, base)
    turns = trained * plain / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * kept + plain / _positive("factor", factor) * (1 - kept), 1.0


def _proportional(
    dim: int, base: float, *, partial_rotary_factor: float = 1.0, factor: float = 1.0
) -> tuple[torch.Tensor, float]:
    """The exponents of the whole head, but only the first share of the lanes turn; the others have frequency 0."""
    share = _positive("partial_rotary_factor", partial_rotary_factor)
    if share > 1:
        raise ValueError(f"partial_rotary_factor: expected a number in (0, 1], got {share}")
    count = int(share * dim // 2)
    if not count:
        raise ValueError(f"partial_rotary_factor: {share} of {dim} channels leaves no lane that turns")
    turning = torch.arange(dim // 2) < count
    return _geometric(dim, base) * turning / _positive("factor", factor), 1.0


ROPE_TYPES: dict[str, Callable[..., tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
    "ntk_alpha": _ntk_alpha,
}
"""Every scaling recipe by the name that model configurations use; `ntk_alpha` is HunYuan's, there called `dynamic`."""


def _recipe(rope_type: str) -> _Recipe:
    if rope_type not in ROPE_TYPES:
        raise ValueError(f"rope_type: expected one of {sorted(ROPE_TYPES)}, got {rope_type!r}")
    return ROPE_TYPES[rope_type]


def _geometric(dim: int, base: float) -> torch.Tensor:
    return torch.tensor(base, dtype=torch.float64) ** (-2.0 * torch.arange(dim // 2, dtype=torch.float64) / dim)


def _ntk_exponent(dim: int) -> float:
    if dim <= 2:
        raise ValueError(f"rotary_dim: this rope type needs more than 2 channels, got {dim}")
    return dim / (dim - 2)


def _even(name: str, value: object) -> None:
    if _count(name, value) % 2:
        raise ValueError(f"{name}: expected an even number, got {value}")


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name}: expected a positive int, got {value}")
    return value


def _positive(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    return float(value)


def _per_lane(name: str, values: Sequence[float], dim: int) -> torch.Tensor:
    stretch = torch.tensor([_positive(f"{name}[{i}]", value) for i, value in enumerate(values)], dtype=torch.float64)
    if len(stretch) != dim // 2:
        raise ValueError(f"{name}: expected {dim // 2} numbers (rotary_dim / 2), got {len(stretch)}")
    return stretch
