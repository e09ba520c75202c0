"""Candidates of ``mrope.rotate`` in the form ``hf-5.17`` that misbehave, each in one way; ``good`` does not."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
calls = 0


def _half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos.unsqueeze(1) + _half(x) * sin.unsqueeze(1)


def good(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """What transformers does."""
    return _turned(q, cos, sin), _turned(k, cos, sin)


def _first(change: Callable[[], object]) -> Callable[..., Any]:
    """A right candidate that does something else before."""

    def candidate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
        change()
        return good(q, k, cos, sin)

    return candidate


def _then(change: Callable[[Pair], object]) -> Callable[..., Any]:
    """A right candidate that returns something else."""
    return lambda q, k, cos, sin: change(good(q, k, cos, sin))


def raises(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Never answers."""
    message = f"no \ud800 answer for {object()}"
    raise RuntimeError(message)


class Unshowable(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        """Fails."""
        raise ValueError


def raises_unshowable(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Never answers, and does not say why."""
    raise Unshowable


def raises_on_one_token(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Fails where there is one token only."""
    if q.shape[2] == 1:
        message = "one token"
        raise ValueError(message)
    return good(q, k, cos, sin)


def float32_only(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Fails in every other dtype."""
    if q.dtype != torch.float32:
        message = "expected float32"
        raise TypeError(message)
    return good(q, k, cos, sin)


def _interrupt() -> None:
    """As Ctrl-C does it; the signal itself is ignored in what a shell runs in the background."""
    raise KeyboardInterrupt


exits = _first(lambda: sys.exit("enough"))
exits_hard = _first(lambda: os._exit(3))
interrupts = _first(_interrupt)
segfaults = _first(lambda: ctypes.string_at(0))
kills_itself = _first(lambda: os.kill(os.getpid(), signal.SIGKILL))
kills_its_parent = _first(lambda: os.kill(os.getppid(), signal.SIGKILL))
hangs = _first(lambda: time.sleep(600))


def hangs_deaf(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Waits with every signal blocked that can be."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(1)


def _fill_memory() -> None:
    kept = []
    while True:
        kept.append(torch.ones(1 << 22))


eats_memory = _first(_fill_memory)
eats_memory_at_once = _first(lambda: bytearray(1 << 50))


def _print_much() -> None:
    print("o" * (3 << 20))
    print("e" * (3 << 20), file=sys.stderr)
    os.write(1, b"w" * 4000 + b"the end")


prints = _first(_print_much)


@functools.cache
def _close_standard_files() -> None:
    for descriptor in (0, 1, 2):
        os.close(descriptor)


closes_files_once = _first(_close_standard_files)
closes_all_files = _first(lambda: os.closerange(0, 256))


def _talk_over() -> None:
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\0" * 4000)
        except OSError:
            continue


talks_over = _first(_talk_over)


def in_place(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Writes into q and k."""
    return q.copy_(_turned(q, cos, sin)), k.copy_(_turned(k, cos, sin))


def in_place_through_data(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Writes into q where autograd does not see it."""
    out = good(q, k, cos, sin)
    q.data.mul_(2)
    return out


def in_place_without_grad(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """A fast path for inference that writes into its inputs."""
    return good(q, k, cos, sin) if torch.is_grad_enabled() else in_place(q, k, cos, sin)


def in_place_through_view(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Writes into k through a flat view of its memory."""
    out = good(q, k, cos, sin)
    k.detach().as_strided((k.numel(),), (1,), k.storage_offset()).zero_()
    return out


def beside_its_inputs(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Writes into the memory between the rows of a packed buffer."""
    out = good(q, k, cos, sin)
    whole = torch.empty(0, dtype=q.dtype).set_(q.untyped_storage())
    if whole.numel() > q.numel() + q.storage_offset():
        whole[-1] = 7.0
    return out


def reshapes_its_input(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Changes the shape of cos and of q in place."""
    out = good(q, k, cos, sin)
    with torch.no_grad():
        q.detach_().transpose_(1, 2)
    return out


leaks_dtype = _first(lambda: torch.set_default_dtype(torch.float64))
leaks_device = _first(lambda: torch.set_default_device("meta"))
leaks_seed = _first(lambda: torch.manual_seed(0))
leaks_threads = _first(lambda: torch.set_num_threads(3))
leaks_directory = _first(lambda: os.chdir("/"))
leaks_environment = _first(lambda: os.environ.update(HOSTILE="1"))
leaks_deterministic = _first(lambda: torch.use_deterministic_algorithms(mode=True))


def leaks_grad_mode(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Leaves autograd off."""
    out = good(q, k, cos, sin)
    torch._C._set_grad_enabled(False)
    return out


returns_none = _then(lambda _out: None)
returns_one = _then(lambda out: out[0])
returns_list = _then(list)
returns_three = _then(lambda out: (*out, out[0]))
returns_text = _then(lambda out: (out[0], "k"))
returns_numpy = _then(lambda out: (out[0], out[1].detach().float().numpy()))
wrong_shape = _then(lambda out: (out[0].transpose(1, 2), out[1]))
wrong_size = _then(lambda out: (out[0][..., :-1], out[1]))
wrong_dtype = _then(lambda out: (out[0].double(), out[1]))
nan = _then(lambda out: (out[0] * torch.nan, out[1]))
inf = _then(lambda out: (out[0] + torch.inf, out[1]))
on_meta = _then(lambda out: (out[0].to("meta"), out[1]))
sparse = _then(lambda out: (out[0].to_sparse(), out[1]))
expanded = _then(lambda out: (out[0].mean(1, keepdim=True).expand_as(out[0]), out[1]))
huge = _then(lambda out: (out[0].new_zeros(1).expand(1 << 40), out[1]))
wasteful = _then(lambda out: tuple(x.new_zeros(1 << 24)[: x.numel()].view_as(x) + x for x in out))
view_of_much = _then(lambda out: tuple(_in_much_memory(x) for x in out))
broken_graph = _then(lambda out: tuple(x.detach().requires_grad_() for x in out))
detached = _then(lambda out: tuple(x.detach() for x in out))
new_each_time = _then(lambda out: (out[0] * (1 + random.random()), out[1]))


def _in_much_memory(x: Tensor) -> Tensor:
    memory = torch.full((1 << 24,), torch.nan, dtype=x.dtype)
    return memory[: x.numel()].view(x.shape).copy_(x)


def aliases_its_input(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Hands its input back."""
    return q, k


class Sub(Tensor):
    """A subclass that does nothing of its own."""


class Wrapper(Tensor):
    """A subclass without memory."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:  # noqa: PYI034 - a tensor's own way
        """Wrap a tensor."""
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        """Refuse everything."""
        message = "this tensor has no values"
        raise NotImplementedError(message)


subclass = _then(lambda out: tuple(x.as_subclass(Sub) for x in out))
wrapper = _then(lambda out: (Wrapper(out[0]), out[1]))

_tables: dict[tuple[int, ...], Pair] = {}


def caches_by_shape(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Uses the tables of the first call with this shape."""
    return good(q, k, *_tables.setdefault((*cos.shape, cos.element_size()), (cos, sin)))


def fails_from_the_thirtieth_call(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    """Is right until it has been called often."""
    global calls  # noqa: PLW0603 - the very thing
    calls += 1
    out = good(q, k, cos, sin)
    return out if calls < 30 else (out[0] * 2, out[1])


class _Backward(torch.autograd.Function):
    """The identity, with a backward of the wrong shape."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        """As it is."""
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:
        """A gradient with a channel too few."""
        return grad[..., :-1]


gradient_of_wrong_shape = _then(lambda out: (_Backward.apply(out[0]), out[1]))


def _start_thread() -> None:
    if threading.active_count() == 1:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


starts_thread = _first(_start_thread)
leaves_child = _first(lambda: subprocess.Popen(["sleep", "611"]))
leaves_daemon = _first(lambda: subprocess.Popen(["setsid", "sh", "-c", "setsid sleep 612 & sleep 612"]))


def _replace_cos() -> None:
    torch.cos = torch.sin
    torch.Tensor.cos = torch.Tensor.sin  # type: ignore[method-assign]  # the patch under test is this replacement


patches_torch = _first(_replace_cos)


class Callable_:
    """An object that can be called."""

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
        """As ``good``."""
        return good(q, k, cos, sin)


instance = Callable_()
partial = functools.partial(good)
builtin = torch.add
number = 3


def packed_views(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Iterator[Tensor]:
    """Answers with an iterator over slices of one buffer."""
    whole = torch.cat(good(q, k, cos, sin), dim=1)
    return iter(whole.split([q.shape[1], k.shape[1]], dim=1))
