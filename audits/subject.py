"""What a law may call: trusted code in this process, foreign code in a worker."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from assay.audits import resolve, wire
from assay.audits.observe import observe
from assay.audits.terms import Candidate, Implementation, Level, Outcome, Outputs, Raised

START_SECONDS = 120.0


@dataclass(frozen=True)
class InProcess:
    """A trusted implementation, called here."""

    implementation: Implementation
    differentiable: tuple[str, ...] = ()
    level: Level = "function"

    def call(self, inputs: Any, upstream: Outputs | None = None) -> Outcome:
        """Run once."""
        return observe(self.implementation, inputs, upstream, self.differentiable)


class Server:
    """One worker process of one Python environment, reused for all candidates that live in it."""

    def __init__(self, python: str = sys.executable, preload: tuple[str, ...] = ()) -> None:
        """Start the process and wait until it is ready. RuntimeError with its output when it does not come up."""
        self._folder = tempfile.mkdtemp(prefix="assay-")
        self._clean = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = str(Path(self._folder) / "control")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(START_SECONDS)
            with (Path(self._folder) / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    [python, "-m", "assay.audits.worker", path],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(), start_new_session=True,
                )
            self._stop = weakref.finalize(self, _stop, self._process)
            self._control = self._accept(listener)
        wire.receive(self._control)
        self._preloaded: set[str] = set()
        self.preload(preload)

    def _accept(self, listener: socket.socket) -> socket.socket:
        waited = 0.0
        listener.settimeout(0.25)
        while waited < START_SECONDS:
            try:
                control = listener.accept()[0]
            except TimeoutError:
                waited += 0.25
                if self._process.poll() is not None:
                    break
            else:
                control.settimeout(START_SECONDS)
                return control
        log = (Path(self._folder) / "log").read_text(errors="replace")[-1000:]
        message = f"the worker did not start: {log}"
        raise RuntimeError(message)

    def preload(self, modules: tuple[str, ...]) -> None:
        """Import modules in the server, so that its children need not. A failing import is left to the child."""
        missing = [module for module in modules if module not in self._preloaded]
        if missing:
            wire.send(self._control, {"op": "preload", "modules": missing})
            wire.receive(self._control)
            self._preloaded.update(missing)

    def fork(self, *, limit_memory: bool) -> tuple[int, socket.socket]:
        """A fresh child: its process id and a connection to it."""
        path = str(Path(self._folder) / f"child-{os.urandom(6).hex()}")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(START_SECONDS)
            request = {"op": "fork", "socket": path, "paths": [os.getcwd()], "limit_memory": limit_memory}
            wire.send(self._control, request)
            pid = int(wire.receive(self._control)["pid"])
            return pid, listener.accept()[0]

    def reap(self, pid: int) -> int:
        """End a child and return its wait status."""
        wire.send(self._control, {"op": "reap", "pid": pid})
        return int(wire.receive(self._control)["status"])

    def close(self) -> None:
        """Stop the process and all its children."""
        self._stop()
        self._clean()


def _environment() -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **offline, **one_thread, **_interpreted()}


def _interpreted() -> dict[str, str]:
    """Triton kernels run in the interpreter where there is no GPU."""
    import torch

    return {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass
class Foreign:
    """A candidate in a child of a worker, forked at the first call and again after each death."""

    server: Server
    candidate: Candidate
    differentiable: tuple[str, ...] = ()
    seconds: float = 20.0
    level: Level = "function"
    _child: tuple[int, socket.socket] | None = field(default=None, repr=False)

    def call(self, inputs: Any, upstream: Outputs | None = None) -> Outcome:
        """Run once. A hang ends as ``timeout``, a death as ``exit`` or ``signal``."""
        if self._child is None:
            loaded = self._load()
            if loaded.raised:
                return loaded
        request = {"op": "call", "inputs": inputs, "upstream": upstream, "differentiable": list(self.differentiable)}
        return self._ask(request)

    def _load(self) -> Outcome:
        limit = not _uses_cuda(self.candidate.target)
        self._child = self.server.fork(limit_memory=limit)
        outcome = self._ask(
            {"op": "load", "target": dict(self.candidate.target), "form": self.candidate.form}, START_SECONDS
        )
        if outcome.raised:
            self.close()
            text = f"{outcome.raised.kind}: {outcome.raised.message}"
            return Outcome(raised=Raised("unloadable", text, outcome.raised.traceback), stdout=outcome.stdout)
        return outcome

    def _ask(self, request: Mapping[str, Any], seconds: float | None = None) -> Outcome:
        assert self._child is not None
        connection = self._child[1]
        connection.settimeout(seconds or self.seconds)
        try:
            wire.send(connection, request)
            outcome = wire.receive(connection)
            assert isinstance(outcome, Outcome)
        except TimeoutError:
            self.close()
            return Outcome(raised=Raised("timeout", f"no answer within {seconds or self.seconds:g} s"))
        except (EOFError, OSError):
            return Outcome(raised=_death(self.close()))
        return outcome

    def close(self) -> int:
        """End the child, if there is one, and return its wait status."""
        if self._child is None:
            return 0
        pid, connection = self._child
        self._child = None
        connection.close()
        return self.server.reap(pid)

    def __enter__(self) -> Self:
        """The subject itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child."""
        self.close()


def parameters(server: Server, ref: str) -> tuple[str, ...]:
    """Parameter names of ``package.module:function``. ValueError when it cannot be imported or has no signature."""
    pid, connection = server.fork(limit_memory=True)
    try:
        connection.settimeout(START_SECONDS)
        wire.send(connection, {"op": "describe", "ref": ref})
        answer = wire.receive(connection)
    except (EOFError, OSError) as error:
        message = f"importing {ref} ended the process"
        raise ValueError(message) from error
    finally:
        connection.close()
        server.reap(pid)
    if "raised" in answer:
        message = f"cannot import {ref}: {answer['raised']}"
        raise ValueError(message)
    return tuple(answer["parameters"])


def _uses_cuda(target: Mapping[str, Any]) -> bool:
    return str(target.get("device", "cpu")).startswith("cuda")


def _death(status: int) -> Raised:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        return Raised("signal", f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    if os.WIFEXITED(status):
        return Raised("exit", f"the process exited with status {os.WEXITSTATUS(status)}")
    return Raised("exit", "the process ended")


def subject(
    candidate: Candidate, differentiable: tuple[str, ...], server: Server | None, seconds: float, level: Level
) -> InProcess | Foreign:
    """The subject of a candidate: in this process if it is trusted, else in a child of ``server``."""
    if candidate.trusted:
        return InProcess(resolve.implementation(candidate.target, candidate.form), differentiable, level)
    if server is None:
        message = f"candidate {candidate.name!r} is foreign code and needs a worker"
        raise ValueError(message)
    return Foreign(server, candidate, differentiable, seconds, level)
