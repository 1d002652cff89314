"""One process on one run directory."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metalearn.errors import ConfigError

NAME = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run directory for this process; ConfigError while another one does. Nothing stays behind but the run."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                (str(folder), "another process is at work on this run: wait for it, or give another --out")
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made and not any(folder.iterdir()):
                folder.rmdir()
