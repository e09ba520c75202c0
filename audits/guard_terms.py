"""The nouns of the guard: what a checked step showed, what was found in it, and how training is stopped for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from assay.audits.components.pipeline.views import View
from assay.audits.patch_runs import as_bytes
from assay.audits.terms import Inexpressible


@dataclass(frozen=True, kw_only=True)
class Found:
    """A law broken in a checked step: which (``rule``), what it means, where, and the numbers."""

    rule: str
    message: str
    where: str
    measured: float | str
    limit: float | str
    index: tuple[int, ...] | None = None

    def __str__(self) -> str:
        """In one sentence."""
        place = f"{self.where}{list(self.index) if self.index is not None else ''}"
        return f"{self.rule}: {self.message} ({place}: {self.measured}, expected {self.limit})"


class GuardStop(RuntimeError):
    """Training was stopped: what was found, in which optimiser step (from 1 on), and the file with its batch.

    ``path`` is None where no file could be written, or as many as ``keep`` allows had been.
    """

    def __init__(self, findings: tuple[Found, ...], step: int, path: Path | None) -> None:
        """The message has a line for each finding."""
        self.findings, self.step, self.path = findings, step, path
        super().__init__(told(findings, step, path))


class GuardWarning(UserWarning):
    """What a guard found, where training goes on."""


def told(findings: tuple[Found, ...], step: int, path: Path | None) -> str:
    """Findings of a step in words, with the commands that show them again."""
    lines = [f"assay guard: step {step}: {found}" for found in findings]
    if path is not None:
        lines.append(f"  $ assay repro {path}\n  $ assay show --batch {path} --html batch.html")
    return "\n".join(lines)


@dataclass(frozen=True)
class Live:
    """What a checked step showed, on the CPU: all that laws read, and all that is written to a file.

    ``tensors`` by name: ``batch.KEY`` of the micro-batch that was looked at, ``used.positions`` [A,B,S] of the
    decoder, ``used.sees`` [B,S-1] (whether a token sees the one before it), and for the M micro-batches of the step
    ``step.loss`` [M], ``step.counts`` [M,2] (labels that count with the first column left out, and with it) and
    ``step.items`` [M]. ``record`` is JSON: ``facts`` of ``audits.pipeline_facts``, ``shapes`` of what is not among the
    tensors, ``parts`` of the model, and what the guard was told.
    """

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]

    @cached_property
    def view(self) -> View:
        """The batch as laws of pipelines read it. Inexpressible without tokens, or with parts of samples alone."""
        if self.record.get("sharded"):
            raise Inexpressible("samples are spread over several processes, and each sees its part alone")
        if "batch.input_ids" not in self.tensors:
            raise Inexpressible(self.record.get("unseen") or "the forward is given no input_ids")
        batch = {name: value for name, value in self.tensors.items() if name.startswith("batch.")}
        return View({**batch, "record": as_bytes({"facts": self.record["facts"]})})

    @cached_property
    def held(self) -> dict[str, Any]:
        """What several laws need and one has made: see :meth:`once`."""
        return {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, made once."""
        if name not in self.held:
            self.held[name] = make()
        return self.held[name]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the model's configuration and its tokenizer say."""
        found: Mapping[str, Any] = self.record["facts"]
        return found
