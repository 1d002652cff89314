"""Objects that were given in Python, by a hash of their content.

A config holds the hash; in the process in which the object was given, the config is complete. The
owner of the `Held` keeps the object, so that nothing outlives its last component."""

from __future__ import annotations

import hashlib
import inspect
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Held:
    """One object, its hash, and what was made of it."""

    def __init__(self, value: Any, sha256: str) -> None:
        self.value, self.sha256 = value, sha256
        self.made: dict[Any, Any] = {}


_held: weakref.WeakValueDictionary[str, Held] = weakref.WeakValueDictionary()


def hold(value: Any, sha256: str) -> Held:
    """The object under its hash; the one that is known already stays."""
    known = _held.get(sha256)
    if known is None:
        known = _held[sha256] = Held(value, sha256)
    return known


def held(sha256: str | None) -> Held | None:
    """What was given under this hash in this process and is still in use."""
    return None if sha256 is None else _held.get(sha256)


def name_of(value: Any) -> str:
    """`package.Class`, of an instance its class."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def hash_of(value: Any) -> str:
    """SHA-256 of tensors, modules, classes, functions, and tuples and dicts of them.

    Classes and functions count by their source, anything else by its repr."""
    digest = hashlib.sha256()
    for part in _content(value):
        digest.update(part)
    return digest.hexdigest()


def _content(value: Any) -> Iterable[bytes]:
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        yield f"{array.dtype} {tuple(array.shape)}".encode()
        yield array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b""
    elif isinstance(value, nn.Module):
        yield f"{name_of(value)} {value} {[part.training for part in value.modules()]}".encode()
        yield from _content(value.state_dict())
    elif isinstance(value, dict):
        for key in value:
            yield str(key).encode()
            yield from _content(value[key])
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _content(one)
    elif callable(value):
        yield name_of(value).encode()
        yield _source_of(value).encode()
        cells = getattr(value, "__closure__", None) or ()
        yield from _content([_cell(cell) for cell in cells])
    else:
        yield repr(value).encode()


def _source_of(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        code = getattr(value, "__code__", None)
        return "" if code is None else f"{code.co_code!r} {code.co_consts!r}"


def _cell(cell: Any) -> Any:
    try:
        inside = cell.cell_contents
    except ValueError:
        return "empty"
    plain = (int, float, str, bool, tuple, list, dict, Tensor, nn.Module)
    return inside if isinstance(inside, plain) else name_of(inside)
