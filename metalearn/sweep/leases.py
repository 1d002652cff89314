"""Leases of trials: one file per trial, touched while its worker lives; an abandoned one is free.

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
def _machine_id() -> str:
    """Return an identifier of this machine: its name, its boot, and its PID namespace."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            namespace = path.endswith("pid")
            parts.append(os.readlink(path) if namespace else Path(path).read_text().strip())
        except OSError:
            parts.append("")
    return " ".join(parts)


def _start_time(pid: int) -> str | None:
    """Return the start time of a process here, as PIDs are reused; None if it has ended."""
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
        """Return the lease of a trial; None if there is none, or a crash damaged it."""
        try:
            lease = dict(read_json(self.path(number)))
            _ = lease["machine"], int(lease["pid"]), lease["began"], lease["own"]
            return {**lease, "times": int(lease["times"])}
        except (ConfigError, KeyError, TypeError, ValueError):
            return None

    def is_free(self, number: int) -> bool:
        """Return whether no living process runs a trial; call it under the lock of `take`."""
        lease = self._read(number)
        if lease is None or lease["pid"] == NOBODY:
            return True
        if lease["machine"] == _machine_id():
            return bool(_start_time(int(lease["pid"])) != lease["began"])
        now = self._folder / f".now.{self._owner}"
        now.touch()
        try:
            return now.stat().st_mtime - self.path(number).stat().st_mtime > EXPIRY
        finally:
            now.unlink()

    def take(self, number: int) -> int:
        """Take the lease of a trial; returns how often it was taken before."""
        lease, pid = self._read(number), os.getpid()
        before = 0 if lease is None else int(lease["times"])
        mine = {"machine": _machine_id(), "pid": pid, "began": _start_time(pid)}
        write_json(self.path(number), {**mine, "own": self._owner, "times": before + 1})
        return before

    def is_mine(self, number: int) -> bool:
        """Return whether this process still has the lease; it loses it if it sleeps too long."""
        lease = self._read(number)
        return lease is not None and lease["own"] == self._owner

    def end(self, number: int) -> None:
        """Remove the lease of a finished trial."""
        self.path(number).unlink(missing_ok=True)

    def give_back(self, number: int) -> None:
        """Leave an unfinished trial to the next worker; it does not count as a death."""
        lease = self._read(number)
        if lease is not None and lease["own"] == self._owner:
            free_lease = {**lease, "pid": NOBODY, "own": "", "times": lease["times"] - 1}
            write_json(self.path(number), free_lease)

    @contextmanager
    def heartbeat(self, number: int) -> Iterator[None]:
        """Touch the lease every few seconds while the block runs."""
        finished = threading.Event()

        def beat() -> None:
            while not finished.wait(HEARTBEAT):
                with suppress(OSError):  # the file server may answer next time
                    if self.is_mine(number):
                        os.utime(self.path(number))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
