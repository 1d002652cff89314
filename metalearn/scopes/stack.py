"""The values of nested contexts, for each thread its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Stack(threading.local, Generic[T]):
    """The value of the innermost open context, or that outside of all."""

    def __init__(self, outside: T) -> None:
        self._values = [outside]

    @property
    def innermost(self) -> T:
        return self._values[-1]

    @contextmanager
    def holding(self, value: T) -> Iterator[None]:
        """A context in which `value` is the innermost."""
        self._values.append(value)
        try:
            yield
        finally:
            self._values.pop()
