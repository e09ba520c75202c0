"""Layouts and rotation against the rotary modules of the installed transformers, right and wrong."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from assay.reference import mrope
from assay.reference.mrope_families import TEXT_ROTARIES
from assay.reference.rope_frequencies import inverse_frequencies

FP32 = torch.finfo(torch.float32).eps


def random_positions(axes: int, batch: int, tokens: int, seed: int, high: int = 5000) -> torch.Tensor:
    return torch.randint(0, high, (axes, batch, tokens), generator=torch.Generator().manual_seed(seed))


# The text rotary module of each family: class, layout, sections as configured, pairing, and the rotated share.
TEXT_MODULES = {
    "qwen2_vl": ("Qwen2VLRotaryEmbedding", "chunked", [5, 6, 5], "half", 1.0),
    "qwen2_5_vl": ("Qwen2_5_VLRotaryEmbedding", "chunked", [5, 6, 5], "half", 1.0),
    "qwen2_5_omni": ("Qwen2_5OmniRotaryEmbedding", "chunked", [5, 6, 5], "half", 1.0),
    "paddleocr_vl": ("PaddleOCRRotaryEmbedding", "chunked", [5, 6, 5], "half", 1.0),
    "qwen3_vl": ("Qwen3VLTextRotaryEmbedding", "interleaved", [6, 5, 5], "half", 1.0),
    "qwen3_vl_moe": ("Qwen3VLMoeTextRotaryEmbedding", "interleaved", [6, 5, 5], "half", 1.0),
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerTextRotaryEmbedding", "interleaved", [8, 4, 4], "half", 1.0),
    "cosmos3_edge": ("Cosmos3EdgeTextRotaryEmbedding", "interleaved", [8, 4, 4], "half", 1.0),
    "qwen3_5": ("Qwen3_5TextRotaryEmbedding", "interleaved", [4, 2, 2], "half", 0.5),
    "qwen3_5_moe": ("Qwen3_5MoeTextRotaryEmbedding", "interleaved", [4, 2, 2], "half", 0.5),
    "qwen4_exp": ("Qwen4ExpTextRotaryEmbedding", "interleaved", [3, 3, 2], "half", 0.5),
    "glm4v": ("Glm4vTextRotaryEmbedding", "chunked", [2, 3, 3], "adjacent", 0.5),
    "glm_ocr": ("GlmOcrTextRotaryEmbedding", "chunked", [2, 3, 3], "adjacent", 0.5),
    "glm4v_moe": ("Glm4vMoeTextRotaryEmbedding", "chunked", [2, 3, 3], "half", 0.5),
    "glm_image": ("GlmImageTextRotaryEmbedding", "chunked", [2, 3, 3], "half", 0.5),
    "ernie4_5_vl_moe": ("Ernie4_5_VLMoeTextRotaryEmbedding", "alternating", [5, 5, 6], "adjacent", 1.0),
}
HEAD_DIM = 32
BASE = 500.0


@pytest.mark.parametrize("family", sorted(TEXT_MODULES))
def test_what_is_tested_is_what_is_listed(family: str) -> None:
    _, layout, _, pairing, _ = TEXT_MODULES[family]
    assert (TEXT_ROTARIES[family].layout, TEXT_ROTARIES[family].pairing) == (layout, pairing)


def rope_config(sections: list[int], share: float, **parameters: Any) -> SimpleNamespace:
    rope = {"rope_type": "default", "rope_theta": BASE, "mrope_section": sections, "partial_rotary_factor": share}
    return SimpleNamespace(
        head_dim=HEAD_DIM, hidden_size=4 * HEAD_DIM, num_attention_heads=4, max_position_embeddings=4096,
        rope_parameters=rope | parameters,
    )  # fmt: skip


def text_module(family: str) -> tuple[Any, Any]:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    name, _, sections, _, share = TEXT_MODULES[family]
    return module, getattr(module, name)(rope_config(sections, share))


@pytest.mark.parametrize("family", sorted(TEXT_MODULES))
def test_text_rotary_of_hugging_face(family: str) -> None:
    _, layout, sections, pairing, share = TEXT_MODULES[family]
    module, rotary = text_module(family)
    where = random_positions(3, 2, 7, seed=5)
    inv_freq, scaling = inverse_frequencies(int(HEAD_DIM * share), base=BASE)
    axes = mrope.lane_axes(layout, sections)
    gen = torch.Generator().manual_seed(6)
    q, k = (torch.randn(2, heads, 7, HEAD_DIM, generator=gen) for heads in (3, 1))

    cos, sin = rotary(q, where)
    mine = mrope.expand_tables(*mrope.tables(where, inv_freq, axes, attention_scaling=scaling), pairing)
    # Theirs are fp32 angles: eps of the frequency (its power is off by some ulps), of the product, and of the result.
    limit = 8 * FP32 * float(where.max()) + FP32
    for theirs, ours in zip((cos, sin), mine, strict=True):
        assert float((theirs.double() - ours).abs().max()) <= limit

    turned = module.apply_rotary_pos_emb(q, k, cos, sin)
    truth = mrope.apply(q.double(), k.double(), where, inv_freq, axes, pairing=pairing)
    for theirs, ours in zip(turned, truth, strict=True):
        assert float((theirs.double() - ours).abs().max()) <= 2 * limit * float(q.abs().max() + k.abs().max())


@pytest.mark.parametrize("family", sorted(TEXT_MODULES))
def test_layouts_of_hugging_face_exactly(family: str) -> None:
    """Feed their recomposition the axis number in place of the cosine: it has to put each number where we do."""
    _, layout, sections, pairing, share = TEXT_MODULES[family]
    _, rotary = text_module(family)
    lanes = int(HEAD_DIM * share) // 2
    axes_A1SL = torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, lanes).clone()
    mine, _ = mrope.expand_tables(*[mrope.lane_axes(layout, sections)[None, None]] * 2, pairing)
    assert torch.equal(rotary.recomposition_frequencies(axes_A1SL), mine.float())


def test_cohere_compass_and_neomme_layouts() -> None:
    compass = importlib.import_module("transformers.models.cohere_compass.modeling_cohere_compass")
    bare = compass.CohereCompassRotaryEmbedding.recomposition_frequencies
    axes = torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, 16).clone()
    mine, _ = mrope.expand_tables(*[mrope.lane_axes("interleaved", [6, 5, 5])[None, None]] * 2, "half")
    assert torch.equal(bare(SimpleNamespace(mrope_section={"full": [6, 5, 5]}), axes, "full"), mine.float())

    neomme = importlib.import_module("transformers.models.neomme.modeling_neomme")
    axes = torch.arange(2.0)[:, None, None, None].expand(2, 1, 1, 8).clone()
    mine, _ = mrope.expand_tables(*[mrope.lane_axes("even_odd", [4, 4])[None, None]] * 2, "half")
    assert torch.equal(neomme.NeoMMERotaryEmbedding.recomposition_frequencies(None, axes), mine.float())


def test_hunyuan_of_transformers_splits_the_two_channels_of_a_lane_between_axes() -> None:
    """A known defect of transformers 5.23.0, asserted so that its repair shows.

    HunyuanOCR's own code repeats the list of sections, [16, 16, 16, 16] -> eight chunks, chunk i to axis i mod 4. The
    port doubles each section instead, so channel i and channel i + R/2 of a lane get different angles: not a rotation.
    """
    module = importlib.import_module("transformers.models.hunyuan_vl.modeling_hunyuan_vl")
    rotary = module.HunYuanVLRotaryEmbedding(rope_config([4, 4, 4, 4], 1.0))
    axes = torch.arange(4.0)[:, None, None, None].expand(4, 1, 1, 16)
    theirs = rotary.recomposition_frequencies(axes).flatten()
    mine, _ = mrope.expand_tables(*[mrope.lane_axes("chunked", [4, 4, 4, 4])[None, None]] * 2, "half")
    assert mine.flatten().tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert theirs.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8, (
        "repaired upstream: compare with ours like the rest"
    )
    x = torch.ones(1, 1, 1, HEAD_DIM)
    cos, sin = rotary(x, torch.tensor([3, 5, 7, 1])[:, None, None])
    turned, _ = module.apply_rotary_pos_emb(x, x, cos, sin)
    assert abs(float(turned.norm() / x.norm()) - 1) > 0.01
