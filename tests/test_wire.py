"""Messages between processes: what arrives is what was sent, views as views; what is no message says so."""

from __future__ import annotations

import dataclasses
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.audits import wire
from assay.audits.components.mrope import positions, rotate
from assay.audits.terms import Outcome, Raised

DTYPES = [
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip
CPU = torch.device("cpu")


def sent(value: Any) -> Any:
    """What arrives."""
    return wire.decode(*wire.encode(value))


def same(left: Tensor, right: Tensor) -> bool:
    """Equal in shape, strides, offset, dtype and every bit that either shows."""
    looks = [(x.dtype, x.shape, x.stride(), x.storage_offset()) for x in (left, right)]
    return looks[0] == looks[1] and torch.equal(_bits(left), _bits(right))


def _bits(x: Tensor) -> Tensor:
    dense = torch.empty(x.numel(), dtype=x.dtype)
    return dense.copy_(x.reshape(-1)).view(torch.uint8)


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """A view of random bytes: any strides, zero among them, any offset, empty sizes too."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    stride = [draw(st.integers(0, 7)) for _ in shape]
    offset = draw(st.integers(0, 9))
    reach = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True) if size) + 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    top = 2 if dtype is torch.bool else 256
    octets = torch.randint(0, top, (reach * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return octets.view(dtype).as_strided(shape, stride, offset)


@settings(max_examples=300, deadline=None)
@given(views())
def test_views_stay_views(x: Tensor) -> None:
    """With the memory around them."""
    y = sent(x)
    assert same(x, y)
    assert y.untyped_storage().nbytes() == x.untyped_storage().nbytes()
    assert y.untyped_storage().data_ptr() % 64 == 0


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(), inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_trees_arrive_as_they_were(tree: Any) -> None:
    """Tuples as tuples, dicts in their order, whatever the keys are called."""
    again = sent({"__tensor__": tree, "__record__": [tree]})
    assert again == {"__tensor__": tree, "__record__": [tree]}
    assert repr(again) == repr({"__tensor__": tree, "__record__": [tree]})


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -0.0, 5e-324])
def test_odd_numbers(number: float) -> None:
    """JSON has none of them, Python's has."""
    assert repr(sent(number)) == repr(number)


@pytest.mark.parametrize("memory", ["packed", "view", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_inputs_records(memory: str, dtype: torch.dtype) -> None:
    """The records of operations, tensors and all else."""
    inputs = rotate.build(rotate.Case(memory=memory), dtype, CPU)
    again = sent(inputs)
    for field in dataclasses.fields(inputs):
        left, right = getattr(inputs, field.name), getattr(again, field.name)
        assert same(left, right) if isinstance(left, Tensor) else left == right
    assert isinstance(again, rotate.Inputs)
    assert isinstance(sent(positions.build(positions.Case(), torch.int64, CPU)), positions.Inputs)


def test_slices_of_one_buffer_share_one() -> None:
    """Also of different dtypes, and sent once."""
    whole = torch.arange(120.0).view(2, 3, 20)
    q, k, v = whole.split([8, 8, 4], dim=-1)
    header, blob = wire.encode({"q": q, "k": (k, [v]), "bits": whole.view(torch.int32)[0]})
    again = wire.decode(header, blob)
    q2, k2, v2, bits = again["q"], again["k"][0], again["k"][1][0], again["bits"]
    assert len({x.untyped_storage().data_ptr() for x in (q2, k2, v2, bits)}) == 1
    assert len(blob) < whole.numel() * 4 + 200
    v2.fill_(torch.nan)
    assert torch.equal(q2, q)
    assert bits.dtype == torch.int32


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(0), torch.empty(3, 0, 2), torch.tensor(5), torch.empty(4)[:0], torch.empty(0)[None].expand(7, 0),
        torch.tensor(1.5).expand(1 << 20, 1 << 20),
    ],
)  # fmt: skip
def test_little_or_nothing(x: Tensor) -> None:
    """Storages of no byte, and a number that is repeated a million million times."""
    assert sent(x).shape == x.shape
    assert sent((x, x))[1].stride() == x.stride()


def test_what_a_gradient_is_attached_to_travels_detached() -> None:
    """The graph stays behind."""
    x = torch.ones(3, requires_grad=True)
    assert not sent(x * 2).requires_grad


def test_negated_views_arrive_negated() -> None:
    """The imaginary part of a conjugate is a view whose memory has the other sign."""
    x = torch.view_as_complex(torch.arange(8.0).view(4, 2)).conj().imag
    assert x.is_neg()
    assert torch.equal(sent(x), torch.tensor([-1.0, -3.0, -5.0, -7.0]))


def test_outcomes() -> None:
    """With all that they say."""
    outcome = Outcome(
        values={"q": torch.ones(2)}, raised=Raised("exit", "\ud800 \0 ü"), sites={"a": 3}, notes=("x", "y"), stdout="z"
    )
    again = sent(outcome)
    assert dataclasses.replace(again, values={}) == dataclasses.replace(outcome, values={})
    assert same(again.values["q"], outcome.values["q"])


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "cannot send a object"),
        ({1, 2}, "cannot send a set"),
        (b"x", "cannot send a bytes"),
        ([1, {"a": test_outcomes}], "cannot send a function"),
        ({1: 2}, "mapping keys must be str"),
        (torch.zeros(2, 2).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(2, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(2, device="meta"), "on meta"),
    ],
)
def test_what_cannot_travel_says_so(value: Any, why: str) -> None:
    """Before a byte is written."""
    with pytest.raises(wire.Unsendable, match=why):
        wire.encode(value)


@pytest.mark.parametrize(
    ("header", "blob"),
    [
        (b"", b""),
        (b"{", b""),
        (b"\xff", b""),
        (b'{"x": 1}', b""),
        (b'{"__tensor__": "s0"}', b""),
        (b'{"__record__": "os:system", "fields": {}}', b""),
        (b'{"__record__": "assay.audits.wire:encode", "fields": {"value": 1}}', b""),
        (b'{"__record__": "assay.audits.terms:Raised", "fields": {"nothing": 1}}', b""),
        (b"[1]", b"not safetensors"),
    ],
)
def test_what_is_no_message_says_so(header: bytes, blob: bytes) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(wire.Garbled, match="cannot be read"):
        wire.decode(header, blob)


def test_a_tensor_beyond_its_memory_is_no_message() -> None:
    """Else it would show what lies behind."""
    header, blob = wire.encode(torch.ones(4))
    with pytest.raises(wire.Garbled, match="out of bounds"):
        wire.decode(header.replace(b"[4]", b"[5]"), blob)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def _later(do: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=do)
    thread.start()
    return thread


def test_large_tensors(pair: tuple[socket.socket, socket.socket]) -> None:
    """More than any buffer between holds."""
    here, there = pair
    x = torch.randn(3 << 20)
    thread = _later(lambda: wire.send(here, {"x": x}))
    assert torch.equal(wire.receive(there, 60.0)["x"], x)
    thread.join()


@pytest.mark.parametrize("written", [0, 5, 16, 20])
def test_a_peer_that_dies_within_a_message(pair: tuple[socket.socket, socket.socket], written: int) -> None:
    """Is an end of file, wherever it stopped."""
    here, there = pair
    header, blob = wire.encode({"x": torch.ones(3)})
    here.sendall((struct.pack("!QQ", len(header), len(blob)) + header + blob)[:written])
    here.close()
    with pytest.raises(EOFError, match="closed the connection"):
        wire.receive(there, 10.0)


def test_a_peer_that_dribbles_is_given_up(pair: tuple[socket.socket, socket.socket]) -> None:
    """The limit is on the whole message, not on each piece."""
    here, there = pair
    here.sendall(struct.pack("!QQ", 1000, 0))
    stop = threading.Event()

    def dribble() -> None:
        while not stop.wait(0.05):
            here.sendall(b" ")

    thread = _later(dribble)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(there, 0.5)
    assert time.monotonic() - start < 5
    stop.set()
    thread.join()


def test_an_absurd_length_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    """Before it is waited for."""
    here, there = pair
    here.sendall(b"\xff" * 16)
    with pytest.raises(wire.Garbled, match="was announced"):
        wire.receive(there, 10.0)
