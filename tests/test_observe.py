"""One call observed: what it gave, what it changed, how it ended; and that all is as before afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.audits import observe as observing
from assay.audits import settings
from assay.audits.observe import observe, same_bits
from assay.audits.terms import Outcome


@dataclass(frozen=True)
class Inputs:
    """Two slices of one buffer, and something beside."""

    q: Tensor
    k: Tensor
    extra: dict[str, Any]


def made() -> Inputs:
    """The buffer holds a third slice, full of NaN."""
    whole = torch.arange(24.0).view(2, 12)
    q, k, v = whole.split(4, dim=-1)
    v.fill_(torch.nan)
    return Inputs(q, k, {"ids": (torch.arange(3),), "name": "x"})


def double(inputs: Inputs) -> dict[str, Tensor]:
    """A right answer."""
    return {"q": inputs.q * 2, "k": inputs.k * 3}


UPSTREAM = {"q": torch.full((2, 4), 5.0), "k": torch.ones(2, 4)}


def seen(act: Callable[[Inputs], object], *, upstream: bool = False) -> Outcome:
    """The outcome of doing something before a right answer."""

    def implementation(inputs: Inputs) -> dict[str, Tensor]:
        act(inputs)
        return double(inputs)

    return observe(implementation, made(), UPSTREAM if upstream else None, ("q", "k"))


def test_values_and_gradients() -> None:
    """Detached, of the values and of the inputs that have gradients."""
    outcome = seen(lambda _: None, upstream=True)
    assert torch.equal(outcome.values["q"], made().q * 2)
    assert torch.equal(outcome.grads["q"], torch.full((2, 4), 10.0))
    assert not outcome.values["q"].requires_grad
    assert (outcome.raised, outcome.notes) == (None, ())


def test_without_upstream_there_is_no_graph() -> None:
    """A call that asks for no gradient runs without."""
    graph = []
    outcome = seen(lambda _: graph.append(torch.is_grad_enabled()))
    assert (graph, outcome.grads) == ([False], {})


@pytest.mark.parametrize(
    ("act", "names"),
    [
        (lambda x: x.q.data.zero_(), ["q"]),
        (lambda x: x.k.detach().copy_(x.q.detach()), ["k"]),
        (lambda x: x.extra["ids"][0].add_(1), ["extra.ids.0"]),
        (lambda x: x.q.detach().as_strided((24,), (1,), 0).fill_(7), ["k", "q"]),
        (lambda x: x.q.detach().as_strided((1,), (1,), 8).fill_(7), ["memory beside the inputs"]),
        (lambda x: x.extra["ids"][0].unsqueeze_(0), ["extra.ids.0"]),
        (lambda x: x.extra["ids"][0].set_(torch.zeros(3, dtype=torch.int64)), ["extra.ids.0"]),
    ],
)
@pytest.mark.parametrize("upstream", [False, True])
def test_changed_inputs_are_named_and_put_back(act: Any, names: list[str], upstream: bool) -> None:
    """Through views, in the memory between them, in their shape; a NaN that stays is no change."""
    inputs = made()

    def implementation(given: Inputs) -> dict[str, Tensor]:
        act(given)
        return double(given)

    outcome = observe(implementation, inputs, UPSTREAM if upstream else None, ("q", "k"))
    assert outcome.notes == tuple(f"mutates:{name}" for name in names)
    fresh = made()
    assert torch.equal(inputs.q, fresh.q)
    assert torch.equal(inputs.k, fresh.k)
    assert torch.equal(inputs.extra["ids"][0], fresh.extra["ids"][0])


def test_a_changed_upstream_gradient_is_named() -> None:
    """A backward that works in place spoils what the next layer reads."""

    class InPlace(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: Any, grad: Tensor) -> Tensor:
            return grad.mul_(2)

    upstream = {"q": torch.ones(2, 4)}
    outcome = observe(lambda x: {"q": InPlace.apply(x.q)}, made(), upstream, ("q",))
    assert outcome.notes == ("mutates:grad:q",)
    assert torch.equal(upstream["q"], torch.ones(2, 4))
    assert torch.equal(outcome.grads["q"], torch.full((2, 4), 2.0)), "right, though where it does not belong"


CHANGES: dict[str, Callable[[], object]] = {
    "default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "default_device": lambda: torch.set_default_device("meta"),
    "grad_enabled": lambda: torch._C._set_grad_enabled(not torch.is_grad_enabled()),
    "detect_anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic_algorithms": lambda: torch.use_deterministic_algorithms(True),
    "float32_matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "rng_seed": lambda: torch.manual_seed(torch.initial_seed() + 1),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "working_directory": lambda: os.chdir("/"),
    "environment": lambda: os.environ.update(ASSAY_TEST="1"),
}


@pytest.mark.parametrize("upstream", [False, True])
@pytest.mark.parametrize("name", settings.SETTINGS)
def test_changed_settings_are_named_and_put_back(name: str, upstream: bool) -> None:
    """Every setting that is watched."""
    before = settings.read()
    outcome = seen(lambda _: CHANGES[name](), upstream=upstream)
    assert f"state:{name}" in outcome.notes  # torch imports more, which sets variables, for deterministic algorithms
    assert settings.read() == before


def test_settings_changed_in_the_backward_are_named() -> None:
    """After the forward has returned."""

    class Leaky(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: Any, grad: Tensor) -> Tensor:
            torch.set_default_dtype(torch.float64)
            return grad

    outcome = observe(lambda x: {"q": Leaky.apply(x.q)}, made(), {"q": torch.ones(2, 4)}, ("q",))
    assert outcome.notes == ("state:default_dtype",)
    assert torch.get_default_dtype() == torch.float32


def test_a_deleted_working_directory_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no crash."""
    monkeypatch.chdir(tmp_path)

    def vanish(_: Inputs) -> None:
        inner = tmp_path / "inner"
        inner.mkdir()
        os.chdir(inner)
        inner.rmdir()

    assert seen(vanish).notes == ("state:working_directory",)
    assert Path.cwd() == tmp_path


class _Unshowable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no"), "ValueError", "no"),
        (SystemExit("enough"), "exit", "exited with status enough"),
        (MemoryError(), "memory", ""),
        (RuntimeError("A: can't allocate memory"), "memory", "A: can't allocate memory"),
        (GeneratorExit(), "GeneratorExit", ""),
        (_Unshowable(), "_Unshowable", "<_Unshowable that cannot be shown>"),
        (ValueError("\ud800"), "ValueError", "\\ud800"),
        (ValueError("x" * 9000), "ValueError", "x" * 2000),
    ],
)
def test_how_a_call_ends(error: BaseException, kind: str, message: str) -> None:
    """In words that any file can hold."""

    def fail(_: Inputs) -> None:
        raise error

    raised = seen(fail).raised
    assert raised is not None
    assert (raised.kind, raised.message) == (kind, message)
    raised.traceback.encode()


def test_an_interrupt_passes() -> None:
    """It is the user's."""

    def interrupt(_: Inputs) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seen(interrupt)


class _Hollow(Tensor):
    @staticmethod
    def __new__(cls) -> Any:
        return Tensor._make_wrapper_subclass(cls, (2,))

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda: None, "expected a mapping of named tensors, got NoneType"),
        (lambda: [torch.ones(2)], "expected a mapping of named tensors, got list"),
        (lambda: {"q": 3.0}, "q is a float, expected a tensor"),
        (lambda: {3: torch.ones(2)}, "3 is a Tensor, expected a tensor"),
        (lambda: {"q": torch.ones(2, 2).to_sparse()}, "q is a torch.sparse_coo tensor on cpu, expected strided memory"),
        (lambda: {"q": torch.ones(2, device="meta")}, "q is a torch.strided tensor on meta, expected strided memory"),
        (lambda: {"q": _Hollow()}, "q is a _Hollow, whose memory cannot be read"),
        (lambda: {"q": torch.ones(1).expand(1 << 40)}, "q: 4.4e+12 bytes, expected no more than 1.07e+09"),
    ],
)
def test_what_is_no_answer(answer: Callable[[], Any], why: str) -> None:
    """Is told apart from an error of the candidate's."""
    raised = observe(lambda _: answer(), made()).raised
    assert raised is not None
    assert raised.kind == observing.BadReturn.__name__
    assert raised.message.startswith(why)


def test_subclasses_are_read_as_tensors() -> None:
    """Whatever they override."""

    class Liar(Tensor):
        @classmethod
        def __torch_function__(cls, *_: Any, **__: Any) -> Any:
            return "nothing"

    outcome = observe(lambda x: {"q": (x.q * 2).as_subclass(Liar)}, made())
    assert outcome.raised is None
    assert type(outcome.values["q"]) is Tensor


@pytest.mark.parametrize(
    "change",
    [lambda x: x.detach(), lambda x: x.detach().requires_grad_(), lambda x: x[:1], lambda x: x.double()[:, :2]],
)
def test_missing_gradients_are_missing(change: Callable[[Tensor], Tensor]) -> None:
    """No graph, another graph, another shape: there is no gradient, and no error either."""
    outcome = observe(lambda x: {"q": change(x.q * 2)}, made(), {"q": UPSTREAM["q"]}, ("q",))
    assert outcome.raised is None
    assert outcome.grads == {}


def test_an_answer_in_another_dtype_has_gradients() -> None:
    """Its dtype is found by another law."""
    outcome = observe(lambda x: {"q": x.q.double() * 2}, made(), {"q": UPSTREAM["q"]}, ("q",))
    assert torch.equal(outcome.grads["q"], torch.full((2, 4), 10.0))


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), True),
        (torch.tensor([0.0]), torch.tensor([torch.nan]), False),
        (torch.tensor([torch.inf]), torch.tensor([-torch.inf]), False),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        (torch.tensor([1]), torch.tensor([[1]]), False),
        (torch.tensor([1]), torch.tensor([1]), True),
    ],
)
def test_same_bits(left: Tensor, right: Tensor, equal: bool) -> None:
    """NaN equals NaN here, and nothing else."""
    assert same_bits(left, right) is equal


def test_an_answer_in_the_memory_of_an_input_stays() -> None:
    """Though the input is put back as it was."""
    inputs = made()
    outcome = observe(lambda x: {"q": x.q.mul_(2)}, inputs)
    assert outcome.notes == ("mutates:q",)
    assert torch.equal(outcome.values["q"], made().q * 2)
    assert torch.equal(inputs.q, made().q)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """By the observer itself."""
    seen(lambda _: sys.exit(1))
    assert capsys.readouterr() == ("", "")
