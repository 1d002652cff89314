"""Leases of trials: one file a trial, touched while its worker lives; an abandoned one is free.

On one machine a dead process is recognized at once. Of a process on another machine only the time
of its last touch is known, compared with a file just written, so that only the file server's clock
counts."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from metalearn.errors import ConfigError
from metalearn.storage.files import read_json, write_json

HEARTBEAT = 10.0  # seconds between two touches
EXPIRY = 90.0  # seconds without a touch, of a process on another machine
NOBODY = 0


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Context manager for one process at a time of all that share the file.

    A killed process releases it."""
    lock = FileLock(path, poll_interval=0.01, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        text = f"this file system has no locks ({error.strerror}): choose another --out"
        raise ConfigError((str(path), text)) from error
    try:
        yield
    finally:
        lock.release()


@lru_cache(maxsize=1)
def _machine() -> str:
    """This machine: its name, its boot, and the namespace that its process numbers belong to."""
    parts = [socket.gethostname()]
    for place in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            namespace = place.endswith("pid")
            parts.append(os.readlink(place) if namespace else Path(place).read_text().strip())
        except OSError:
            parts.append("")
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Start time of a process of this machine, as numbers are reused; None where it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if fields[0] == "Z" else fields[19]


class Leases:
    """The leases of one process in a sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._owner = folder, uuid.uuid4().hex

    def path(self, number: int) -> Path:
        return self._folder / f"{number}.json"

    def _read(self, number: int) -> dict[str, Any] | None:
        """The lease of a trial; None where there is none, or a crash damaged it."""
        try:
            lease = dict(read_json(self.path(number)))
            _ = lease["machine"], int(lease["pid"]), lease["began"], lease["own"]
            return {**lease, "times": int(lease["times"])}
        except (ConfigError, KeyError, TypeError, ValueError):
            return None

    def is_free(self, number: int) -> bool:
        """Whether no living process runs a trial. Call it and `take` under the sweep's lock."""
        lease = self._read(number)
        if lease is None or lease["pid"] == NOBODY:
            return True
        if lease["machine"] == _machine():
            return bool(_started(int(lease["pid"])) != lease["began"])
        now = self._folder / f".now.{self._owner}"
        now.touch()
        try:
            return now.stat().st_mtime - self.path(number).stat().st_mtime > EXPIRY
        finally:
            now.unlink()

    def take(self, number: int) -> int:
        """Take the lease of a trial; returns how often it had been taken before."""
        lease, pid = self._read(number), os.getpid()
        before = 0 if lease is None else int(lease["times"])
        mine = {"machine": _machine(), "pid": pid, "began": _started(pid)}
        write_json(self.path(number), {**mine, "own": self._owner, "times": before + 1})
        return before

    def is_mine(self, number: int) -> bool:
        """Whether this process still has the lease: one that slept too long has lost it."""
        lease = self._read(number)
        return lease is not None and lease["own"] == self._owner

    def end(self, number: int) -> None:
        """Remove the lease of a finished trial."""
        self.path(number).unlink(missing_ok=True)

    def give_back(self, number: int) -> None:
        """Leave an unfinished trial to the next worker; it does not count as a death."""
        lease = self._read(number)
        if lease is not None and lease["own"] == self._owner:
            given = {**lease, "pid": NOBODY, "own": "", "times": lease["times"] - 1}
            write_json(self.path(number), given)

    @contextmanager
    def heartbeat(self, number: int) -> Iterator[None]:
        """Touch the lease every few seconds while the block runs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT):
                with suppress(OSError):  # the file server may answer next time
                    if self.is_mine(number):
                        os.utime(self.path(number))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
