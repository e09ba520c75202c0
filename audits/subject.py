"""What a law may call: trusted code in this process, foreign code in a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from assay.audits import resolve, wire
from assay.audits.observe import observe
from assay.audits.server import START_SECONDS, Child, Server
from assay.audits.terms import MAX_TEXT, Candidate, Implementation, Level, Outcome, Outputs, Raised, Tape

__all__ = ["Foreign", "InProcess", "Server", "subject"]


@dataclass(frozen=True)
class InProcess:
    """A trusted implementation, called here."""

    implementation: Implementation
    differentiable: tuple[str, ...] = ()
    level: Level = "function"

    def call(self, inputs: Any, upstream: Outputs | None = None, tape: Tape | None = None) -> Outcome:
        """Run once."""
        return observe(self.implementation, inputs, upstream, self.differentiable, tape)


@dataclass
class Foreign:
    """A candidate in a child of a worker, forked at the first call and again after each death."""

    server: Server
    candidate: Candidate
    differentiable: tuple[str, ...] = ()
    seconds: float = 20.0
    level: Level = "function"
    limit_memory: bool = True
    deaths: int = 0
    _child: Child | None = field(default=None, repr=False)

    def call(self, inputs: Any, upstream: Outputs | None = None, tape: Tape | None = None) -> Outcome:
        """Run once. A hang ends as ``timeout``, a death as ``exit`` or ``signal``."""
        if self._child is None:
            loaded = self._load()
            if loaded.raised:
                return loaded
        request = {
            "op": "call", "inputs": inputs, "upstream": upstream, "differentiable": list(self.differentiable),
            "tape": tape,
        }  # fmt: skip
        return self._ask(request, self.seconds)

    def _load(self) -> Outcome:
        self._child = self.server.fork(limit_memory=self.limit_memory)
        request = {"op": "load", "target": dict(self.candidate.target), "form": self.candidate.form}
        outcome = self._ask(request, START_SECONDS)
        if outcome.raised:
            self.close()
            text = f"{outcome.raised.kind}: {outcome.raised.message}"
            return replace(outcome, raised=Raised("unloadable", text, outcome.raised.traceback))
        return outcome

    def _ask(self, request: Mapping[str, Any], seconds: float) -> Outcome:
        assert self._child is not None
        connection = self._child.connection
        connection.settimeout(seconds)
        try:
            wire.send(connection, request)
            outcome = wire.receive(connection, seconds)
        except TimeoutError:
            return self._died(Raised("timeout", f"no answer within {seconds:g} s"))
        except wire.Garbled as error:
            return self._died(Raised("BadReturn", f"the process answered nonsense: {error}"[:MAX_TEXT]))
        except (EOFError, OSError):
            return self._died(None)
        if not isinstance(outcome, Outcome):
            return self._died(Raised("BadReturn", "the process answered something else"))
        return outcome

    def _died(self, raised: Raised | None) -> Outcome:
        """The outcome of a call that the child did not survive; ``raised`` unless its status tells."""
        self.deaths += 1
        status, printed = self._end()
        return Outcome(raised=raised or _death(status), stdout=printed)

    def _end(self) -> tuple[int, str]:
        assert self._child is not None
        child, self._child = self._child, None
        return self.server.reap(child)

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._end()

    def __enter__(self) -> Self:
        """The subject itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child."""
        self.close()


def _death(status: int) -> Raised:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        return Raised("signal", f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    if os.WIFEXITED(status):
        return Raised("exit", f"the process exited with status {os.WEXITSTATUS(status)}")
    return Raised("exit", "the process was killed, or closed its connection")


def subject(
    candidate: Candidate, differentiable: tuple[str, ...], server: Server | None, seconds: float, level: Level,
    *, limit_memory: bool = True,
) -> InProcess | Foreign:  # fmt: skip
    """The subject of a candidate: in this process if it is trusted, else in a child of ``server``.

    ``limit_memory`` bounds what the child may map; a GPU maps more than any bound.
    """
    if candidate.trusted:
        return InProcess(resolve.implementation(candidate.target, candidate.form), differentiable, level)
    if server is None:
        message = f"candidate {candidate.name!r} is foreign code and needs a worker"
        raise ValueError(message)
    return Foreign(server, candidate, differentiable, seconds, level, limit_memory)
