"""Inverse frequencies: known answers, limits of each recipe, and transformers' own functions over many parameters."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from assay.reference.rope_frequencies import ROPE_TYPES, inverse_frequencies, rope_parameter_names

EXAMPLES = settings(deadline=None, derandomize=True, database=None)
FP32 = torch.finfo(torch.float32).eps


def test_default_by_hand() -> None:
    inv_freq, scaling = inverse_frequencies(8, base=10000.0)
    expected = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    assert float((inv_freq / expected - 1).abs().max()) <= 4 * torch.finfo(torch.float64).eps
    assert scaling == 1.0


def test_recipes_by_hand() -> None:
    base = {"base": 10000.0}
    assert inverse_frequencies(8, **base, rope_type="linear", factor=4)[0][0] == 0.25
    turning = inverse_frequencies(8, **base, rope_type="proportional", partial_rotary_factor=0.5)[0]
    assert turning.count_nonzero() == 2
    _, scaling = inverse_frequencies(8, **base, rope_type="yarn", factor=4, original_max_position_embeddings=64)
    assert scaling == 0.1 * math.log(4) + 1
    llama = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    inv_freq, _ = inverse_frequencies(8, **base, rope_type="llama3", **llama)
    # 64 tokens are 10.2 turns of lane 0 (kept), and 1.02, 0.1 and 0.01 turns of the others.
    assert inv_freq[0] == 1.0
    assert float(inv_freq[3]) == pytest.approx(0.001 / 8, rel=1e-15)
    assert 0.1 / 8 < float(inv_freq[1]) < 0.1 / 7


def config(dim: int, base: float, rope_type: str, longest: int, **parameters: Any) -> SimpleNamespace:
    rope = {"rope_type": rope_type, "rope_theta": base} | parameters
    return SimpleNamespace(
        head_dim=dim, hidden_size=dim, num_attention_heads=1, max_position_embeddings=longest, rope_parameters=rope,
        standardize_rope_params=lambda: None,
    )  # fmt: skip


DIMS = st.integers(2, 64).map(lambda lanes: 2 * lanes)
BASES = st.sampled_from([500.0, 10000.0, 1e6, 5e6])
FACTORS = st.floats(1.0, 64.0)
TRAINED = st.integers(32, 32768)


@st.composite
def recipes(draw: st.DrawFn) -> tuple[int, float, str, int | None, int, dict[str, Any]]:
    dim, rope_type, trained = draw(DIMS), draw(st.sampled_from(sorted(ROPE_INIT_FUNCTIONS))), draw(TRAINED)
    length = draw(st.none() | st.integers(1, 4 * trained))
    factor = draw(FACTORS)
    stretch = st.lists(st.floats(1.0, 50.0), min_size=dim // 2, max_size=dim // 2)
    low = draw(st.floats(0.5, 4.0))
    parameters: dict[str, dict[str, Any]] = {
        "linear": {"factor": factor},
        "dynamic": {"factor": factor},
        "proportional": {"factor": factor, "partial_rotary_factor": draw(st.sampled_from([0.5, 0.7, 1.0]))},
        "yarn": {
            "factor": factor,
            "original_max_position_embeddings": trained,
            "beta_fast": draw(st.sampled_from([16.0, 32.0, 32])),
            "beta_slow": draw(st.sampled_from([1.0, 2.0])),
            "mscale": draw(st.sampled_from([None, 0.707, 1.0])),
            "mscale_all_dim": draw(st.sampled_from([None, 0.5, 1.0])),
            "attention_factor": draw(st.sampled_from([None, 1.25])),
            "truncate": draw(st.booleans()),
        },
        "longrope": {
            "short_factor": draw(stretch) if rope_type == "longrope" else [],
            "long_factor": draw(stretch) if rope_type == "longrope" else [],
            "original_max_position_embeddings": trained,
            "factor": draw(st.none() | FACTORS),
        },
        "llama3": {
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": low + draw(st.floats(0.5, 8.0)),
            "original_max_position_embeddings": trained,
        },
    }
    return dim, draw(BASES), rope_type, length, draw(TRAINED), parameters[rope_type]


@EXAMPLES
@given(recipe=recipes())
def test_every_recipe_equals_transformers(recipe: tuple[int, float, str, int | None, int, dict[str, Any]]) -> None:
    dim, base, rope_type, length, longest, parameters = recipe
    theirs, their_scaling = ROPE_INIT_FUNCTIONS[rope_type](
        config(dim, base, rope_type, longest, **parameters), "cpu", seq_len=length
    )
    needed = set().union(*rope_parameter_names(rope_type))
    more = {"max_position_embeddings": longest} if "max_position_embeddings" in needed else {}
    mine, scaling = inverse_frequencies(
        dim, base=base, rope_type=rope_type, sequence_length=length, **(more | parameters)
    )
    assert scaling == pytest.approx(their_scaling, rel=1e-14)
    # An fp32 power errs by ulps and by the rounding of its exponent, which the logarithm of the result magnifies.
    ulps = 8 + 2 * abs(math.log(float(mine[mine > 0].min())))
    plain, _ = inverse_frequencies(dim, base=base)
    limit = FP32 * (ulps * mine + blend_ulps(rope_type, ulps, parameters) * plain)
    over = (theirs.double() - mine).abs() - limit
    assert float(over.max()) <= 0, f"lane {int(over.argmax())} is over its limit by {float(over.max())}"


def blend_ulps(rope_type: str, ulps: float, parameters: dict[str, Any]) -> float:
    """How an fp32 weight between the fast and the slow frequency errs, in units of eps."""
    if rope_type == "llama3":  # (turns - low) / (high - low) with turns at most high
        high, low = parameters["high_freq_factor"], parameters["low_freq_factor"]
        return ulps * high / (high - low)
    # (lane - low) / width with lanes below R/2; the parameters above keep the width above 0.03 R, or the ends are whole
    # numbers and the difference is exact.
    return 1 / 0.03 if rope_type == "yarn" else 0.0


@pytest.mark.parametrize("rope_type", sorted(ROPE_TYPES))
def test_missing_and_unknown_parameters_are_errors(rope_type: str) -> None:
    required, _ = rope_parameter_names(rope_type)
    if required:
        with pytest.raises(TypeError, match="also needs"):
            inverse_frequencies(8, base=1e4, rope_type=rope_type)
    with pytest.raises(TypeError, match="unknown"):
        inverse_frequencies(8, base=1e4, rope_type=rope_type, **dict.fromkeys(required, 2.0), mscale2=1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"rotary_dim": 7}, ValueError, "rotary_dim"),
        ({"rotary_dim": 0}, ValueError, "rotary_dim"),
        ({"rotary_dim": 8.0}, TypeError, "rotary_dim"),
        ({"base": 0.0}, ValueError, "base"),
        ({"base": math.inf}, ValueError, "base"),
        ({"base": "1e4"}, TypeError, "base"),
        ({"rope_type": "spiral"}, ValueError, "rope_type"),
        ({"sequence_length": 0}, ValueError, "sequence_length"),
        ({"dtype": torch.int32}, TypeError, "dtype"),
        ({"rope_type": "linear", "factor": -1.0}, ValueError, "factor"),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.1}, ValueError, "partial_rotary_factor"),
        ({"rope_type": "proportional", "partial_rotary_factor": 1.1}, ValueError, "partial_rotary_factor"),
        (
            {"rope_type": "dynamic", "factor": 2, "max_position_embeddings": 8, "rotary_dim": 2},
            ValueError,
            "rotary_dim",
        ),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        inverse_frequencies(**({"rotary_dim": 8, "base": 1e4} | arguments))


def test_ntk_alpha_is_hunyuans() -> None:
    module = pytest.importorskip("transformers.models.hunyuan_vl.modeling_hunyuan_vl")
    rope = {"rope_theta": 10000.0, "alpha": 1000.0}
    theirs, _ = module.HunYuanVLRotaryEmbedding.compute_ntk_alpha_rope_parameters(
        SimpleNamespace(head_dim=128, rope_parameters=rope)
    )
    mine, _ = inverse_frequencies(128, base=10000.0, rope_type="ntk_alpha", alpha=1000.0)
    assert float((theirs.double() / mine - 1).abs().max()) <= (16 + 16 * math.log(1e7)) * FP32
