"""Objects that were given in Python, by a hash of their content.

A config holds the hash; in the process in which the object was given, the config is complete. The
owner of the `Held` keeps the object, so that nothing outlives its last component."""

from __future__ import annotations

import hashlib
import inspect
import weakref
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

PACKAGE = __name__.split(".")[0]


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
    """SHA-256 of what an object computes: of tensors, modules, functions, and what they hold.

    A module counts by its class, parameters, buffers, submodules, hooks and other attributes;
    classes by their source; functions by their source, defaults, the variables they close over and
    the constants they read; any other object by its class and attributes.
    """
    digest = hashlib.sha256()
    for part in _content(value, {}):
        digest.update(part)
    return digest.hexdigest()


Seen = dict[int, tuple[int, Any]]  # by id: number and object, so that no other takes its id
CONSTANTS = (int, float, complex, str, bytes, tuple, Tensor, np.ndarray)
PLAIN = (*CONSTANTS, list, dict, nn.Module)
BOOKKEEPING = frozenset(vars(nn.Module()))  # names of what every module holds
HOOKS = frozenset(name for name in BOOKKEEPING if name.endswith("_hooks"))


def _content(value: Any, seen: Seen) -> Iterator[bytes]:
    """The parts of an object; what is met again counts by where it was met first."""
    if isinstance(value, Tensor):
        yield from _tensor(value)
    elif isinstance(value, type):
        yield " ".join((name_of(value), *map(_source_of, _own_classes(value)))).encode()
    elif isinstance(value, tuple):
        for one in value:
            yield from _content(one, seen)
    elif id(value) in seen:
        yield f"object {seen[id(value)][0]}".encode()
    elif _state(value) is None:
        yield (name_of(value) if " at 0x" in repr(value) else repr(value)).encode()
    else:
        seen[id(value)] = len(seen), value
        yield from _composed(value, seen)


def _tensor(value: Tensor) -> Iterator[bytes]:
    if is_lazy(value):
        yield b"uninitialized"
        return
    array = value.detach().contiguous()
    yield f"{array.dtype} {tuple(array.shape)}".encode()
    if not array.is_meta:
        yield array.cpu().flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b""


def _composed(value: Any, seen: Seen) -> Iterator[bytes]:
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, dict):
        for key, one in value.items():
            yield str(key).encode()
            yield from _content(one, seen)
    elif isinstance(value, list):
        yield from _content(tuple(value), seen)
    elif isinstance(value, FunctionType):
        yield f"{name_of(value)} {_source_of(value)}".encode()
        yield from _content(_of_function(value), seen)
    elif isinstance(value, nn.Module):
        yield f"{name_of(value)} {value}".encode()
        yield from _of_module(value, seen)
    else:
        yield name_of(value).encode()
        yield from _content(_state(value), seen)


def _state(value: Any) -> Any:
    """What an object holds; None of one that holds nothing, such as a number or a text."""
    if isinstance(value, (str, bytes, int, float, complex, np.generic, ModuleType)):
        return None
    if isinstance(value, dict | list | nn.Module | FunctionType):
        return ()  # see _composed
    if isinstance(value, deque):
        return tuple(value)
    if isinstance(value, np.ndarray):
        return tuple(value.reshape(-1).tolist())
    if isinstance(value, set | frozenset):
        return tuple(sorted(value, key=repr))
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [name for name in slots if name not in ("__dict__", "__weakref__")]
    held = {name: getattr(value, name) for name in names if hasattr(value, name)}
    held |= getattr(value, "__dict__", {})
    if _inside(type(value)):
        held = {name: one for name, one in held.items() if isinstance(one, PLAIN)}
    return (type(value), held) if held else None


def _of_function(function: FunctionType) -> tuple[Any, ...]:
    """Defaults, variables, and of what it reads constants, functions and classes beside it.

    Functions of torch and of this package may hold caches: only plain values of them count.
    """
    held = [_cell(cell) for cell in function.__closure__ or ()]
    if _inside(function):
        return tuple(one if isinstance(one, PLAIN) else name_of(one) for one in held)
    code = function.__code__
    read = {name: function.__globals__.get(name) for name in code.co_names}
    beside = {
        name: one
        for name, one in read.items()
        if isinstance(one, CONSTANTS)
        or (isinstance(one, type | FunctionType) and one.__module__ == function.__module__)
    }
    plain = [one for one in code.co_consts if isinstance(one, CONSTANTS)]
    line = (plain, code.co_names) if function.__name__ == "<lambda>" else ()  # two may share one
    return function.__defaults__, function.__kwdefaults__, *held, beside, line


def _of_module(module: nn.Module, seen: Seen) -> Iterator[bytes]:
    yield from _content((type(module), module.training), seen)
    for name, value in (*module._parameters.items(), *module._buffers.items()):
        if value is None or id(value) in seen:  # a tied one counts by where it was met first
            yield f"{name} {value if value is None else seen[id(value)][0]}".encode()
            continue
        seen[id(value)] = len(seen), value
        yield f"{name} {value.requires_grad}".encode()
        yield from _tensor(value)
    held = vars(module)
    hooks = {name: tuple(found.values()) for name, found in held.items() if name in HOOKS}
    extra = {name: value for name, value in held.items() if name not in BOOKKEEPING}
    if _inside(type(module)):
        extra = {name: value for name, value in extra.items() if not name.startswith("_")}
    yield from _content((module._modules, hooks, extra), seen)


def _own_classes(kind: type) -> list[type]:
    """A class and those that it inherits from, but for those of torch and of Python."""
    standard = ("builtins", "abc", "typing", "torch", "enum")
    return [one for one in kind.__mro__ if one.__module__.split(".")[0] not in standard]


def _inside(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).split(".")[0] in ("torch", PACKAGE)


def _source_of(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        code = getattr(value, "__code__", None)
        return "" if code is None else f"{code.co_code!r} {code.co_consts!r}"


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"
