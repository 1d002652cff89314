"""One process on one run directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from metalearn.errors import ConfigError

NAME = ".lock"


class Busy(ConfigError):
    """Another process is at work on a run directory."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run directory for this process; Busy while another one does. Nothing stays behind but
    the run.

    OSError where the file system knows no locks.
    """
    made = not folder.exists()
    path = folder / NAME
    with _locked(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made and not any(folder.iterdir()):
                with suppress(OSError):  # another process has begun there
                    folder.rmdir()


def _locked(path: Path) -> IO[str]:
    """The lock file, locked; again where another process has taken its name away between making and
    locking it.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            handle = path.open("a")
            if _is_ours(handle, path):
                return handle
            handle.close()


def _is_ours(handle: IO[str], path: Path) -> bool:
    """Whether the open file could be locked, and still has its name."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        if not isinstance(error, BlockingIOError):
            raise
        text = "another process is at work on this run: wait for it, or give another --out"
        raise Busy((str(path.parent), text)) from None
    return path.exists() and os.path.samestat(path.stat(), os.fstat(handle.fileno()))
