"""A key of what determines the FLOPs of a call: code, what it closes over, and shapes.

No values of tensors enter.

Two functions with the same name differ if they close over something else (another model, another
number of steps), and two closures created by the same code over equal objects are the same. A float
counts as zero or not zero: a rate does not change the arithmetic, and a rate of zero may leave a
term out."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.types import Learner

LONG = 256  # a container with more elements, other than tensors, is a key by its identity alone
# Private attributes of a torch module that count besides its public ones.
MODULE_STATE = ("_parameters", "_buffers", "_modules", "training")


def fingerprint(*things: Any) -> tuple[Any, ...]:
    """Return a hashable key of functions, arguments and their contents.

    Objects of unknown type are their own key."""
    return tuple(_key(thing, {}) for thing in things)


def _key(thing: Any, visited: dict[int, int]) -> Any:
    plain = _plain(thing)
    if plain is not None:
        return plain
    if id(thing) in visited:  # a cycle, or the same object again: by the order in which it was met
        return ("again", visited[id(thing)])
    visited[id(thing)] = len(visited)
    for classes, describe in _KINDS:
        if isinstance(thing, classes):
            return describe(thing, visited)
    attributes = getattr(thing, "__dict__", None)
    if isinstance(attributes, dict) and type(thing).__module__ != "builtins":
        return (_name(type(thing)), _mapping(attributes, visited))
    return _Itself(thing)


def _plain(thing: Any) -> Any:
    """Return the key of an object that contains no others; None if it may."""
    if isinstance(thing, float):
        return ("float", thing != 0)
    if thing is None or isinstance(thing, (bool, int, str, bytes, complex)):
        return (type(thing).__name__, thing)
    if isinstance(thing, (torch.dtype, torch.device, torch.Size)):
        return str(thing)
    if isinstance(thing, Tensor):
        return ("tensor", tuple(thing.shape), str(thing.dtype), thing.device.type)
    if isinstance(thing, (type, types.ModuleType, types.BuiltinFunctionType)):
        return _name(thing)
    return None


def _function(thing: Any, visited: dict[int, int]) -> Any:
    """Return a key of the code with its names and constants, so that two lambdas on one line
    differ, and of all that it closes over."""
    code = thing.__code__
    cells = []
    for cell in thing.__closure__ or ():
        try:
            cells.append(_key(cell.cell_contents, visited))
        except ValueError:  # a name that is not bound yet
            cells.append("unbound")
    defaults = (_key(thing.__defaults__, visited), _key(thing.__kwdefaults__, visited))
    identity = (thing.__module__, thing.__qualname__, code)
    return ("function", *identity, *defaults, tuple(cells))


def _bound(thing: Any, visited: dict[int, int]) -> Any:
    return ("method", _key(thing.__func__, visited), _key(thing.__self__, visited))


def _partial(thing: Any, visited: dict[int, int]) -> Any:
    return ("partial", *(_key(part, visited) for part in (thing.func, thing.args, thing.keywords)))


def _module(thing: Any, visited: dict[int, int]) -> Any:
    """Return a key of a torch module's class, shapes and options; hooks and caches are left out."""
    attributes = {
        name: value
        for name, value in vars(thing).items()
        if not name.startswith("_") or name in MODULE_STATE
    }
    return ("module", _name(type(thing)), _mapping(attributes, visited))


def _mapping(thing: Mapping[Any, Any], visited: dict[int, int]) -> Any:
    if len(thing) > LONG and not _are_tensors(thing.values()):
        return _Itself(thing)
    return (
        "mapping",
        tuple((_key(name, visited), _key(value, visited)) for name, value in thing.items()),
    )


def _sequence(thing: Sequence[Any], visited: dict[int, int]) -> Any:
    if len(thing) > LONG and not _are_tensors(thing):
        return _Itself(thing)
    return (_name(type(thing)), tuple(_key(value, visited) for value in thing))


def _are_tensors(values: Iterable[Any]) -> bool:
    """Return whether all of them are tensors or mappings of tensors, such as parameters."""
    return all(
        isinstance(value, Tensor) or (isinstance(value, Mapping) and _are_tensors(value.values()))
        for value in values
    )


# By their `apply`, which their keys do not hold: for each learner with it, its key.
_learners: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _learner(thing: Learner, visited: dict[int, int]) -> Any:
    """Return the key of a learner, for which its functions are visited only once: they are pure.

    A large module has thousands of parts, and every call of a method that is counted closes over
    it. Fields that are not plain functions may change, such as what a frozen network looks up."""
    if not isinstance(thing.apply, types.FunctionType):
        return _sequence(thing, visited)
    mark = tuple(
        weakref.ref(part) if isinstance(part, types.FunctionType) else _key(part, {})
        for part in thing
    )
    known = _learners.setdefault(thing.apply, {})
    if mark not in known:
        known[mark] = _sequence(thing, {})
    return known[mark]


def _set(thing: Set[Any], visited: dict[int, int]) -> Any:
    return ("set", frozenset(_key(value, visited) for value in thing))


def _cached(thing: Any, visited: dict[int, int]) -> Any:
    """Return a key of the function behind functools.cache, whose cache does not change a cost."""
    return ("cached", _key(inspect.unwrap(thing), visited))


_Describe = Callable[[Any, dict[int, int]], Any]
_KINDS: tuple[tuple[Any, _Describe], ...] = (
    (types.FunctionType, _function),
    (types.MethodType, _bound),
    (functools.partial, _partial),
    (functools._lru_cache_wrapper, _cached),
    (nn.Module, _module),
    (Mapping, _mapping),
    (Learner, _learner),
    ((tuple, list), _sequence),
    ((set, frozenset), _set),
)


def _name(thing: Any) -> str:
    name = getattr(thing, "__qualname__", getattr(thing, "__name__", ""))
    return f"{getattr(thing, '__module__', '')}.{name}"


class _Itself:
    """An object as a key, equal only to itself; the reference to it keeps its id from being
    reused."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.thing is self.thing
