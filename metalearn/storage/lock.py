"""Lock a run directory for one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from metalearn.errors import ConfigError

NAME = ".lock"
TIMEOUT = 0.2  # seconds: long enough to retry if the holder has just removed the file


class Busy(ConfigError):
    """Another process is working on a run directory."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Context manager that locks a run directory; the lock file is removed at the end.

    Raises Busy while another process has the lock, OSError if the file system has no locks."""
    is_new = not folder.exists()
    lock = _acquire(folder)
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        lock.release()
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            with suppress(OSError):  # another process has started there
                folder.rmdir()


def _acquire(folder: Path) -> FileLock:
    """Acquire the lock of a folder; create the folder again if its last holder removed it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / NAME, fallback_to_soft=False)
        try:
            lock.acquire(timeout=TIMEOUT, poll_interval=TIMEOUT / 10)
            return lock
        except FileNotFoundError:
            continue
        except Timeout:
            text = "another process is working on this run: wait for it, or choose another --out"
            raise Busy((str(folder), text)) from None
