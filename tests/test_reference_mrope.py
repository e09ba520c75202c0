"""Layouts, tables and rotation: known answers, laws, and arguments that are refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.reference import mrope
from assay.reference.mrope_families import TEXT_ROTARIES
from assay.reference.rope_frequencies import inverse_frequencies

EXAMPLES = settings(deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(
    ("layout", "sections", "owners"),
    [
        ("chunked", [2, 3, 1], "001112"),
        ("chunked", [1, 2, 3, 1], "0112223"),
        ("interleaved", [4, 2, 2], "01201200"),
        ("interleaved", [3, 3, 2], "01201201"),
        ("interleaved", [3, 2, 1], "012010"),
        ("interleaved", [4, 0, 0], "0000"),
        ("alternating", [2, 2, 3], "1212000"),
        ("even_odd", [3, 3], "010101"),
    ],
)
def test_owners_by_hand(layout: str, sections: list[int], owners: str) -> None:
    assert "".join(map(str, mrope.lane_axes(layout, sections).tolist())) == owners


def test_more_sections_than_axes_go_round() -> None:
    assert mrope.lane_axes("chunked", [1, 2, 1, 2, 1, 1], axes=3).tolist() == [0, 1, 1, 2, 0, 0, 1, 2]


@EXAMPLES
@given(
    sections=st.lists(st.integers(0, 40), min_size=3, max_size=3).filter(any), layout=st.sampled_from(mrope.LAYOUTS[:3])
)
def test_each_axis_owns_exactly_its_section_or_the_layout_refuses(sections: list[int], layout: str) -> None:
    lanes = sum(sections)
    refused = {
        "chunked": False,
        "interleaved": 3 * sections[1] > lanes + 1 or 3 * sections[2] > lanes,
        "alternating": sections[0] != sections[1],
    }
    if refused[layout]:
        with pytest.raises(ValueError, match="sections"):
            mrope.lane_axes(layout, sections)
        return
    owners = mrope.lane_axes(layout, sections)
    order = [1, 2, 0] if layout == "alternating" else [0, 1, 2]
    assert [int((owners == axis).sum()) for axis in order] == sections


@pytest.mark.parametrize(
    ("layout", "sections", "axes"),
    [
        ("interleaved", [16, 8, 8, 0], None),
        ("interleaved", [1, 8, 8], None),
        ("interleaved", [2, 3, 3], None),
        ("alternating", [3, 2, 4], None),
        ("even_odd", [3, 2], None),
        ("chunked", [], None),
        ("chunked", [2, -1], None),
        ("chunked", [2, 2], 3),
        ("spiral", [2, 2, 2], None),
    ],
)
def test_what_a_layout_cannot_place_is_an_error(layout: str, sections: list[int], axes: int | None) -> None:
    with pytest.raises(ValueError, match=r"sections|axes|layout"):
        mrope.lane_axes(layout, sections, axes=axes)


def test_a_quarter_turn_by_hand() -> None:
    quarter = torch.tensor([torch.pi / 2, 0.0], dtype=torch.float64)
    cos, sin = quarter.cos()[None, None], quarter.sin()[None, None]
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)[None, None, None]
    expected = {"half": [-3, 2, 1, 4, 5], "adjacent": [-2, 1, 3, 4, 5], "half_per_axis": [-2, 1, 3, 4, 5]}
    for pairing, values in expected.items():
        out = mrope.rotate(x, cos, sin, pairing=pairing).flatten()
        # Each output is a sum of two products of factors of at most 4, with cos(pi / 2) off by half an eps.
        assert (
            float((out - torch.tensor(values, dtype=torch.float64)).abs().max())
            <= 2 * 4 * torch.finfo(torch.float64).eps
        )


def random_positions(axes: int, batch: int, tokens: int, seed: int, high: int = 5000) -> torch.Tensor:
    return torch.randint(0, high, (axes, batch, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pairing", mrope.PAIRINGS)
def test_relative_positions_alone_matter_and_lengths_stay(pairing: str) -> None:
    gen = torch.Generator().manual_seed(7)
    q, k = (torch.randn(1, 2, 1, 28, dtype=torch.float64, generator=gen) for _ in range(2))
    inv_freq, _ = inverse_frequencies(24, base=1e4)
    axes = mrope.lane_axes("chunked", [3, 4, 5])
    at, other = torch.tensor([3, 70, 11])[:, None, None], torch.tensor([9, 2, 40])[:, None, None]

    def score(shift: int) -> torch.Tensor:
        turned_q, turned_k = (
            mrope.apply(x, x, where + shift, inv_freq, axes, pairing=pairing)[0] for x, where in ((q, at), (k, other))
        )
        return (turned_q * turned_k).sum()

    # Angles reach 1070 radians, so each carries an absolute error of 1070 eps, twice per lane and side.
    limit = 4 * 1070 * torch.finfo(torch.float64).eps * float(q.norm() * k.norm())
    assert abs(float(score(0) - score(1000))) <= limit
    turned, _ = mrope.apply(q, q, at, inv_freq, axes, pairing=pairing)
    assert abs(float(turned.norm() - q.norm())) <= 28 * torch.finfo(torch.float64).eps * float(q.norm())
    assert torch.equal(turned[..., 24:], q[..., 24:])


@pytest.mark.parametrize("pairing", mrope.PAIRINGS)
def test_one_axis_moves_only_its_own_lanes(pairing: str) -> None:
    inv_freq, _ = inverse_frequencies(24, base=1e4)
    axes = mrope.lane_axes("interleaved", [4, 4, 4])
    where = random_positions(3, 2, 5, seed=1)
    x = torch.randn(2, 3, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    before, _ = mrope.apply(x, x, where, inv_freq, axes, pairing=pairing)
    for axis in range(3):
        moved = where.clone()
        moved[axis] += 1
        after, _ = mrope.apply(x, x, moved, inv_freq, axes, pairing=pairing)
        changed = (after != before).flatten(0, 2).any(0)
        first, second = mrope.lane_channels(pairing, 24)
        assert torch.equal(changed[first], axes == axis)
        assert torch.equal(changed[second], axes == axis)


@EXAMPLES
@given(half=st.integers(1, 40), pairing=st.sampled_from(mrope.PAIRINGS))
def test_lanes_use_each_channel_once(half: int, pairing: str) -> None:
    if pairing == "half_per_axis" and half % 2:
        return
    channels = torch.cat(mrope.lane_channels(pairing, 2 * half))
    assert sorted(channels.tolist()) == list(range(2 * half))


def test_gradients_of_the_rotation() -> None:
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(1, 2, 3, 10, dtype=torch.float64, generator=gen, requires_grad=True)
    angle = torch.randn(1, 3, 4, dtype=torch.float64, generator=gen)
    tables = [table.requires_grad_() for table in (angle.cos(), angle.sin())]
    assert torch.autograd.gradcheck(lambda *a: mrope.rotate(*a, pairing="adjacent"), (x, *tables))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_float_positions_are_refused(dtype: torch.dtype) -> None:
    inv_freq, _ = inverse_frequencies(8, base=1e4)
    with pytest.raises(TypeError, match="positions: expected an integer dtype"):
        mrope.tables(torch.zeros(3, 1, 2, dtype=dtype), inv_freq, mrope.lane_axes("chunked", [2, 1, 1]))


def test_a_position_that_the_dtype_lacks_is_refused() -> None:
    axes = mrope.lane_axes("chunked", [2, 1, 1])
    narrow = inverse_frequencies(8, base=1e4, dtype=torch.bfloat16)[0]
    mrope.tables(torch.full((3, 1, 1), 256), narrow, axes)
    with pytest.raises(ValueError, match="not every position"):
        mrope.tables(torch.full((3, 1, 1), 257), narrow, axes)


USUAL_TABLES: dict[str, Any] = {
    "positions": torch.zeros(3, 1, 2, dtype=torch.int64),
    "inv_freq": torch.ones(4, dtype=torch.float64),
    "axes": torch.tensor([0, 0, 1, 2]),
}


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"positions": [[[0]]]}, TypeError, "positions"),
        ({"positions": torch.zeros(3, 1, 2, dtype=torch.bool)}, TypeError, "positions"),
        ({"positions": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, "positions"),
        ({"positions": torch.zeros(0, 1, 2, dtype=torch.int64)}, ValueError, "positions"),
        ({"inv_freq": torch.ones(4, dtype=torch.int64)}, TypeError, "inv_freq"),
        ({"inv_freq": torch.ones(4, 1)}, ValueError, "inv_freq"),
        ({"inv_freq": torch.ones(0)}, ValueError, "inv_freq"),
        ({"axes": torch.tensor([0.0, 0.0, 1.0, 2.0])}, TypeError, "axes"),
        ({"axes": torch.tensor([0, 0, 1, 2], dtype=torch.int32)}, TypeError, "axes"),
        ({"axes": torch.tensor([0, 0, 1])}, ValueError, "axes"),
        ({"axes": torch.tensor([0, 0, 1, 3])}, ValueError, "axes"),
        ({"axes": torch.tensor([0, 0, 1, -1])}, ValueError, "axes"),
        ({"attention_scaling": float("nan")}, ValueError, "attention_scaling"),
    ],
)
def test_bad_arguments_of_tables_are_named(arguments: dict[str, Any], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name}"):
        mrope.tables(**(USUAL_TABLES | arguments))


@pytest.mark.parametrize(
    ("x", "cos", "sin", "error", "name"),
    [
        ((1, 2, 3, 8), (1, 3, 5), (1, 3, 5), ValueError, "cos"),
        ((1, 2, 3, 8), (1, 3, 0), (1, 3, 0), ValueError, "cos"),
        ((1, 2, 3, 8), (1, 2, 4), (1, 2, 4), ValueError, "cos"),
        ((2, 2, 3, 8), (1, 3, 4), (1, 3, 4), ValueError, "cos"),
        ((1, 2, 3, 8), (3, 4), (3, 4), ValueError, "cos"),
        ((1, 2, 3, 8), (1, 3, 4), (1, 3, 3), ValueError, "sin"),
        ((2, 3, 8), (1, 3, 4), (1, 3, 4), ValueError, "x"),
    ],
)
def test_shapes_that_do_not_fit_are_named(x: Any, cos: Any, sin: Any, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name}"):
        mrope.rotate(torch.zeros(x), torch.zeros(cos), torch.zeros(sin))


def test_dtypes_are_not_mixed_in_silence() -> None:
    x, table = torch.zeros(1, 2, 3, 8), torch.zeros(1, 3, 4)
    with pytest.raises(TypeError, match=r"^cos: expected torch\.float32"):
        mrope.rotate(x, table.double(), table)
    with pytest.raises(TypeError, match=r"^sin"):
        mrope.rotate(x, table, table.bfloat16())
    with pytest.raises(TypeError, match=r"^x"):
        mrope.rotate(x.long(), table, table)
    with pytest.raises(TypeError, match=r"^k"):
        mrope.apply(x, x.double(), torch.zeros(3, 1, 3, dtype=torch.int64), torch.ones(4), torch.tensor([0, 0, 1, 2]))
    with pytest.raises(ValueError, match=r"^sin"):
        mrope.expand_tables(table, table[..., :3], "half")
    for bad, error in ((7, ValueError), (0, ValueError), (8.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="rotary_dim"):
            mrope.lane_channels("half", bad)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ValueError, match="multiple of 4"):
        mrope.lane_channels("half_per_axis", 6)
    with pytest.raises(ValueError, match="pairing"):
        mrope.lane_channels("thirds", 6)
    with pytest.raises(TypeError, match="sections"):
        mrope.lane_axes("chunked", [2.0, 1, 1])  # type: ignore[list-item]  # what is refused


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_empty_and_strided_inputs(tokens: int) -> None:
    """Zero tokens come back as zero tokens, and a view of a packed tensor gives what its copy gives."""
    packed = torch.randn(2, tokens, 3, 3, 16, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    q, k = packed[:, :, 0].transpose(1, 2), packed[:, :, 1].transpose(1, 2)
    where = random_positions(3, 2, tokens, seed=9, high=2_000_000)
    inv_freq, _ = inverse_frequencies(12, base=1e4)
    axes = mrope.lane_axes("interleaved", [2, 2, 2])
    views = mrope.apply(q, k, where, inv_freq, axes)
    copies = mrope.apply(q.contiguous(), k.contiguous(), where, inv_freq, axes)
    for view, copy, source in zip(views, copies, (q, k), strict=True):
        assert view.shape == source.shape
        assert torch.equal(view, copy)
        assert torch.equal(view[..., 12:], source[..., 12:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_dtype_stays_what_it_is(dtype: torch.dtype) -> None:
    x = torch.ones(1, 1, 2, 8, dtype=dtype)
    inv_freq, _ = inverse_frequencies(8, base=1e4)
    where = torch.full((3, 1, 2), 40_000)
    turned, _ = mrope.apply(x, x, where, inv_freq, mrope.lane_axes("chunked", [2, 1, 1]), attention_scaling=0.5)
    assert turned.dtype == dtype
    truth, _ = mrope.apply(
        *[x.double()] * 2, where, inv_freq, mrope.lane_axes("chunked", [2, 1, 1]), attention_scaling=0.5
    )
    # Tables rounded once, two products and a sum of numbers of at most 1/2 each.
    assert float((turned.double() - truth).abs().max()) <= 3 * torch.finfo(dtype).eps


def test_text_alone_is_ordinary_rope() -> None:
    """Equal ids on all axes: every layout is the same rotation, that of one axis."""
    inv_freq, _ = inverse_frequencies(24, base=1e4)
    x = torch.randn(1, 2, 9, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    index = torch.arange(9).expand(3, 1, 9)
    plain, _ = mrope.apply(x, x, index[:1], inv_freq, torch.zeros(12, dtype=torch.int64))
    for layout in ("chunked", "interleaved", "alternating"):
        turned, _ = mrope.apply(x, x, index, inv_freq, mrope.lane_axes(layout, [4, 4, 4]))
        assert torch.equal(turned, plain)


def test_released_sections_fit_their_layout_and_head() -> None:
    for rotary in TEXT_ROTARIES.values():
        owners = mrope.lane_axes(rotary.layout, rotary.sections, axes=rotary.axes)
        assert 2 * len(owners) <= rotary.head_dim
        assert sorted(set(owners.tolist())) == list(range(rotary.axes))
        mrope.lane_channels(rotary.pairing, 2 * len(owners))
