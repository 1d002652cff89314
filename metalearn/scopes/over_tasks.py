"""How a function of many new tasks is called: as it is, or as an executor captures it.

`Method.learn` calls the same two functions, adapt and predict, for every batch of test episodes. An
executor above opens the scope `called_by(caller)`, within which they run as
caller(function, key, *args); `key` names the function among those made of one owner."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from metalearn.scopes.stack import Stack

Caller = Callable[..., Any]  # (function, owner, key, *args) -> function(*args)


def _as_it_is(function: Callable[..., Any], owner: Any, key: Any, *args: Any) -> Any:
    return function(*args)


_callers: Stack[Caller] = Stack(_as_it_is)


def called_by(caller: Caller) -> AbstractContextManager[None]:
    """A context in which functions of many tasks are called by `caller`."""
    return _callers.holding(caller)


def call(function: Callable[..., Any], owner: Any, key: Any, *args: Any) -> Any:
    """function(*args), by the innermost caller; `owner` outlives the call and never changes."""
    return _callers.innermost(function, owner, key, *args)
