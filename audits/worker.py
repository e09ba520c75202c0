"""The worker: a process that has preloaded torch and forks a child for each piece of foreign code.

Run as ``python -m assay.audits.worker CONTROL_SOCKET [MODULE...]``, in this environment or another. The server forks
on request; a child resolves one target, then answers calls until its connection closes. A child that exits, is killed
or hangs costs nothing but itself, and takes all that it started with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch

from assay.audits import wire
from assay.audits.observe import legible, observe, said, tensors
from assay.audits.terms import MAX_TEXT, Implementation, Outcome, Raised

AUTOGRAD = "torch.fx.experimental.symbolic_shapes"
"""What torch imports with the first gradient of a process, which takes most of a second."""
FILE_BYTES = 4 << 30
"""No child writes a longer file: what it prints is kept in one."""
_DIE_WITH_PARENT, _ADOPT_ORPHANS = 1, 36  # prctl(2): PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER


def serve(control_path: str, modules: list[str]) -> None:
    """Answer requests until the judge goes away; then leave no process behind."""
    signal.signal(signal.SIGTERM, _leave)
    _process_control(_ADOPT_ORPHANS, 1)
    control = socket.socket(socket.AF_UNIX)
    control.connect(control_path)
    _interpret_without_a_gpu()
    _preload([*modules, AUTOGRAD])
    children: set[int] = set()
    try:
        wire.send(control, {"ready": True})
        while True:
            wire.send(control, _served(control, wire.receive(control), children))
    except (EOFError, OSError):
        return
    finally:
        for child in list(children):
            _reap(child, children)


def _interpret_without_a_gpu() -> None:
    """Triton reads it when it is imported."""
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def _leave(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def _served(control: socket.socket, request: dict[str, Any], children: set[int]) -> dict[str, Any]:
    if request["op"] == "preload":
        return {"raised": _preload(request["modules"])}
    if request["op"] == "reap":
        return {"status": _reap(request["pid"], children)}
    descriptor = socket.recv_fds(control, 1, 1)[1][0]
    child = os.fork()
    if child == 0:
        control.close()
        _live(request, socket.socket(fileno=descriptor))
    os.close(descriptor)
    children.add(child)
    return {"pid": child}


def _preload(modules: list[str]) -> str:
    try:
        for module in modules:
            importlib.import_module(module)
    except BaseException as error:  # noqa: BLE001 - importing foreign packages may raise anything
        return f"{type(error).__name__}: {said(error)}"
    return ""


def _reap(child: int, children: set[int]) -> int:
    """Kill a child and all that it started, wherever it hides; return its wait status."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    status = _killed(child)
    children.discard(child)
    while orphans := _children_of(os.getpid()) - children:  # those that left the group come here when they lose theirs
        for orphan in orphans:
            _killed(orphan)
    return status


def _killed(process: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    try:
        return os.waitpid(process, 0)[1]
    except ChildProcessError:
        return 0


def _children_of(parent: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[1]) == parent:
                found.add(int(stat.parent.name))
    return found


def _process_control(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _live(request: dict[str, Any], connection: socket.socket) -> None:
    """A child's whole life; never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _process_control(_DIE_WITH_PARENT, signal.SIGKILL)
        output = _capture_output(request["output"])
        _limit(request["memory"])
        _answer(connection, request["paths"], output)
        status = 0
    finally:
        os._exit(status)


def _capture_output(path: str) -> BinaryIO:
    """Send what is printed to a file, on which the judge has an eye too. Appending, so that it can be cut."""
    output = Path(path).open("ab+", buffering=0)  # noqa: SIM115 - lives as long as the process
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    return output


def _limit(memory: int) -> None:
    """Bound the address space beyond what is used now (not where a GPU maps its own), files, and core dumps."""
    if memory:
        memory += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(connection: socket.socket, paths: list[str], output: BinaryIO) -> None:
    # Last, so that a folder of the user's does not shadow an installed package.
    sys.path += [path for path in paths if path not in sys.path]
    import torch

    torch.set_num_threads(1)
    implementation: Implementation | None = None
    while True:
        try:
            request = wire.receive(connection)
        except (EOFError, ConnectionResetError):
            return
        if request["op"] == "describe":
            wire.send(connection, _described(request["ref"]))
            continue
        if request["op"] == "environment":
            wire.send(connection, _environment(request["device"]))
            continue
        if request["op"] == "load":
            outcome, implementation = _load(request["target"], request["form"])
        else:
            assert implementation is not None
            _correct_interpreter()
            outcome = observe(
                implementation, request["inputs"], request["upstream"], tuple(request["differentiable"]),
                request["tape"],
            )  # fmt: skip
            outcome = _doubted(outcome, request["inputs"])
        _reply(connection, replace(outcome, sites=_sites(implementation), stdout=_printed(output)))


def _correct_interpreter() -> str:
    """Where Triton kernels are interpreted, have them round bf16 as a GPU does; the reason where that cannot be done.

    Cheap once done, or without Triton.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or "triton" not in sys.modules:
        return ""
    from assay.audits import interpreter

    state = interpreter.enable()
    return "" if state.bf16 else state.reason


def _doubted(outcome: Outcome, inputs: Any) -> Outcome:
    """A bf16 result that went through an interpreter which cannot do bf16 says so in a note."""
    import torch

    reason = _correct_interpreter()
    if not reason or not any(tensor.dtype == torch.bfloat16 for _, tensor in tensors(inputs)):
        return outcome
    return replace(outcome, notes=(*outcome.notes, f"unverified:{reason}"))


def _load(target: dict[str, Any], form: str) -> tuple[Outcome, Implementation | None]:
    from assay.audits import resolve

    try:
        made = resolve.implementation(target, form)
        _correct_interpreter()
        return Outcome(), made
    except BaseException as error:  # noqa: BLE001 - importing foreign code may raise anything
        import traceback

        kind = "exit" if isinstance(error, SystemExit) else type(error).__name__
        trace = legible("".join(traceback.format_exception(error)))[-MAX_TEXT:]
        return Outcome(raised=Raised(kind, said(error), trace)), None


def _environment(device: str) -> dict[str, str]:
    from assay.audits.environment import environment

    return dict(environment(device))


def _described(ref: str) -> dict[str, Any]:
    import inspect

    from assay.audits import resolve

    try:
        found = resolve.imported(ref)
        if not callable(found):
            return {"raised": f"cannot call {ref}: it is a {type(found).__name__}"}
    except BaseException as error:  # noqa: BLE001 - importing foreign code may raise anything
        return {"raised": f"cannot import {ref}: {type(error).__name__}: {said(error)}"}
    try:
        return {"parameters": list(inspect.signature(found).parameters)}
    except Exception:  # noqa: BLE001 - a foreign object's signature may be anything
        return {"parameters": None}


def _sites(implementation: Implementation | None) -> dict[str, int]:
    return {str(name): int(count) for name, count in dict(getattr(implementation, "sites", {})).items()}


def _reply(connection: socket.socket, outcome: Outcome) -> None:
    try:
        wire.send(connection, outcome)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - tensor subclasses without memory fail in ways of their own
        raised = Raised("BadReturn", f"{type(error).__name__}: {said(error)}")
        wire.send(connection, Outcome(raised=raised, notes=outcome.notes, sites=outcome.sites, stdout=outcome.stdout))


def _printed(output: BinaryIO) -> str:
    """The end of what was printed since the last answer."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or replaced by the candidate
            stream.flush()
    try:
        end = output.seek(0, os.SEEK_END)
        output.seek(max(0, end - MAX_TEXT))
        tail = output.read().decode(errors="replace")
        output.truncate(0)
    except (OSError, ValueError):
        return ""
    return tail


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
