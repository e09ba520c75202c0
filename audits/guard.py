"""Watches a training that runs: every so many steps the cheap laws are put to the live batch and the step.

Between the steps that are checked nothing of the guard is in the model, and no tensor is read.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from assay.audits import guard_model
from assay.audits.guard_files import Shelf
from assay.audits.guard_judge import LAWS, judged
from assay.audits.guard_parcel import fetch
from assay.audits.guard_parts import Ledger
from assay.audits.guard_report import Tally, report, with_texts
from assay.audits.guard_terms import Found, GuardStop, GuardWarning, Live, told
from assay.audits.guard_watch import Watch
from assay.audits.pipelines import is_trainer

EVERY = 100
"""Steps of the optimiser from one check to the next."""
KEEP = 8
OF_A_RULE = 2
"""Batches that are written for one rule: the others are for what else is found."""
COMPILED = "the model is compiled: nobody can look inside, and its forward is not watched"
DOORS = "a transformers Trainer, or the optimizer (or list of optimizers) of your own loop"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user declared; see :func:`guard`."""

    every: int = EVERY
    on_finding: Literal["warn", "stop"] = "warn"
    folder: Path = Path("assay-guard")
    keep: int = KEEP
    share: tuple[float, float] = (0.0, 1.0)
    trained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """ValueError by the name of the setting."""
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every: expected a number of steps from 1 on, got {self.every!r}")
        if self.on_finding not in {"warn", "stop"}:
            raise ValueError(f"on_finding: expected 'warn' or 'stop', got {self.on_finding!r}")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 0:
            raise ValueError(f"keep: expected a number of files from 0 on, got {self.keep!r}")
        if len(self.share) != 2 or not 0.0 <= self.share[0] <= self.share[1] <= 1.0:
            raise ValueError(f"share: expected (low, high) within 0 to 1, got {self.share!r}")


def settings(
    every: int = EVERY,
    on_finding: Literal["warn", "stop"] = "warn",
    folder: str | Path = "assay-guard",
    keep: int = KEEP,
    share: tuple[float, float] = (0.0, 1.0),
    trained: Sequence[str] = (),
) -> Settings:
    """The keyword arguments of :func:`guard` as a record. ValueError, TypeError by the name of the argument."""
    if isinstance(trained, str):
        raise TypeError(f"trained: expected a list of names, got the text {trained!r}")
    return Settings(
        every=every, on_finding=on_finding, folder=Path(folder), keep=keep, share=share, trained=tuple(trained)
    )


def guard(model: nn.Module, trainer_or_optimizer: Any, *, processor: Any = None, **options: Any) -> Guard:
    """Watch the training of a model from here on, until ``remove`` or the end of the ``with`` block.

    Args:
        model: what is trained, also in a wrapper: compiled, distributed, with adapters.
        trainer_or_optimizer: a transformers Trainer, or the optimizer of your own loop; a list where several train the
            model. Its steps are the steps that are counted.
        processor: what decodes tokens in files and reports; that of the Trainer where nothing is given.
        options: ``every``: the first step is checked, and each ``every``-th after it (100). ``on_finding``: ``"warn"``
            (:class:`GuardWarning`, once for each rule) or ``"stop"`` (:class:`GuardStop`). ``folder``, ``keep``: where
            batches with findings are written (``assay-guard``), and how many of a process at most (8). ``share``: the
            part of the text that is to be trained on, ``(low, high)``; anything if nothing is declared. ``trained``:
            parts of names of parameters that are to be trained; one that is frozen is a finding.

    TypeError and ValueError by the name of the argument. Nothing about the training is changed: no random number is
    drawn, no gradient and no parameter is written.
    """
    watching = Guard(model, settings(**options), processor)
    if is_trainer(trainer_or_optimizer):
        from assay.audits.guard_callback import attach

        attach(watching, trainer_or_optimizer)
        return watching
    several = trainer_or_optimizer if isinstance(trainer_or_optimizer, (list, tuple)) else [trainer_or_optimizer]
    inner = [one for held in several if isinstance(one := getattr(held, "optimizer", held), torch.optim.Optimizer)]
    if not several or len(inner) != len(several):
        raise TypeError(f"trainer_or_optimizer: expected {DOORS}, got a {type(trainer_or_optimizer).__name__}")
    watching.follow(inner)
    return watching


class Guard:
    """A watch over one training; made by :func:`guard` or a ``GuardCallback``. Used in ``with``, or removed."""

    def __init__(self, model: nn.Module, given: Settings, processor: Any = None) -> None:
        """Nothing is put anywhere yet. ValueError where ``trained`` names no parameter."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch module, got a {type(model).__name__}")
        self.model, self.processor = model, processor
        self._given, self._inner = given, guard_model.unwrapped(model)
        for name in given.trained:
            if not any(name in own for own in guard_model.named_parameters(model, self._inner)):
                raise ValueError(f"trained: expected parts of names of parameters, none has {name!r}")
        self._rank, self._world = _ranks()
        self._shelf = Shelf(given.folder, given.keep, self._rank)
        self._places: guard_model.Places | None = None
        self._watch: Watch | None = None
        self._ledger: Ledger | None = None
        self._pick = 0
        self._facts: Mapping[str, Any] | None = None
        self._last: Live | None = None
        self._undo: list[Callable[[], None]] = []
        self._optimizers: list[Any] = []
        self._done: set[int] = set()
        self._loop = False
        self.elsewhere = ""
        self.split = False
        self.sharded = False
        self.half = False
        self.tally = Tally()

    def __enter__(self) -> Self:
        """The guard itself, which watches already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take everything out, also after an exception."""
        self.remove()

    @property
    def findings(self) -> tuple[Found, ...]:
        """All that was found, by rule in the order of the laws."""
        return tuple(found for rule in LAWS for found in self.tally.found.get(rule, ()))

    def report(self) -> str:
        """What was asked and what came of it, what was not asked and why, what is trained, and what it cost."""
        return report(self.tally, self._given.every, self._last, self.processor)

    def saw(self, batch: Mapping[str, Any] | None = None, loss: Tensor | None = None) -> None:
        """Hand over what the model's forward is not given: labels, and a loss that your loop computes itself.

        To be called after the forward of each micro-batch; it returns at once in steps that are not checked.
        """
        if self._watch is not None:
            with self._working():
                self._watch.saw(batch, loss)

    def remove(self) -> None:
        """Take every hook out of the model, the optimizers and the trainer, and let go of them. May be called again."""
        self._drop()
        while self._undo:
            with self._working():
                self._undo.pop()()
        self._places, self._optimizers = None, []
        self.model = self._inner = nn.Module()

    def on_removal(self, undo: Callable[[], None]) -> None:
        """Do this when the guard is removed."""
        self._undo.append(undo)

    def follow(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Take the steps of these optimizers for those of the training: a step ends when all have made theirs."""
        self._optimizers, self._loop = list({id(one): one for one in optimizers}.values()), True
        for one in self._optimizers:
            self.on_removal(one.register_step_pre_hook(self._about).remove)
            self.on_removal(one.register_step_post_hook(self._made).remove)
        self.begin()

    def _about(self, one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An optimizer is called. Where it is given a closure, the gradients are there when that has run."""
        watch = self._watch
        if watch is None or torch.compiler.is_compiling():
            return None
        watch.stepping, watch.scaled = True, watch.scaled or getattr(one, "found_inf", None) is not None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if watch.taken or not callable(closure):
            self.grade(self._optimizers)
            return None

        def closed() -> Any:
            result = closure()
            self.grade(self._optimizers)
            return result

        return ((args[0], closed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closed})

    def _made(self, one: Any, *_: Any) -> None:
        """An optimizer has made its step. One that makes its second before the others is trained by turns."""
        if torch.compiler.is_compiling():
            return
        if self._watch is not None:
            self._watch.stepping = False
        again = id(one) in self._done
        self._done.add(id(one))
        if again:
            self._done = {id(one)}
        elif len(self._done) < len(self._optimizers):
            return
        else:
            self._done = set()
        self.stepped()

    @property
    def watch(self) -> Watch | None:
        """What looks at the step that runs; None where this is not checked."""
        return self._watch

    def restart(self) -> None:
        """A step begins, whatever came of the one before it, which may have broken off."""
        self._drop()
        self.begin()

    def begin(self) -> None:
        """A step of the optimiser begins: look at it if it is its turn."""
        if self._watch is not None or self.tally.steps % self._given.every:
            return
        with self._working():
            inner = guard_model.unwrapped(self.model)
            if self._places is None or inner is not self._inner:
                self._inner, self._places = inner, guard_model.places(self.model)
            self._ledger = Ledger(self.model, inner, self._places.parts)
            self._watch = Watch(self._places, self._pick, self._late)

    def grade(self, optimizers: Sequence[Any]) -> None:
        """The gradients of the step are there, and the optimiser is about to use them."""
        if self._watch is None or self._ledger is None or self._watch.taken:
            return
        self._watch.taken = True
        with self._working():
            self._ledger.graded(optimizers)

    def _late(self) -> None:
        """A forward begins, and the last optimizer has made no step: the others made this one."""
        loop, self._loop = self._loop, False  # the forward that runs is not seen whole: it is not checked
        try:
            self.stepped()
        finally:
            self._loop, self._done = loop, set()

    def stepped(self) -> None:
        """The optimiser has made its step. :class:`GuardStop` where something is found and it was asked for."""
        if self._watch is None:
            self.tally.steps += 1
        else:
            try:
                self._check()
            finally:
                self._drop()
        if self._loop:
            self.begin()

    def _check(self) -> None:
        watch, ledger = self._watch, self._ledger
        self.tally.steps += 1
        found: tuple[Found, ...]
        path: Path | None
        if watch is None or ledger is None or not watch.taken:
            return
        found, path = (), None
        with self._working():
            self._pick = (self.tally.checked + 1) % max(1, watch.micros)
            live = self._live(watch, ledger)
            found, self._last = self._noted(live), live
            self.tally.checked += 1
            path = self._kept(live, watch, found) if found else None
        self._tell(found, path)

    def _live(self, watch: Watch, ledger: Ledger) -> Live:
        """All that the laws read, with one transfer for each device."""
        if self._facts is None:
            self._facts = guard_model.told_of(self._inner, self.processor)
        shut = guard_model.compiled(self.model)
        ledger.waiting([one for one in self._optimizers if self._done and id(one) not in self._done])
        own, kept = ledger.tensors(), watch.tensors()
        got = fetch({**own, **kept})
        return Live(
            {name: got[name] for name in kept},
            {
                **watch.notes,
                "facts": self._facts,
                "parts": ledger.rows(got, None if shut else watch.called),
                "micros": watch.micros,
                "share": list(self._given.share),
                "frozen": ledger.frozen(self._given.trained),
                "elsewhere": self.elsewhere,
                "scaled": self.half or watch.scaled or bool(watch.notes.get("half")),
                "split": self.split or guard_model.scattered(self.model),
                "sharded": self.sharded,
                "emptied": self._loop and watch.emptied,
                "world": self._world,
                "rank": self._rank,
                "unseen": _unseen(watch, shut=shut),
            },
        )

    def _noted(self, live: Live) -> tuple[Found, ...]:
        """What was found, counted."""
        result, tally = judged(live), self.tally
        for rule in LAWS:
            if rule in result.failed:
                tally.unasked[rule] = f"the guard itself failed: {result.failed[rule]}"
            elif rule in result.unasked and not any(found.rule == rule for found in result.findings):
                tally.unasked[rule] = result.unasked[rule]
            else:
                tally.asked[rule] += 1
        return result.findings

    def _kept(self, live: Live, watch: Watch, found: tuple[Found, ...]) -> Path | None:
        """The file of the batch, where its rules have not had theirs."""
        rules = {one.rule for one in found}
        if all(self.tally.written.get(rule, 0) >= OF_A_RULE for rule in rules):
            return None
        try:
            path = self._shelf.write(with_texts(live, self.processor, found), watch.media(), self.tally.steps)
        except OSError as error:
            warnings.warn(f"assay guard: the batch cannot be written: {error}", GuardWarning, stacklevel=2)
            return None
        if path is not None:
            self.tally.written |= {rule: self.tally.written.get(rule, 0) + 1 for rule in rules}
        return path

    def _tell(self, found: tuple[Found, ...], path: Path | None) -> None:
        new = self.tally.note(found)
        if found and self._given.on_finding == "stop":
            raise GuardStop(found, self.tally.steps, path)
        if new:
            warnings.warn(told(new, self.tally.steps, path), GuardWarning, stacklevel=2)

    def _drop(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._watch = self._ledger = None

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Time that the guard takes; where it breaks down itself it says so once, and no training ends for it."""
        began = time.perf_counter()
        try:
            with torch.no_grad():
                yield
        except Exception as error:  # noqa: BLE001 - models, batches and optimisers are foreign, of any kind
            told = f"the guard itself failed: {type(error).__name__}: {error}"
            if told not in self.tally.unasked.values():
                warnings.warn(f"assay guard: {told}", GuardWarning, stacklevel=3)
            self.tally.unasked |= {rule: told for rule in LAWS if not self.tally.asked[rule]}
        finally:
            self.tally.seconds += time.perf_counter() - began


def _unseen(watch: Watch, *, shut: bool) -> str:
    """Why a forward was not looked into; empty where it was."""
    if watch.failed:
        return f"the guard itself failed: {watch.failed}"
    if shut:
        return COMPILED
    return "" if watch.micros else "no forward pass of the model was seen"


def _ranks() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
