"""A GPU that is not there: tensors that say ``cuda`` and live on the CPU, and a ``torch.cuda`` that keeps a record.

Arithmetic is that of the CPU. What a GPU refuses is refused: tensors of two devices in one operation, NumPy, a host
that waits while a graph is captured, capture on the default stream.
"""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from assay.audits import interpreter

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
MOVES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class Far(torch.Tensor):
    """A tensor of the pretended device, around one of the CPU.

    To C++ it is of the device ``meta``, by which what autograd makes beside it can be told from what the CPU has.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="meta",
        )  # fmt: skip
        made.inner = inner
        return made

    @property
    def device(self):
        return CUDA

    @property
    def is_cuda(self):
        return True

    @property
    def is_meta(self):
        return False

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def tolist(self):
        _waits()
        return self.inner.tolist()

    def numpy(self, **_more):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self, *_more):
        return aten._to_copy(self, device=torch.device("cpu"))

    def to(self, *args, copy=False, **more):
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype)
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **more)
        if device is not None and device.type == "cpu":
            return aten._to_copy(self, dtype=dtype, device=device)
        if dtype in (None, self.dtype):
            return self.clone() if copy else self
        return aten._to_copy(self, dtype=dtype)

    def __repr__(self):
        return f"Far({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, _types, args=(), kwargs=None):
        return _act(func, args, kwargs or {})


def _is_far(device) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "meta")


def near(x):
    """What is inside, of anything."""
    return x.inner if isinstance(x, Far) else x


def _act(func, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, Far)]
    told = kwargs.get("device")
    _same_device(func, args, tensors, there)
    plain = {key: torch.device("cpu") if key == "device" and _is_far(value) else value for key, value in kwargs.items()}
    if func is aten._local_scalar_dense.default and there:
        _waits()
    found = func(*tree_map(near, args), **tree_map(near, plain))
    far = isinstance(args[0], Far) if func is aten.copy_.default else _is_far(told) if told is not None else there
    if not far or func is aten._local_scalar_dense.default:
        return found
    wrapped = tree_map(lambda x: Far(x) if isinstance(x, torch.Tensor) else x, found)
    return wrapped if func is aten.set_.source_Storage else return_and_correct_aliasing(func, args, kwargs, wrapped)


def _same_device(func, args, tensors, there):
    strangers = [x for x in tensors if not isinstance(x, Far) and x.dim()]
    if there and strangers and func not in MOVES and not (func in INDEXED and isinstance(args[0], Far)):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        return _act(func, args, kwargs or {})


def _made(func):
    """``torch.tensor`` and its like, which ask for the device before anything is dispatched."""

    def make(*args, **kwargs):
        if _is_far(kwargs.get("device")):
            return Far(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)

    return make


def _made_like(func):
    def make(x, *args, **kwargs):
        return Far(func(near(x), *args, **kwargs)) if isinstance(x, Far) else func(x, *args, **kwargs)

    return make


def _sender(func):
    return lambda *args, **kwargs: _sent(func, *args, **kwargs)


def _sent(func, *args, **kwargs):
    """``Tensor.to`` from the CPU to the device, or nowhere."""
    told = args[1] if len(args) > 1 else kwargs.get("device", kwargs.get("other"))
    device = told.device if isinstance(told, torch.Tensor) else told
    if not isinstance(device, str | torch.device) or not _is_far(device):
        return func(*args, **kwargs)
    dtype = told.dtype if isinstance(told, torch.Tensor) else kwargs.get("dtype", args[2] if len(args) > 2 else None)
    return aten._to_copy(args[0], device=CUDA, dtype=dtype)


RECORD: list[str] = []
"""What was asked of the device, in order."""
_STATE = SimpleNamespace(capturing=False, stream="default")


def _waits() -> None:
    if _STATE.capturing:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class Stream:
    """A stream by its name."""

    name = "own"


class Event:
    """The wall clock."""

    def __init__(self, *, enable_timing=False):
        assert enable_timing

    def record(self):
        _waits()
        self.at = time.perf_counter()

    def synchronize(self):
        _waits()

    def elapsed_time(self, end):
        return max(1e-3, 1e3 * (end.at - self.at))


class Graph:
    """Does nothing when it is replayed."""

    def capture_begin(self, pool=None, capture_error_mode="global"):
        assert _STATE.stream != "default", "CUDA graphs must be captured on a non-default stream"
        assert pool == (0, 1)
        RECORD.append("begin")
        _STATE.capturing = True

    def capture_end(self):
        RECORD.append("end")
        _STATE.capturing = False

    def replay(self):
        RECORD.append("replay")


@contextlib.contextmanager
def _stream(stream):
    before, _STATE.stream = _STATE.stream, stream.name
    try:
        yield
    finally:
        _STATE.stream = before


PROPERTIES = SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, total_memory=140 << 30, L2_cache_size=60 << 20, name="pretended",
    warp_size=32, shared_memory_per_block_optin=227 << 10,
)  # fmt: skip


@contextlib.contextmanager
def pretended(monkeypatch):
    """Inside, there is a GPU."""
    RECORD.clear()
    generator = torch.Generator

    class Generator(generator):
        def __new__(cls, device="cpu"):
            return generator.__new__(cls, device="cpu")

    functions = {
        "is_available": lambda: True, "synchronize": lambda _device=None: _waits(), "Stream": Stream, "Event": Event,
        "CUDAGraph": Graph, "stream": _stream, "graph_pool_handle": lambda: (0, 1), "current_device": lambda: 0,
        "reset_peak_memory_stats": lambda: None, "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 1 << 20, "empty_cache": lambda: RECORD.append("empty"),
        "get_device_properties": lambda _device=None: PROPERTIES, "clock_rate": lambda: 1980,
        "get_device_name": lambda _device=None: "a pretended GPU", "_lazy_init": lambda: None,
        "device": lambda _device: contextlib.nullcontext(), "get_device_capability": lambda _device=None: (9, 0),
        "current_stream": lambda _device=None: Stream(), "device_count": lambda: 1,
    }  # fmt: skip
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "tensor", _made(torch.tensor))
    monkeypatch.setattr(torch, "as_tensor", _made(torch.as_tensor))
    monkeypatch.setattr(torch.Tensor, "new_tensor", _made_like(torch.Tensor.new_tensor))
    monkeypatch.setattr(torch.Tensor, "to", _sender(torch.Tensor.to))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda x: aten._to_copy(x, device=CUDA))
    _interpreted(monkeypatch)
    interpreter.enable()
    with _Dispatch():
        yield RECORD


def _interpreted(monkeypatch):
    """Kernels get what is inside."""
    from triton.runtime.interpreter import GridExecutor

    call = GridExecutor.__call__
    monkeypatch.setattr(
        GridExecutor, "__call__", lambda self, *args, **more: call(self, *map(near, args), **tree_map(near, more))
    )
