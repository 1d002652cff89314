"""Objects that were passed in Python, by a hash of their content.

A config holds the hash; in the process in which the object was passed, the config is complete. The
owner of the `Held` keeps the object, so that no object outlives its last component."""

from __future__ import annotations

import hashlib
import inspect
import itertools
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
    """One object, its hash, and a cache of what was built from it."""

    def __init__(self, value: Any, sha256: str, earlier: str | None = None) -> None:
        self.value, self.sha256 = value, sha256
        self.earlier = earlier  # its hash by earlier versions, if that is another one
        self.made: dict[Any, Any] = {}


# by the order in which the objects were passed
_registry: weakref.WeakValueDictionary[int, Held] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def hold(value: Any, sha256: str, *, earlier: str | None = None, replace: bool = False) -> Held:
    """Store an object under its hash and return its entry; an existing entry is kept.

    Runs of earlier versions find it by `earlier`, the second of its `hashes_of`.

    `replace`: the hash is not of all that matters, and an existing entry may be of an older object,
    such as one whose class was edited in a notebook; its owners keep it."""
    entry = None if replace else held(sha256)
    if entry is None:
        entry = _registry[next(_numbers)] = Held(value, sha256, earlier)
    return entry


def held(sha256: str | None) -> Held | None:
    """Return the newest entry of this hash whose object was passed in this process and is in use.

    None if there is none."""
    if sha256 is None:
        return None
    entries = [entry for _, entry in sorted(_registry.items())]
    by_hash = [entry for entry in entries if entry.sha256 == sha256]
    by_earlier_hash = [entry for entry in entries if entry.earlier == sha256]
    return next(reversed(by_hash or by_earlier_hash), None)


def name_of(value: Any) -> str:
    """Return `package.Class` of a class or function, or of the class of an instance."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def hash_of(value: Any) -> str:
    """Return the SHA-256 of an object: of tensors, modules, functions, and what they contain.

    A module counts by its class, parameters, buffers, submodules, hooks and other attributes;
    classes by their source; functions by their source, defaults, the variables they close over and
    the constants they read; any other object by its class and attributes. Classes and functions of
    torch and of this package count by their names, as in a file: a comment there changes no hash.
    """
    return hashes_of(value)[0]


def hashes_of(value: Any) -> tuple[str, str | None]:
    """Return `hash_of` an object, and the hash by earlier versions, which read the source of this
    package and of functions of torch; None if it is the same."""
    seen = Seen()
    sha256 = _digest(value, seen)
    return sha256, _digest(value, Seen(library_source=True)) if seen.met_library else None


def _digest(value: Any, seen: Seen) -> str:
    digest = hashlib.sha256()
    for part in _content(value, seen):
        digest.update(part)
    return digest.hexdigest()


class Seen(dict[int, tuple[int, Any]]):
    """Objects by id: number and object, so that no other takes its id."""

    def __init__(self, *, library_source: bool = False) -> None:
        super().__init__()
        self.library_source = library_source  # whether source of this package and torch counts
        self.met_library = False  # whether there is any


CONSTANTS = (int, float, complex, str, bytes, tuple, Tensor, np.ndarray)
PLAIN = (*CONSTANTS, list, dict, nn.Module)
BOOKKEEPING = frozenset(vars(nn.Module()))  # attribute names of every module
HOOKS = frozenset(name for name in BOOKKEEPING if name.endswith("_hooks"))


def _content(value: Any, seen: Seen) -> Iterator[bytes]:
    """Yield the parts of an object; a repeated object counts by its first occurrence."""
    if isinstance(value, Tensor):
        yield from _tensor_content(value)
    elif isinstance(value, type):
        yield " ".join((name_of(value), *map(_get_source, _own_classes(value, seen)))).encode()
    elif isinstance(value, tuple):
        for item in value:
            yield from _content(item, seen)
    elif id(value) in seen:
        yield f"object {seen[id(value)][0]}".encode()
    elif _state(value) is None:
        yield (name_of(value) if " at 0x" in repr(value) else repr(value)).encode()
    else:
        seen[id(value)] = len(seen), value
        yield from _composite_content(value, seen)


def _tensor_content(value: Tensor) -> Iterator[bytes]:
    if is_lazy(value):
        yield b"uninitialized"
        return
    array = value.detach().contiguous()
    yield f"{array.dtype} {tuple(array.shape)}".encode()
    if not array.is_meta:
        yield array.cpu().flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b""


def _composite_content(value: Any, seen: Seen) -> Iterator[bytes]:
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key).encode()
            yield from _content(item, seen)
    elif isinstance(value, list):
        yield from _content(tuple(value), seen)
    elif isinstance(value, FunctionType):
        yield f"{name_of(value)} {_function_source(value, seen)}".encode()
        yield from _content(_function_content(value), seen)
    elif isinstance(value, nn.Module):
        yield f"{name_of(value)} {value}".encode()
        yield from _module_content(value, seen)
    else:
        yield name_of(value).encode()
        yield from _content(_state(value), seen)


def _state(value: Any) -> Any:
    """Return what an object contains; None if it contains nothing, such as a number or a text."""
    if isinstance(value, (str, bytes, int, float, complex, np.generic, ModuleType)):
        return None
    if isinstance(value, dict | list | nn.Module | FunctionType):
        return ()  # see _composite_content
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
    attributes = {name: getattr(value, name) for name in names if hasattr(value, name)}
    attributes |= getattr(value, "__dict__", {})
    if _is_library(type(value)):
        attributes = {
            name: attribute
            for name, attribute in attributes.items()
            if isinstance(attribute, PLAIN)
        }
    return (type(value), attributes) if attributes else None


def _function_content(function: FunctionType) -> tuple[Any, ...]:
    """Return defaults, closure, and the constants, functions and classes of its module it reads.

    Functions of torch and of this package may hold caches: only their plain values count."""
    closure = [_cell(cell) for cell in function.__closure__ or ()]
    if _is_library(function):
        return tuple(
            variable if isinstance(variable, PLAIN) else name_of(variable) for variable in closure
        )
    code = function.__code__
    globals_read = {name: function.__globals__.get(name) for name in code.co_names}
    hashed_globals = {
        name: variable
        for name, variable in globals_read.items()
        if isinstance(variable, CONSTANTS)
        or (
            isinstance(variable, type | FunctionType) and variable.__module__ == function.__module__
        )
    }
    constants = [constant for constant in code.co_consts if isinstance(constant, CONSTANTS)]
    # Two lambdas may be on one source line.
    line = (constants, code.co_names) if function.__name__ == "<lambda>" else ()
    return function.__defaults__, function.__kwdefaults__, *closure, hashed_globals, line


def _module_content(module: nn.Module, seen: Seen) -> Iterator[bytes]:
    yield from _content((type(module), module.training), seen)
    for name, value in (*module._parameters.items(), *module._buffers.items()):
        if value is None or id(value) in seen:  # a tied one counts by its first occurrence
            yield f"{name} {value if value is None else seen[id(value)][0]}".encode()
            continue
        seen[id(value)] = len(seen), value
        yield f"{name} {value.requires_grad}".encode()
        yield from _tensor_content(value)
    attributes = vars(module)
    hooks = {
        name: tuple(registered.values()) for name, registered in attributes.items() if name in HOOKS
    }
    extra = {name: value for name, value in attributes.items() if name not in BOOKKEEPING}
    if _is_library(type(module)):
        extra = {name: value for name, value in extra.items() if not name.startswith("_")}
    yield from _content((module._modules, hooks, extra), seen)


def _own_classes(kind: type, seen: Seen) -> list[type]:
    """Return a class and its bases, except those of Python, of torch and of this package."""
    standard = ("builtins", "abc", "typing", "torch", "enum")
    bases = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in standard]
    own = [base for base in bases if not _is_library(base)]
    seen.met_library |= len(own) < len(bases)
    return bases if seen.library_source else own


def _function_source(function: FunctionType, seen: Seen) -> str:
    """Return the source of a function of the user; of a library's lambda, what it calls."""
    if not _is_library(function):
        return _get_source(function)
    seen.met_library = True
    if seen.library_source:
        return _get_source(function)
    code = function.__code__
    constants = [constant for constant in code.co_consts if isinstance(constant, CONSTANTS)]
    return f"{code.co_names} {constants}" if function.__name__ == "<lambda>" else ""


def _is_library(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).split(".")[0] in ("torch", PACKAGE)


def _get_source(value: Any) -> str:
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
