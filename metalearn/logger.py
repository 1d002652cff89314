"""The logger of this package, and how the command line shows its messages.

Every module logs through `logging.getLogger("metalearn")`. As a library it stays silent below
warnings, as Python's logging does by default; the command line shows everything on standard error.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger("metalearn")
_PREFIXES: ContextVar[tuple[str, ...]] = ContextVar("prefixes", default=())


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning once per process, as parts of a run are built for every split."""
    log.warning(text)


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Context manager that puts `prefix: ` before every message, such as a trial's number."""
    token = _PREFIXES.set((*_PREFIXES.get(), prefix))
    try:
        yield
    finally:
        _PREFIXES.reset(token)


class MessageFormatter(logging.Formatter):
    """`warning: rank 1: text`: the level if it is above INFO, prefixes, the text."""

    def format(self, record: logging.LogRecord) -> str:
        level = [] if record.levelno <= logging.INFO else [record.levelname.lower()]
        return ": ".join((*level, *_PREFIXES.get(), record.getMessage()))


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at the time of the message."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def show_messages() -> None:
    """Show all messages on standard error; a second call changes nothing."""
    if not any(isinstance(handler, _StandardError) for handler in log.handlers):
        handler = _StandardError()
        handler.setFormatter(MessageFormatter())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
