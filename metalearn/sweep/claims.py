"""Who is at work on which trial: a file a trial, kept fresh; one that its worker left behind is
free again.

On one machine a dead process is known at once. Of a process on another machine only this is known:
whether it still touches its file. Times are those of the file server, compared with a file just
written, so that no clock matters."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from metalearn.errors import ConfigError
from metalearn.storage.files import read_json, write_json

BEAT = 10.0  # seconds between two signs of life
SILENCE = 90.0  # of a process on another machine; then its trial is free
NOBODY = 0


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """The block runs in one process at a time, of all that share the file; a killed one holds
    nothing.
    """
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            text = (
                f"this file system has no locks ({error.strerror}): put the sweep's --out "
                f"on one that has"
            )
            raise ConfigError((str(path), text)) from error
        yield


@lru_cache(maxsize=1)
def _machine() -> str:
    """This machine as processes see each other: its name, its start, and the space that its process
    numbers are of.
    """
    parts = [socket.gethostname()]
    for place in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(
                os.readlink(place) if place.endswith("pid") else Path(place).read_text().strip()
            )
        except OSError:
            parts.append("")
    return " ".join(parts)


def _began(pid: int) -> str | None:
    """When a process of this machine began, by which a number that was given again is told; None:
    it is gone.
    """
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


class Claims:
    """The claims of one process in a sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._own = folder, uuid.uuid4().hex

    def path(self, number: int) -> Path:
        return self._folder / f"{number}.json"

    def free(self, number: int) -> bool:
        """Whether no living process is at work on a trial. Call it, and `take`, while the sweep is
        locked.
        """
        path = self.path(number)
        if not path.exists():
            return True
        try:
            held = read_json(path)
            machine, pid, began = held["machine"], int(held["pid"]), held["began"]
        except (ConfigError, KeyError, TypeError, ValueError):
            return True  # torn by a crash of the machine
        if pid == NOBODY:
            return True
        if machine == _machine():
            return bool(_began(pid) != began)
        mark = self._folder / f".now.{self._own}"
        mark.touch()
        try:
            return mark.stat().st_mtime - path.stat().st_mtime > SILENCE
        finally:
            mark.unlink()

    def take(self, number: int) -> int:
        """Claim a trial; returns how often it had been claimed before."""
        path = self.path(number)
        try:
            before = int(read_json(path)["times"]) if path.exists() else 0
        except (ConfigError, KeyError, TypeError, ValueError):
            before = 0
        pid = os.getpid()
        who = {
            "machine": _machine(),
            "pid": pid,
            "began": _began(pid),
            "own": self._own,
            "times": before + 1,
        }
        write_json(path, who)
        return before

    def mine(self, number: int) -> bool:
        """Whether this process still has the trial: one that slept too long has lost it."""
        try:
            return bool(read_json(self.path(number))["own"] == self._own)
        except (ConfigError, KeyError, TypeError):
            return False

    def drop(self, number: int, *, finished: bool) -> None:
        """Give a trial back: to whoever comes next, or, finished, to nobody."""
        if finished:
            self.path(number).unlink(missing_ok=True)
        elif self.mine(number):
            held = read_json(self.path(number))
            write_json(
                self.path(number), {**held, "pid": NOBODY, "own": "", "times": held["times"] - 1}
            )

    @contextmanager
    def beating(self, number: int) -> Iterator[None]:
        """Touch the claim every few seconds while the block runs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                with suppress(
                    OSError
                ):  # a file server that does not answer now may answer next time
                    if self.mine(number):
                        os.utime(self.path(number))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
