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
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

_HEADER = struct.Struct("!QQ")


def encode(value: Any) -> tuple[bytes, bytes]:
    """A tree of records, tuples, dicts, tensors and JSON scalars as (JSON, safetensors). Other types are TypeErrors."""
    storages: dict[str, Tensor] = {}
    seen: dict[tuple[int, torch.dtype], str] = {}
    tree = _pack(value, storages, seen)
    return json.dumps(tree).encode(), save(storages) if storages else b""


def decode(header: bytes, blob: bytes) -> Any:
    """The inverse of :func:`encode`. Records are rebuilt by importing their classes."""
    storages = load(blob) if blob else {}
    return _unpack(json.loads(header), storages, {})


def send(connection: socket.socket, value: Any) -> None:
    """Write one message."""
    header, blob = encode(value)
    connection.sendall(_HEADER.pack(len(header), len(blob)) + header + blob)


def receive(connection: socket.socket) -> Any:
    """Read one message. Raises EOFError when the other side is gone, TimeoutError after the socket's time-out."""
    sizes = _HEADER.unpack(_exactly(connection, _HEADER.size))
    return decode(*(_exactly(connection, size) for size in sizes))


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            message = "the other process closed the connection"
            raise EOFError(message)
        parts += part
    return bytes(parts)


def _pack(value: Any, storages: dict[str, Tensor], seen: dict[tuple[int, torch.dtype], str]) -> Any:
    if isinstance(value, Tensor):
        return _pack_tensor(value.detach(), storages, seen)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {f.name: _pack(getattr(value, f.name), storages, seen) for f in dataclasses.fields(value)}
        return {"__record__": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(item, storages, seen) for item in value]}
    if isinstance(value, list):
        return [_pack(item, storages, seen) for item in value]
    if hasattr(value, "items"):
        return {"__dict__": [[_key(key), _pack(item, storages, seen)] for key, item in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    message = f"cannot send a {type(value).__name__} to another process"
    raise TypeError(message)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        message = f"mapping keys must be str to travel, got {type(key).__name__}"
        raise TypeError(message)
    return key


def _pack_tensor(tensor: Tensor, storages: dict[str, Tensor], seen: dict[tuple[int, torch.dtype], str]) -> Any:
    if tensor.layout != torch.strided or tensor.is_complex():
        message = f"cannot send a {tensor.layout} tensor of {tensor.dtype} to another process"
        raise TypeError(message)
    device = tensor.device.type
    storage = tensor.untyped_storage()
    identity = (storage.data_ptr(), tensor.dtype) if storage.nbytes() else (-len(storages) - 1, tensor.dtype)
    if identity not in seen:
        seen[identity] = f"s{len(seen)}"
        flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage)
        storages[seen[identity]] = flat.cpu().clone()
    return {
        "__tensor__": seen[identity],
        "size": list(tensor.shape),
        "stride": list(tensor.stride()),
        "offset": tensor.storage_offset(),
        "device": device,
    }


def _unpack(tree: Any, storages: dict[str, Tensor], moved: dict[tuple[str, str], Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, storages, moved) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "__tensor__" in tree:
        name, device = tree["__tensor__"], tree["device"]
        if (name, device) not in moved:
            moved[name, device] = storages[name].to(device)
        return moved[name, device].as_strided(tree["size"], tree["stride"], tree["offset"])
    if "__tuple__" in tree:
        return tuple(_unpack(item, storages, moved) for item in tree["__tuple__"])
    if "__dict__" in tree:
        return {key: _unpack(item, storages, moved) for key, item in tree["__dict__"]}
    module, _, qualname = tree["__record__"].partition(":")
    kind: Any = importlib.import_module(module)
    for part in qualname.split("."):
        kind = getattr(kind, part)
    return kind(**{key: _unpack(item, storages, moved) for key, item in tree["fields"].items()})
