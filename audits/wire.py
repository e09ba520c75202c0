"""Moves inputs records and outcomes between processes: a JSON tree beside a safetensors blob.

A tensor travels as its storage plus size, stride and offset, so that views stay views: q, k and v sliced from one
packed buffer arrive as slices of one buffer, a stride-0 expansion arrives as one.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load, save
from torch import Tensor

_HEADER = struct.Struct("!QQ")
MAX_BYTES = 1 << 36
"""No message is longer: a peer that announces more has lost its place, or means harm."""
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
    )
}  # fmt: skip
Octets = npt.NDArray[np.uint8]
Storages = dict[tuple[int, str], tuple[str, Octets]]
"""By address and device: the name under which a storage travels, and its bytes."""


class Unsendable(TypeError):
    """A value that has no place in a message."""


class Garbled(ValueError):
    """A message that is none: the peer wrote something else, or another version of the protocol."""


def encode(value: Any) -> tuple[bytes, bytes]:
    """A tree of records, tuples, dicts, tensors and JSON scalars as (JSON, safetensors). Else :class:`Unsendable`."""
    storages: Storages = {}
    tree = _pack(value, storages)
    return json.dumps(tree).encode(), save(dict(storages.values())) if storages else b""


def decode(header: bytes, blob: bytes) -> Any:
    """The inverse of :func:`encode`; :class:`Garbled` when it is not one.

    Records are rebuilt by importing their classes, assay's own only: what a candidate's process writes must not make
    the judge import a module of its choice.
    """
    try:
        storages = {name: _aligned(octets) for name, octets in load(blob).items()} if blob else {}
        return _unpack(json.loads(header), storages, {})
    except Exception as error:
        message = f"the message cannot be read: {type(error).__name__}: {error}"
        raise Garbled(message) from error


def send(connection: socket.socket, value: Any) -> None:
    """Write one message. Nothing has been written when the value is :class:`Unsendable`."""
    header, blob = encode(value)
    connection.sendall(_HEADER.pack(len(header), len(blob)) + header + blob)


def receive(connection: socket.socket, seconds: float | None = None) -> Any:
    """Read one message.

    EOFError when the other side is gone, :class:`Garbled` when what came is no message. TimeoutError when the whole
    of it has not come within ``seconds``; without, each piece may take the socket's own time-out.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    sizes = _HEADER.unpack(_exactly(connection, _HEADER.size, deadline))
    if sum(sizes) > MAX_BYTES:
        message = f"a message of {sum(sizes)} bytes was announced"
        raise Garbled(message)
    header, blob = (_exactly(connection, size, deadline) for size in sizes)
    return decode(header, blob)


def _exactly(connection: socket.socket, count: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            message = "the other process closed the connection"
            raise EOFError(message)
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError
        parts += part
    return bytes(parts)


def _pack(value: Any, storages: Storages) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return _pack_tensor(value, storages)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {f.name: _pack(getattr(value, f.name), storages) for f in dataclasses.fields(value)}
        return {"__record__": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(item, storages) for item in value]}
    if isinstance(value, list):
        return [_pack(item, storages) for item in value]
    if isinstance(value, Mapping):
        return {"__dict__": [[_key(key), _pack(item, storages)] for key, item in value.items()]}
    message = f"cannot send a {type(value).__name__} to another process"
    raise Unsendable(message)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        message = f"mapping keys must be str to travel, got {type(key).__name__}"
        raise Unsendable(message)
    return key


def _pack_tensor(tensor: Tensor, storages: Storages) -> Any:
    dtype = str(tensor.dtype).removeprefix("torch.")
    device = tensor.device.type
    if tensor.layout != torch.strided or dtype not in _DTYPES or device == "meta":
        message = f"cannot send a {tensor.layout} tensor of {tensor.dtype} on {device} to another process"
        raise Unsendable(message)
    with torch.no_grad():
        # The storage does not know that a view is negated; what sets the bit (an imaginary part) is read, not shared.
        tensor = tensor.detach().resolve_neg()
    storage = tensor.untyped_storage()
    identity = (storage.data_ptr() if storage.nbytes() else -1, device)
    if identity not in storages:
        octets = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        storages[identity] = f"s{len(storages)}", octets.cpu().numpy()
    return {
        "__tensor__": storages[identity][0],
        "dtype": dtype,
        "size": list(tensor.shape),
        "stride": list(tensor.stride()),
        "offset": tensor.storage_offset(),
        "device": device,
    }


def _aligned(octets: Octets) -> Tensor:
    """The bytes in memory of torch's own: writable, and aligned as kernels expect."""
    return torch.from_numpy(octets).clone()


def _unpack(tree: Any, storages: dict[str, Tensor], moved: dict[tuple[str, str], Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, storages, moved) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "__tensor__" in tree:
        return _unpack_tensor(tree, storages, moved)
    if "__tuple__" in tree:
        return tuple(_unpack(item, storages, moved) for item in tree["__tuple__"])
    if "__dict__" in tree:
        return {key: _unpack(item, storages, moved) for key, item in tree["__dict__"]}
    kind = _record(tree["__record__"])
    return kind(**{key: _unpack(item, storages, moved) for key, item in tree["fields"].items()})


def _unpack_tensor(tree: Any, storages: dict[str, Tensor], moved: dict[tuple[str, str], Tensor]) -> Tensor:
    name, device = tree["__tensor__"], tree["device"]
    if (name, device) not in moved:
        moved[name, device] = storages[name].to(device)
    flat = torch.empty(0, dtype=_DTYPES[tree["dtype"]], device=device).set_(moved[name, device].untyped_storage())
    return flat.as_strided(tree["size"], tree["stride"], tree["offset"])  # checks the bounds, which set_ does not


def _record(name: str) -> Any:
    module, _, qualname = name.partition(":")
    if not module.startswith("assay."):
        message = f"no record of assay: {name!r}"
        raise Garbled(message)
    kind: Any = importlib.import_module(module)
    for part in qualname.split("."):
        kind = getattr(kind, part)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        message = f"not a record: {name!r}"
        raise Garbled(message)
    return kind
