"""How a function of many new tasks is called: as it is, or as an executor captures it.

`Method.learn` calls the same two functions, adapt and predict, for every batch of test episodes. An
executor above opens the scope `called_by(caller)`, within which they run as
caller(function, key, *args); `key` names the function among those made of one owner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Caller = Callable[..., Any]  # (function, owner, key, *args) -> function(*args)


class _Callers(threading.local):
    def __init__(self) -> None:
        self.open: list[Caller] = []


_callers = _Callers()


@contextmanager
def called_by(caller: Caller) -> Iterator[None]:
    """A context in which functions of many tasks are called by `caller`."""
    _callers.open.append(caller)
    try:
        yield
    finally:
        _callers.open.pop()


def call(function: Callable[..., Any], owner: Any, key: Any, *args: Any) -> Any:
    """function(*args), by the innermost caller; `owner` outlives the call and never changes."""
    if not _callers.open:
        return function(*args)
    return _callers.open[-1](function, owner, key, *args)
