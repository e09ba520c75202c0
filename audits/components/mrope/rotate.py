"""``mrope.rotate``: queries and keys turned by their multi-axis positions.

Letters: A axes, B batch, S tokens, H heads, D channels of a head, R rotated channels, R/2 lanes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from assay.audits.candidates import of_family, of_function, of_reference
from assay.audits.fields import Count, Positive, Size, one_of
from assay.audits.laws.limits import row_reach
from assay.audits.strategies import st
from assay.audits.terms import Candidate, Family, Form, Numeric, Operation, Outputs
from assay.reference import mrope
from assay.reference.mrope_families import TEXT_ROTARIES

NAME = "mrope.rotate"
FEW = 2048
"""Below so many elements the ordinary form's error is pooled over several draws."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is rotated, and by what. Shapes in the module's letters.

    ``q`` [B,Hq,S,D] and ``k`` [B,Hk,S,D] in one floating dtype, any strides; ``positions`` [A,B,S] int64;
    ``inv_freq`` [R/2] float32 (float64 when q is), radians per position; ``axes`` [R/2] int64, the axis that owns each
    lane, which is what ``layout`` and ``sections`` spell out.
    """

    q: Tensor
    k: Tensor
    positions: Tensor
    inv_freq: Tensor
    axes: Tensor
    layout: str
    sections: tuple[int, ...]
    pairing: str
    attention_scaling: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case. Off-neutral by default: unequal axes, several heads per key head, ragged sizes."""

    seed: Count = 0
    batch: Count = 2
    tokens: Count = 7
    heads: Count = 6
    kv_heads: Count = 2
    layout: Annotated[str, one_of(mrope.LAYOUTS)] = "chunked"
    sections: tuple[Count, ...] = (4, 6, 6)
    pairing: Annotated[str, one_of(mrope.PAIRINGS)] = "half"
    tail: Count = 0
    attention_scaling: Positive = 1.0
    base: Positive = 1e6
    start: Count = 0
    spread: Size = 61
    uniform: bool = False
    memory: Annotated[str, one_of(("view", "packed", "dense"))] = "view"
    scale: Positive = 1.0


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The inputs of a case, from its own generator; what must not be read is NaN."""
    generator = torch.Generator().manual_seed(case.seed)
    lanes = sum(case.sections)
    axes = mrope.lane_axes(case.layout, case.sections)
    q, k = _queries_and_keys(case, 2 * lanes + case.tail, generator)
    for x in (q, k):
        x.mul_(1.0 if dtype == torch.float16 else case.scale)  # float16 has no larger numbers
    shape = (int(axes.max()) + 1, case.batch, case.tokens)
    positions = case.start + torch.randint(0, case.spread, shape, generator=generator)
    positions = positions[:1].expand(shape) if case.uniform else positions
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inv_freq = case.base ** -(torch.arange(lanes, dtype=torch.float64) / lanes)
    return Inputs(
        q=_laid_out(q, dtype, device),
        k=_laid_out(k, dtype, device),
        positions=positions.to(device),
        inv_freq=inv_freq.to(device, wide),
        axes=axes.to(device),
        layout=case.layout,
        sections=case.sections,
        pairing=case.pairing,
        attention_scaling=case.attention_scaling,
    )


def _queries_and_keys(case: Case, channels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random values with rows of very different size, in the memory layout asked for."""
    heads = case.heads + 2 * case.kv_heads
    qkv_BSHD = torch.randn(case.batch, case.tokens, heads, channels, generator=generator)
    qkv_BSHD = qkv_BSHD * torch.exp2(torch.randint(-3, 4, (case.batch, case.tokens, heads, 1), generator=generator))
    q, k, v = torch.split(qkv_BSHD, [case.heads, case.kv_heads, case.kv_heads], dim=2)
    if case.memory == "packed":
        v.fill_(torch.nan)
        return q.transpose(1, 2), k.transpose(1, 2)
    if case.memory == "view":
        return q.contiguous().transpose(1, 2), k.contiguous().transpose(1, 2)
    if case.memory == "dense":
        return q.transpose(1, 2).contiguous(), k.transpose(1, 2).contiguous()
    message = f"memory: expected packed, view or dense, got {case.memory!r}"
    raise ValueError(message)


def _laid_out(x: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Convert dtype and device without changing strides: the storage is converted, the view taken again."""
    flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return flat.to(device, dtype).as_strided(x.shape, x.stride(), x.storage_offset())


def reference(inputs: Inputs) -> Outputs:
    """The specification, in whatever dtype the inputs have: the oracle in float64, the ordinary form below."""
    q, k = mrope.apply(
        inputs.q, inputs.k, inputs.positions, inputs.inv_freq, inputs.axes,
        pairing=inputs.pairing, attention_scaling=inputs.attention_scaling,
    )  # fmt: skip
    return {"q": q, "k": k}


def reach(inputs: Inputs, upstream: Outputs | None) -> Outputs:
    """The largest magnitude of each row, of q and k and of the gradients that enter the backward."""
    scale = abs(inputs.attention_scaling)
    rows = {"q": inputs.q, "k": inputs.k}
    rows |= {f"grad:{name}": grad for name, grad in (upstream or {}).items()}
    return {name: row_reach(row) * scale for name, row in rows.items()}


def draws(inputs: Inputs) -> Iterator[Inputs]:
    """Fresh values of small cases, for the scale of the ordinary form's error."""
    if not 0 < inputs.q.numel() < FEW:
        return
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        fresh: dict[str, Any] = {
            name: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) * row_reach(x).to(x)
            for name, x in (("q", inputs.q), ("k", inputs.k))
        }
        yield dataclasses.replace(inputs, **fresh)


def full_tables(inputs: Inputs, *, merged: bool) -> tuple[Tensor, Tensor]:
    """Cos and sin as Hugging Face hands them to attention: full width, in q's dtype; per axis where not merged."""
    axes = [inputs.axes] if merged else [torch.full_like(inputs.axes, a) for a in range(len(inputs.positions))]
    made = [
        mrope.tables(inputs.positions, inputs.inv_freq, owner, attention_scaling=inputs.attention_scaling)
        for owner in axes
    ]
    full = [mrope.expand_tables(cos, sin, inputs.pairing) for cos, sin in made]
    cos, sin = (torch.stack(parts).to(inputs.q.dtype) for parts in zip(*full, strict=True))
    return (cos[0], sin[0]) if merged else (cos, sin)


def _hf_4_57(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    q, k = function(inputs.q, inputs.k, *full_tables(inputs, merged=False), list(inputs.sections))
    return {"q": q, "k": k}


def _chunked_only(inputs: Inputs) -> str | None:
    if inputs.layout != "chunked" or inputs.pairing != "half":
        return "the form has chunked sections and half pairing only"
    return _whole_heads(inputs)


def _hf_5_17(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    q, k = function(inputs.q, inputs.k, *full_tables(inputs, merged=True))
    return {"q": q, "k": k}


def _half_only(inputs: Inputs) -> str | None:
    return _whole_heads(inputs) if inputs.pairing == "half" else "the form has half pairing only"


def _whole_heads(inputs: Inputs) -> str | None:
    return None if 2 * len(inputs.axes) == inputs.q.shape[-1] else "the form rotates whole heads only"


def _assay_tables(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    cos, sin = mrope.tables(
        inputs.positions, inputs.inv_freq, inputs.axes, attention_scaling=inputs.attention_scaling
    )  # fmt: skip
    options = {"pairing": inputs.pairing, "rotary_dim": 2 * len(inputs.axes)}
    q, k = function(inputs.q, inputs.k, cos, sin, **options)
    return {"q": q, "k": k}


def _assay_positions(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    q, k = function(
        inputs.q, inputs.k, inputs.positions, inputs.inv_freq,
        axes=inputs.axes, pairing=inputs.pairing, attention_scaling=inputs.attention_scaling,
    )  # fmt: skip
    return {"q": q, "k": k}


def strategy() -> st.SearchStrategy[Case]:
    """Small ragged cases over every layout, pairing and memory order."""
    sections = {
        "chunked": [(4, 6, 6), (1, 2, 3), (16, 24, 24), (2, 0, 3), (1, 1, 1)],
        "interleaved": [(6, 5, 5), (24, 20, 20), (5, 4, 3), (3, 3, 2)],
        "alternating": [(5, 5, 6), (2, 2, 1)],
    }
    layouts = st.sampled_from(["chunked", "chunked", "interleaved", "interleaved", "alternating"])
    kv_and_group = st.tuples(st.integers(1, 3), st.integers(1, 4))
    return layouts.flatmap(
        lambda layout: kv_and_group.flatmap(
            lambda sizes: st.builds(
                Case,
                seed=st.integers(0, 2**16),
                batch=st.integers(0, 3),
                tokens=st.integers(0, 9),
                heads=st.just(sizes[0] * sizes[1]),
                kv_heads=st.just(sizes[0]),
                layout=st.just(layout),
                sections=st.sampled_from(sections[layout]),
                pairing=st.sampled_from(["half", "half", "half", "adjacent"]),
                tail=st.sampled_from([0, 0, 0, 2, 12]),
                attention_scaling=st.sampled_from([1.0, 1.0, 0.75, 1.2079441541679836]),
                base=st.sampled_from([1e4, 1e6, 5e6]),
                start=st.sampled_from([0, 1, 255, 4096, 40_000, 1_000_000]),
                uniform=st.booleans(),
                memory=st.sampled_from(["view", "packed", "dense"]),
            )
        )
    )


CASES = {
    "image": Case(),  # three unequal axes, the transposed view
    "text": Case(uniform=True, seed=1),  # equal axes: must be plain RoPE
    "qwen2.5-vl": Case(sections=(16, 24, 24), heads=28, kv_heads=4, tokens=3, memory="packed", seed=2),
    "qwen3-vl": Case(layout="interleaved", sections=(24, 20, 20), heads=8, kv_heads=2, tokens=3, base=5e6, seed=3),
    "qwen3.5": Case(layout="interleaved", sections=(11, 11, 10), tail=24, heads=4, tokens=5, memory="packed", seed=4),
    "glm-4v": Case(sections=(2, 3, 3), pairing="adjacent", tail=16, seed=5),
    "ernie": Case(layout="alternating", sections=(6, 6, 4), pairing="adjacent", seed=6),
    "far": Case(start=40_000, seed=7),  # bfloat16 steps by 256 here
    "farther": Case(start=1_000_000, seed=8),  # float32 angles are 0.06 rad coarse here
    "scaled": Case(attention_scaling=1.2079441541679836, seed=9),  # yarn multiplies the tables
    "one-token": Case(tokens=1, batch=1, memory="dense", seed=10),
    "no-token": Case(tokens=0, seed=11),
    "no-sample": Case(batch=0, seed=12),
    "odd-heads": Case(heads=3, kv_heads=1, tokens=5, seed=13),  # no power of two
    "dense": Case(memory="dense", seed=14),
    "packed": Case(memory="packed", seed=15),
    "long": Case(tokens=37, heads=2, kv_heads=1, batch=1, sections=(1, 2, 3), seed=16),  # more than a tile of tokens
    "many-heads": Case(tokens=2, heads=40, kv_heads=8, sections=(1, 2, 3), seed=17),  # more than a tile of heads
    "group-of-eight": Case(tokens=3, batch=3, heads=16, kv_heads=2, sections=(2, 3, 3), seed=18),
    "d80": Case(tokens=3, heads=4, kv_heads=2, sections=(8, 16, 16), seed=19),  # no power of two
    "large": Case(scale=2.0**14, seed=21),  # beyond float16, which some kernels compute in
    "apart": Case(spread=5000, seed=20),  # axes far from each other
}

FORMS = (
    Form(
        name="hf-4.57",
        summary="function(q, k, cos, sin, mrope_section): per-axis tables [3,B,S,D], chunked sections",
        parameters=("q", "k", "cos", "sin", "mrope_section"),
        call=_hf_4_57,
        accepts=_chunked_only,
    ),
    Form(
        name="hf-5.17",
        summary="function(q, k, cos, sin): tables [B,S,D] already merged over the axes",
        parameters=("q", "k", "cos", "sin"),
        call=_hf_5_17,
        accepts=_half_only,
    ),
    Form(
        name="assay",
        summary="function(q, k, cos, sin, *, pairing, rotary_dim): merged tables of half width [B,S,R/2]",
        parameters=("q", "k", "cos", "sin", "pairing", "rotary_dim"),
        call=_assay_tables,
    ),
    Form(
        name="assay-positions",
        summary="function(q, k, positions, inv_freq, *, axes, pairing, attention_scaling): no tables",
        parameters=("q", "k", "positions", "inv_freq"),
        call=_assay_positions,
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="queries and keys turned by their (time, height, width) positions",
    params=Case,
    build=build,
    outputs=("q", "k"),
    expect=Numeric(oracle=reference, eager=reference, reach=reach, draws=draws),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    differentiable=("q", "k"),
    dtypes=("float32", "bfloat16"),
    further_dtypes=("float16",),
)

CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.mrope"),
    of_function(NAME, "kernel", "assay.kernels.mrope:rotate", origin="assay.kernels.mrope", form="assay", costly=True),
    of_function(
        NAME, "kernel-from-positions", "assay.kernels.mrope:rotate_from_positions", origin="assay.kernels.mrope",
        form="assay-positions", costly=True,
    ),
)  # fmt: skip


# ERNIE's frequencies are stored in an order that depends on its sections: these are those of its tiny model.
FAMILY_SECTIONS = {"chunked": (4, 6, 6), "interleaved": (6, 5, 5), "alternating": (6, 6, 4), "even_odd": (8, 8)}


def for_family(family: Family, patch: str) -> Candidate | None:
    """The rotary module and the apply function of a family's text model, with its layout and pairing."""
    rotary = TEXT_ROTARIES.get(family.rule)
    if rotary is None:
        return None
    sections = FAMILY_SECTIONS[rotary.layout] if rotary.axes < 4 else (3, 5, 4, 4)
    partial = rotary.head_dim > 2 * sum(rotary.sections)
    scope = {"layout": rotary.layout, "pairing": rotary.pairing, "sections": sections, "tail": 12 if partial else 0}
    return of_family(
        NAME, family.name, patch, factory="assay.audits.families.adapt:implementation", scope=scope, site="rotate"
    )
