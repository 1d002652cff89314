"""Lock a run directory for one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from metalearn.errors import ConfigError

NAME = ".lock"
PATIENCE = 0.2  # seconds: long enough to try again where the holder has just removed the file


class Busy(ConfigError):
    """Another process is at work on a run directory."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run directory for this process; Busy while another one does. Only the run remains.

    OSError where the file system has no locks."""
    made = not folder.exists()
    lock = _locked(folder)
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)
        lock.release()
        if made and folder.is_dir() and not any(folder.iterdir()):
            with suppress(OSError):  # another process has begun there
                folder.rmdir()


def _locked(folder: Path) -> FileLock:
    """The lock of a folder, acquired; the folder is made again where its last holder removed it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / NAME, fallback_to_soft=False)
        try:
            lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 10)
            return lock
        except FileNotFoundError:
            continue
        except Timeout:
            text = "another process is working on this run: wait for it, or choose another --out"
            raise Busy((str(folder), text)) from None
