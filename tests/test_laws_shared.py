"""What the shared laws ask of every operation, by small candidates that keep one of them and break another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.audits import registry
from assay.audits.components.mrope.rotate import Inputs, reference
from assay.audits.components.mrope.rotate_backward_faults import together
from assay.audits.laws import autograd, parity
from assay.audits.laws.trial import Broken, Trial
from assay.audits.observe import observe
from assay.audits.run import Options, audit
from assay.audits.server import Server
from assay.audits.subject import Foreign, InProcess
from assay.audits.terms import Candidate, Evidence, Implementation, Level, Outcome, Outputs, Raised, Tape, Verdict

OPERATION = registry.operation("mrope.rotate")
LAWS = (autograd.upstream, autograd.unused, autograd.frozen, autograd.interleaved, autograd.retained, autograd.modes)


@dataclass(frozen=True)
class Answers:
    """A subject that gives one answer to everything, and another where a tape is given."""

    ordinary: Outcome
    taped: Outcome
    level: Level = "function"

    def call(self, _inputs: Any, _upstream: Outputs | None = None, tape: Tape | None = None) -> Outcome:
        """One of the two."""
        return self.taped if tape else self.ordinary


def trial(subject: Any, case: str = "image") -> Trial:
    """A case in float32 with the given subject."""
    params = OPERATION.cases[case]
    inputs = OPERATION.build(params, torch.float32, torch.device("cpu"))
    return Trial(operation=OPERATION, params=params, inputs=inputs, dtype=torch.float32, subject=subject)


def in_process(implementation: Implementation) -> Trial:
    """A case with an implementation."""
    return trial(InProcess(implementation, OPERATION.differentiable))


def right() -> Outcome:
    """What the reference answers."""
    return in_process(reference).outcome


def found(law: Any, ordinary: Outcome, taped: Outcome) -> list[Evidence]:
    """What a law says of such answers."""
    return list(law(trial(Answers(ordinary, taped))))


def test_one_function_for_both_with_a_right_backward_is_not_accused() -> None:
    """The form that the faults of backward passes are made of."""
    target = {"kind": "import", "ref": f"{together.__module__}:together", "operation": OPERATION.name}
    control = Candidate(operation=OPERATION.name, name="together", target=target, trusted=True)
    report = audit(OPERATION, control, Options(examples=0))
    assert (report.verdict, report.findings) == (Verdict.PASS, ())


@pytest.mark.parametrize("law", LAWS)
def test_rounding_is_allowed(law: Any) -> None:
    """A path of its own may differ in the last bit: in all values and gradients of a call that is not the first."""
    calls = []

    def rounds(inputs: Inputs) -> Outputs:
        calls.append(1)
        out = reference(inputs)
        return out if len(calls) % 2 else {name: value * (1 + 2**-23) for name, value in out.items()}

    assert list(law(in_process(rounds))) == []


@pytest.mark.parametrize("kind", ["RuntimeError", "AssertionError"])
def test_a_second_backward_may_be_refused(kind: str) -> None:
    """An exception trains nothing wrong."""
    assert found(autograd.retained, right(), Outcome(raised=Raised(kind, "once only"))) == []


@pytest.mark.parametrize("kind", ["signal", "timeout"])
def test_a_second_backward_must_not_end_the_process(kind: str) -> None:
    """A crash is no refusal."""
    with pytest.raises(Broken):
        found(autograd.retained, right(), Outcome(raised=Raised(kind, "gone")))


@pytest.mark.parametrize("law", [autograd.frozen, autograd.interleaved, autograd.retained])
def test_a_gradient_that_stays_away_is_found(law: Any) -> None:
    """And so is one that is NaN."""
    ordinary = right()
    for grads in ({}, {name: grad * torch.nan for name, grad in ordinary.grads.items()}):
        named = {item.where for item in found(law, ordinary, replace(ordinary, grads=grads))}
        assert named == {"grad:q", "grad:k"}


def test_another_dtype_without_gradients_is_found() -> None:
    """Float32 results for bfloat16 inputs, in one mode only."""
    ordinary = right()
    wide = replace(ordinary, values={name: value.double() for name, value in ordinary.values.items()})
    evidence = found(autograd.modes, ordinary, wide)
    assert len(evidence) == 2 * len(autograd.UNRECORDED)
    assert evidence[0].measured == "torch.float64 (2, 6, 7, 32)"


def test_an_output_on_another_device_is_found() -> None:
    """By the kind of device: the protocol between processes keeps no more."""
    ordinary = right()
    moved = replace(ordinary, values={name: value.to("meta") for name, value in ordinary.values.items()})
    evidence = list(parity.returns(trial(Answers(moved, moved))))
    assert [(item.where, item.measured, item.limit) for item in evidence] == [
        ("q", "device meta", "device cpu"),
        ("k", "device meta", "device cpu"),
    ]
    assert list(parity.returns(trial(Answers(ordinary, ordinary)))) == []


def test_other_inputs_are_others_of_the_same_size() -> None:
    """Positions too: tables in a buffer are other tables then."""
    one = in_process(reference)
    assert one.other.positions.shape == one.inputs.positions.shape
    assert not torch.equal(one.other.positions, one.inputs.positions)
    assert not torch.equal(one.other.q, one.inputs.q)


def test_a_tape_reaches_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers from another process, for each thing that a tape can say."""
    monkeypatch.chdir(Path(__file__).parent)
    target = {"kind": "import", "ref": "hostile:good", "operation": OPERATION.name}
    foreign = Candidate(operation=OPERATION.name, name="good", form="hf-5.17", target=target)
    here = in_process(reference)
    tapes = (
        Tape(requiring=("k",)),
        Tape(requiring=(), mode="inference"),
        Tape(mode="no_grad"),
        Tape(between=here.other, walks=2),
    )
    with Server() as server, Foreign(server, foreign, OPERATION.differentiable) as subject:
        answers = [subject.call(here.inputs, here.upstream, tape) for tape in tapes]
    assert [(answer.raised, tuple(answer.grads)) for answer in answers] == [
        (None, ("k",)), (None, ()), (None, ()), (None, ("q", "k")),
    ]  # fmt: skip
    for answer in answers:
        for name, value in (*answer.values.items(), *answer.grads.items()):
            assert value.shape == getattr(here.inputs, name).shape


SEEN: list[tuple[bool, bool, bool, bool]] = []


def spy(inputs: Inputs) -> Outputs:
    """Right, and notes the modes that it runs in."""
    SEEN.append(
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), inputs.q.requires_grad, inputs.k.requires_grad)
    )
    return reference(inputs)


@pytest.mark.parametrize(
    ("tape", "seen"),
    [
        (None, [(True, False, True, True)]),
        (Tape(requiring=("q",)), [(True, False, True, False)]),
        (Tape(requiring=()), [(True, False, False, False)]),
        (Tape(mode="no_grad"), [(False, False, True, True)]),
        (Tape(mode="inference", requiring=()), [(False, True, False, False)]),
    ],
)
def test_a_tape_sets_the_mode(tape: Tape | None, seen: list[tuple[bool, bool, bool, bool]]) -> None:
    """Of the forward pass, and of the inputs."""
    SEEN.clear()
    case = in_process(spy)
    outcome = observe(spy, case.inputs, case.upstream, OPERATION.differentiable, tape)
    assert (SEEN, outcome.raised, outcome.notes) == (seen, None, ())


class _Counts(torch.autograd.Function):
    """Notes the order of its passes."""

    passes: list[str] = []  # noqa: RUF012 - emptied by the test that reads it

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.name = f"{float(x.detach().flatten()[0]):.3f}"
        _Counts.passes.append(f"forward {ctx.name}")
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        _Counts.passes.append(f"backward {ctx.name}")
        return grad


def test_a_tape_sets_the_order() -> None:
    """Forward on both inputs, then backward through the first, as often as asked."""
    case = in_process(reference)
    apply: Any = _Counts.apply
    tape = Tape(between=case.other, walks=2)
    _Counts.passes.clear()
    outcome = observe(lambda inputs: {"q": apply(inputs.q)}, case.inputs, {"q": case.upstream["q"]}, ("q",), tape)
    first, other = (f"{float(x.flatten()[0]):.3f}" for x in (case.inputs.q, case.other.q))
    assert _Counts.passes == [f"forward {first}", f"forward {other}", f"backward {first}", f"backward {first}"]
    assert torch.equal(outcome.grads["q"], case.upstream["q"])
