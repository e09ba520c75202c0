"""The worker process as the judge sees it: starts it, has it fork children, and ends them.

Nothing here imports torch before the first message, so that a worker comes up while the judge does.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import assay
from assay.audits import registry
from assay.audits.terms import MAX_TEXT

START_SECONDS = 120.0
"""How long a worker may take to come up, and a candidate to be imported."""
MEMORY_BYTES = 8 << 30
"""What a child may allocate beyond what it starts with."""


@dataclass(frozen=True)
class Child:
    """A forked process that runs one candidate."""

    pid: int
    connection: socket.socket
    output: Path


class Server:
    """One worker process of one Python environment, reused for all candidates that live in it.

    It starts at once and in the background: whoever first asks something of it waits until it is ready. One that has
    died (a candidate may kill its parent) is started again for the next candidate.
    """

    def __init__(
        self, python: str = sys.executable, preload: tuple[str, ...] = (), memory: int = MEMORY_BYTES,
        variables: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Start the process, with modules that its children need not import again.

        ``python`` may be that of another environment, which needs torch, numpy, pydantic and safetensors, and no assay:
        it is given this one. ``memory`` is what a child may allocate, in bytes. ``variables`` are further ones of the
        environment.
        """
        rooms = (f"assay.audits.components.{name}.operations" for name in registry.component_names())
        self._python, self._memory, self._variables = python, memory, dict(variables or {})
        self._preload = ("assay.audits.resolve", *rooms, *preload)
        self._folder = tempfile.mkdtemp(prefix="assay-")
        self._clean = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._start()

    def _start(self) -> None:
        path = str(Path(self._folder) / f"control-{os.urandom(6).hex()}")
        environment = {**_environment(), **self._elsewhere(), **self._variables}
        self._control: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        with (Path(self._folder) / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._python, "-P", "-m", "assay.audits.worker", path, *self._preload],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip
        self._stop = weakref.finalize(self, _stop, self._process)

    def _elsewhere(self) -> dict[str, str]:
        """What another interpreter finds this package by: a folder with a link to it, and nothing beside it."""
        if self._python == sys.executable:
            return {}
        folder = Path(self._folder) / "path"
        if not folder.is_dir():
            folder.mkdir()
            (folder / "assay").symlink_to(Path(assay.__file__).parent.absolute())
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}

    def _ready(self) -> socket.socket:
        """The connection to the process. RuntimeError with its output when it does not come up."""
        from assay.audits import wire

        if self._control is None:
            with self._listener:
                self._control = self._accept()
            wire.receive(self._control)
        return self._control

    def _accept(self) -> socket.socket:
        deadline = time.monotonic() + START_SECONDS
        self._listener.settimeout(0.25)
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(TimeoutError):
                control = self._listener.accept()[0]
                control.settimeout(START_SECONDS)
                return control
        log = (Path(self._folder) / "log").read_text(errors="replace")[-1000:]
        message = f"the worker did not start: {log}"
        raise RuntimeError(message)

    def preload(self, modules: tuple[str, ...]) -> None:
        """Import modules in the server, so that its children need not. A failing import is left to the child."""
        from assay.audits import wire

        missing = tuple(module for module in modules if module not in self._preload)
        if missing:
            self._preload += missing
            control = self._ready()
            wire.send(control, {"op": "preload", "modules": list(missing)})
            wire.receive(control)

    def fork(self, *, limit_memory: bool) -> Child:
        """A fresh child. A server that was killed meanwhile is started again, once."""
        if self._process.poll() is not None:
            self._restart()
        try:
            return self._fork(limit_memory=limit_memory)
        except (EOFError, ConnectionError):
            self._restart()
            return self._fork(limit_memory=limit_memory)

    def _restart(self) -> None:
        self._end()
        self._start()

    def _fork(self, *, limit_memory: bool) -> Child:
        from assay.audits import wire

        control = self._ready()
        output = Path(self._folder) / f"output-{os.urandom(6).hex()}"
        here, there = socket.socketpair()
        with there:
            memory = self._memory if limit_memory else 0
            wire.send(control, {"op": "fork", "paths": [str(Path.cwd())], "memory": memory, "output": str(output)})
            socket.send_fds(control, [b"+"], [there.fileno()])
            try:
                return Child(int(wire.receive(control)["pid"]), here, output)
            except BaseException:
                here.close()
                raise

    def reap(self, child: Child) -> tuple[int, str]:
        """End a child and all that it started; its wait status, and the end of what it printed."""
        from assay.audits import wire

        child.connection.close()
        status = signal.SIGKILL.value
        with suppress(EOFError, ConnectionError):  # the server was killed, and its children with it
            control = self._ready()
            wire.send(control, {"op": "reap", "pid": child.pid})
            status = int(wire.receive(control)["status"])
        printed = ""
        with suppress(OSError):
            printed = child.output.read_bytes()[-MAX_TEXT:].decode(errors="replace")
            child.output.unlink()
        return status, printed

    def _end(self) -> None:
        self._listener.close()
        if self._control is not None:
            self._control.close()
        self._stop()

    def close(self) -> None:
        """Stop the process and all its children."""
        self._end()
        self._clean()

    def __enter__(self) -> Self:
        """The server itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.close()


def _environment() -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    no_driver = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # to look for a GPU must not spoil it for the forked
    return {**os.environ, **offline, **one_thread, **no_driver}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ask(server: Server, request: Mapping[str, Any]) -> Any:
    """What a fresh child answers to one request.

    TimeoutError, EOFError, OSError or ``wire.Garbled`` where it does not.
    """
    from assay.audits import wire

    child = server.fork(limit_memory=True)
    try:
        child.connection.settimeout(START_SECONDS)
        wire.send(child.connection, request)
        return wire.receive(child.connection, START_SECONDS)
    finally:
        server.reap(child)


def parameters(server: Server, ref: str) -> tuple[str, ...] | None:
    """Parameter names of ``package.module:function``, None where it has no signature. ValueError: no such function."""
    from assay.audits import wire

    try:
        answer = ask(server, {"op": "describe", "ref": ref})
    except TimeoutError as error:
        message = f"importing {ref} did not end within {START_SECONDS:g} s"
        raise ValueError(message) from error
    except (EOFError, OSError, wire.Garbled) as error:
        message = f"importing {ref} ended the process"
        raise ValueError(message) from error
    if "raised" in answer:
        raise ValueError(answer["raised"])
    return None if answer["parameters"] is None else tuple(answer["parameters"])
