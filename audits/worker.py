"""The worker: a process that has preloaded torch and forks a child for each piece of foreign code.

Run as ``python -m assay.audits.worker CONTROL_SOCKET``, in this environment or another. The server forks on request;
a child connects to the socket it is told, resolves one target, then answers calls until the connection closes. A
child that exits, is killed or hangs costs nothing but itself.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import socket
import sys
import tempfile
from typing import Any

from assay.audits import wire
from assay.audits.observe import MAX_TEXT, observe
from assay.audits.terms import Implementation, Outcome, Raised

MEMORY_BYTES = 8 << 30


def serve(control_path: str) -> None:
    """Answer ``fork`` and ``reap`` requests until the judge goes away."""
    control = socket.socket(socket.AF_UNIX)
    control.connect(control_path)
    wire.send(control, {"ready": True})
    while True:
        try:
            request = wire.receive(control)
        except (EOFError, OSError):
            return
        if request["op"] == "preload":
            wire.send(control, {"raised": _preload(request["modules"])})
        elif request["op"] == "fork":
            child = os.fork()
            if child == 0:
                control.close()
                _live(request)
            wire.send(control, {"pid": child})
        else:
            wire.send(control, {"status": _reap(request["pid"])})


def _preload(modules: list[str]) -> str:
    try:
        for module in modules:
            importlib.import_module(module)
    except BaseException as error:  # noqa: BLE001 - importing foreign packages may raise anything
        return f"{type(error).__name__}: {error}"
    return ""


def _reap(pid: int) -> int:
    """Kill the child and all that it started, if they still run; return its wait status."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return 0


def _live(request: dict[str, Any]) -> None:
    """A child's whole life; never returns."""
    status = 1
    try:
        os.setsid()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(request["socket"])
        output = _capture_output()
        if request["limit_memory"]:
            _limit_memory()
        _answer(connection, request["paths"], output)
        status = 0
    finally:
        os._exit(status)


def _capture_output() -> Any:
    output = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - lives as long as the process
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    return output


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


def _answer(connection: socket.socket, paths: list[str], output: Any) -> None:
    sys.path[:0] = [path for path in paths if path not in sys.path]
    import torch

    torch.set_num_threads(1)
    implementation: Implementation | None = None
    while True:
        try:
            request = wire.receive(connection)
        except EOFError:
            return
        if request["op"] == "describe":
            wire.send(connection, _described(request["ref"]))
            continue
        if request["op"] == "load":
            outcome, implementation = _load(request["target"], request["form"])
        else:
            assert implementation is not None
            _correct_interpreter()
            outcome = observe(
                implementation, request["inputs"], request["upstream"], tuple(request["differentiable"])
            )
        sites = dict(getattr(implementation, "sites", {}))
        _reply(connection, outcome, sites, _tail(output))


def _correct_interpreter() -> None:
    """Where Triton kernels are interpreted, have them round bf16 as a GPU does; cheap once done, or without Triton."""
    if os.environ.get("TRITON_INTERPRET") == "1" and "triton" in sys.modules:
        from assay.audits import interpreter

        interpreter.enable()


def _load(target: dict[str, Any], form: str) -> tuple[Outcome, Implementation | None]:
    from assay.audits import resolve

    try:
        made = resolve.implementation(target, form)
        _correct_interpreter()
        return Outcome(), made
    except BaseException as error:  # noqa: BLE001 - importing foreign code may raise anything
        import traceback

        kind = "exit" if isinstance(error, SystemExit) else type(error).__name__
        return Outcome(raised=Raised(kind, str(error)[:MAX_TEXT], traceback.format_exc()[-MAX_TEXT:])), None


def _described(ref: str) -> dict[str, Any]:
    import inspect

    from assay.audits import resolve

    try:
        return {"parameters": list(inspect.signature(resolve.imported(ref)).parameters)}
    except BaseException as error:  # noqa: BLE001 - importing foreign code may raise anything
        return {"raised": f"{type(error).__name__}: {error}"[:MAX_TEXT]}


def _reply(connection: socket.socket, outcome: Outcome, sites: dict[str, int], stdout: str) -> None:
    from dataclasses import replace

    try:
        wire.send(connection, replace(outcome, sites=sites, stdout=stdout))
    except TypeError as error:
        wire.send(connection, Outcome(raised=Raised("TypeError", str(error)), stdout=stdout))


def _tail(output: Any) -> str:
    sys.stdout.flush()
    sys.stderr.flush()
    end = output.seek(0, os.SEEK_END)
    output.seek(max(0, end - MAX_TEXT))
    return str(output.read().decode(errors="replace"))


if __name__ == "__main__":
    serve(sys.argv[1])
