"""The nouns of an audit, all frozen: what is audited, what it is compared with, and what came of it."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy
    from torch import Tensor, device, dtype

Level = Literal["function", "family", "pipeline"]
Outputs = Mapping[str, "Tensor"]
Implementation = Callable[[Any], Outputs]
"""What a resolved candidate is to the worker: an inputs record in, named tensors out."""


class Verdict(enum.IntEnum):
    """The ladder. A set of findings is as bad as its worst member."""

    PASS = 0
    WAIVED = 1
    UNKNOWN = 2
    FAIL = 3


MAX_TEXT = 2000
"""Characters that are kept of what foreign code says or prints."""


@dataclass(frozen=True)
class Raised:
    """How a call ended when it did not return: ``kind`` is an exception type, ``exit``, ``signal`` or ``timeout``."""

    kind: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one call of a subject produced. ``notes`` are side effects that the process saw (``mutates:q``, ...)."""

    values: Outputs = field(default_factory=dict)
    grads: Outputs = field(default_factory=dict)
    raised: Raised | None = None
    sites: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stdout: str = ""


@dataclass(frozen=True, kw_only=True)
class Tape:
    """What autograd records of a call, and how the record is walked back, where that is not the ordinary way.

    ``requiring`` are the differentiable inputs that require a gradient (None: all). ``mode`` is that of the forward
    pass: ``grad``, ``no_grad`` or ``inference``. ``between`` is an inputs record that the same implementation is run
    on between the forward and the backward pass. The backward pass is made ``walks`` times; the last gradients count.
    """

    requiring: tuple[str, ...] | None = None
    mode: Literal["grad", "no_grad", "inference"] = "grad"
    between: Any = None
    walks: int = 1


class Subject(Protocol):
    """All that a law may see of what is under audit."""

    @property
    def level(self) -> Level:
        """Function, family or pipeline."""

    def call(self, inputs: Any, upstream: Outputs | None = None, tape: Tape | None = None) -> Outcome:
        """Run once. With ``upstream`` gradients for named outputs, also return gradients of the inputs.

        What has no upstream gradient is not differentiated. ``tape`` has no meaning without ``upstream``.
        """


@dataclass(frozen=True)
class Exact:
    """There is one right answer, compared bit for bit."""

    oracle: Implementation


@dataclass(frozen=True)
class Numeric:
    """There is a float64 truth (``oracle``), and the ordinary low-precision form (``eager``) whose error is the scale.

    ``reach`` gives, for each output and each gradient (``grad:q``), the largest magnitude that enters each of its
    rows, broadcastable to it: what rounding errors are proportional to. ``draws`` gives further inputs of the same
    kind on which the ordinary form's error is measured too, so that a lucky small case does not set the scale.
    """

    oracle: Implementation
    eager: Implementation
    reach: Callable[[Any, Outputs | None], Outputs]
    draws: Callable[[Any], Iterable[Any]] = lambda _inputs: ()


@dataclass(frozen=True)
class Relations:
    """Many answers are right: laws alone judge."""


class Inexpressible(Exception):
    """Raised where a call form, or the function behind it, cannot be given the inputs; the message says why not.

    A law that needs such a call, or finds that a case gives it nothing to ask, says nothing about the candidate.
    """


@dataclass(frozen=True, kw_only=True)
class Form:
    """A call form: adapts a foreign signature to an operation's inputs record.

    ``parameters`` are the foreign function's leading parameter names, by which a form is recognised; ``accepts``
    returns None when the form can express the inputs, else the reason why not; ``call`` runs the foreign function.
    ``fixes`` are case parameters that the form leaves no choice of: all cases are put to it with these values.
    """

    name: str
    summary: str
    parameters: tuple[str, ...]
    call: Callable[[Callable[..., Any], Any], Outputs]
    accepts: Callable[[Any], str | None] = lambda _inputs: None
    fixes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One auditable computation with one typed signature.

    ``params`` is the frozen, JSON-able record that describes a case; ``build`` makes the inputs record from it for a
    dtype and device, from its own generator; ``supports`` says why a case lies outside the operation's domain, or
    returns None. ``differentiable`` names the inputs that receive gradients. ``dtypes`` are audited unless others are
    asked for; ``further_dtypes`` only then. ``sums`` are outputs that may come in float32 from inputs of a lower
    precision: what is added up over many tokens. ``scalars``: every output is a single number.
    ``manual`` gives further parts of the operation's manual page, each a title with its lines.
    """

    name: str
    summary: str
    params: type[Any]
    build: Callable[[Any, dtype, device], Any]
    outputs: tuple[str, ...]
    expect: Exact | Numeric | Relations
    cases: Mapping[str, Any]
    forms: tuple[Form, ...] = ()
    strategy: Callable[[], SearchStrategy[Any]] | None = None
    differentiable: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    further_dtypes: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    scalars: bool = False
    supports: Callable[[Any], str | None] = lambda _params: None
    level: Level = "function"
    manual: Callable[[], Mapping[str, tuple[str, ...]]] = dict

    @property
    def component(self) -> str:
        """The room this operation lives in: ``mrope`` of ``mrope.rotate``."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Component:
    """One room of the house: its operations with their laws and faults."""

    name: str
    summary: str
    operations: tuple[Operation, ...]
    laws: tuple[Law, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An implementation under audit.

    ``target`` is what a worker resolves to an :data:`Implementation`: a JSON-able mapping with a ``kind``
    (``import``, ``fault``, ``factory``) and its fields. ``scope`` are case parameters that this candidate fixes (the
    rule of its family, its layout); ``judged_as`` is the family that a function takes them from, if it was asked to be
    judged by one. ``trusted`` candidates (ours) run in this process. On a CPU, ``costly`` ones get a fifth of the
    searched cases: a kernel in Triton's interpreter takes milliseconds for each of its programs. ``by_name``: audited
    only where it is asked for by name, since others stand for it; of a family, where its operation is named too.
    """

    operation: str
    name: str
    target: Mapping[str, Any]
    form: str = ""
    origin: str = ""
    version: str = ""
    scope: Mapping[str, Any] = field(default_factory=dict)
    judged_as: str = ""
    trusted: bool = False
    costly: bool = False
    by_name: bool = False


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One law broken once, as the law saw it. Numbers, or text where there is no number."""

    where: str
    measured: float | str
    limit: float | str
    message: str
    index: tuple[int, ...] | None = None
    verdict: Verdict = Verdict.FAIL


@dataclass(frozen=True, kw_only=True)
class Law:
    """A property that every right candidate has.

    ``operations`` are the operations it judges. ``applies`` returns None, or the reason why the law says nothing
    about this operation and these case parameters. ``check`` makes related calls and yields evidence.
    """

    name: str
    operations: tuple[str, ...]
    check: Callable[[Any], Iterable[Evidence]]
    applies: Callable[[Operation, Any], str | None] = lambda _operation, _params: None
    doc: str = ""

    @classmethod
    def of(
        cls, operations: tuple[str, ...], check: Callable[[Any], Iterable[Evidence]],
        applies: Callable[[Operation, Any], str | None] = lambda _operation, _params: None,
    ) -> Law:  # fmt: skip
        """The law that a function states: its name is the function's, its manual page the docstring."""
        return cls(name=check.__name__, operations=operations, check=check, applies=applies, doc=check.__doc__ or "")

    @property
    def summary(self) -> str:
        """First line of the manual page."""
        return inspect.cleandoc(self.doc).partition("\n")[0]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A known wrong form of an operation, with the laws that must catch it.

    ``wrong`` is a whole implementation (inputs record in, named tensors out). ``also``: where else it happened.
    """

    name: str
    operation: str
    why: str
    effect: str
    link: str
    wrong: Implementation
    caught_by: tuple[str, ...]
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One law broken, with what shows it and one command that shows it again."""

    rule: str
    candidate: str
    operation: str
    case: str
    dtype: str
    where: str
    measured: float | str
    limit: float | str
    message: str
    repro: str
    fingerprint: str
    verdict: Verdict
    index: tuple[int, ...] | None = None
    cases_broken: int = 1
    waiver: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """How often one law was exercised on one candidate, and why it was not where it did not apply."""

    rule: str
    candidate: str
    exercised: int
    inapplicable: Mapping[str, int] = field(default_factory=dict)
    verdict: Verdict = Verdict.PASS


@dataclass(frozen=True, kw_only=True)
class Report:
    """The truth of one run. Every output format is a function of it."""

    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]
    environment: Mapping[str, str]
    request: Mapping[str, Any] = field(default_factory=dict)
    filtered: bool = False

    @property
    def verdict(self) -> Verdict:
        """The worst of all findings and checks; an audit in which nothing was exercised is at least UNKNOWN."""
        worst = [f.verdict for f in self.findings] + [c.verdict for c in self.checks]
        if not self.exercised:
            worst.append(Verdict.UNKNOWN)
        return max(worst)

    @property
    def checked(self) -> int:
        """How many (law, candidate) pairs were looked at."""
        return len(self.checks)

    @property
    def exercised(self) -> int:
        """How many of them were exercised at least once."""
        return sum(1 for check in self.checks if check.exercised)

    @property
    def inapplicable(self) -> int:
        """How many declared themselves inapplicable to every case."""
        return sum(1 for check in self.checks if not check.exercised and check.inapplicable)


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """A finding that is accepted until a date, up to a number, for a reason."""

    rule: str
    candidate: str
    reason: str
    issue: str
    until: str
    case: str = "*"
    where: str = "*"
    worst: float | None = None
    versions: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to make a tiny random model of a transformers family, a realistic batch for it, and where its parts live.

    ``build(seed)`` returns a float32 model in eval mode (vocabulary <= 1,000 where the family allows).
    ``batch(model, samples, *, padding, seed, keys, dtype)`` returns the keyword arguments of its forward, made by the
    family's own processor; ``samples`` is a sequence of samples in the notation of ``audits.families.samples``, and
    what a sample holds depends on the seed and its key alone.
    ``sites`` is an ``audits.families.sites.Sites``. ``releases`` is the range of transformers that the family file is
    written for (empty: all that have it). ``exclusive`` families cannot take images and videos in one batch.
    ``float64`` families run forward after ``model.double()``.
    """

    name: str
    model_type: str
    modalities: tuple[str, ...]
    build: Callable[[int], Any]
    batch: Callable[..., Mapping[str, Any]]
    sites: Any
    rule: str
    releases: str = ""
    exclusive: bool = False
    float64: bool = True
    notes: str = ""
