"""One process on one run directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from metalearn.errors import ConfigError

NAME = ".lock"


class Busy(ConfigError):
    """Another process is at work on a run directory."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run directory for this process; ConfigError while another one does. Nothing stays behind but the run."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    handle = _locked(path)
    with handle:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made and not any(folder.iterdir()):
                folder.rmdir()


def _locked(path: Path) -> IO[str]:
    """The lock file, locked; again where another process has taken its name away between opening and locking it."""
    while True:
        handle = path.open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(handle.fileno())):
                return handle
        except OSError as error:
            handle.close()
            if isinstance(error, FileNotFoundError):
                continue
            text = "another process is at work on this run: wait for it, or give another --out"
            raise Busy((str(path.parent), text)) from None
        handle.close()
