"""Launch one command in several processes and supervise them; does not import torch.

`--devices N` forks N copies of the command. Under torchrun they exist already, one in each
process. The launcher forwards signals, ends the run when one of them dies, and returns rank 0's
exit code."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metalearn.distributed.world import LOST, PASSED_ON, STORE, World, world
from metalearn.errors import ConfigError, RankLost, exit_codes
from metalearn.logger import log

MOST = 512  # processes that a run directory may request by itself
GRACE = 120.0  # seconds that the processes have to end after one of them has
POLL_INTERVAL = 0.02  # seconds between two checks of the processes
GO_ON = "metalearn resume continues from its newest checkpoint"
Work = Callable[[Any], None]  # of each process, called with its Ranks (None: a single process)


def recorded_devices(folder: Path) -> int | None:
    """Return how many processes began an unfinished run, if more than one; else None.

    The same number continues it, so that the result is bitwise equal to an uninterrupted run."""
    try:
        facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        devices = facts.get("devices", 1)
    except (OSError, ValueError, AttributeError):
        return None  # the command itself says what is wrong with the folder
    finished = (folder / "result.json").exists()
    if type(devices) is int and devices > MOST:  # a file must not start arbitrarily many
        text = f"records {devices} processes for this run, more than {MOST}: set --devices N"
        raise ConfigError((str(folder / "environment.json"), text))
    several = type(devices) is int and devices > 1
    return devices if several and world().size == 1 and not finished else None


def on_devices(devices: int | None, work: Work) -> None:
    """Run `work` in `devices` processes; raises SystemExit when they end.

    Default 1, or under torchrun the existing ones."""
    here = world()
    if here.size > 1:
        if devices not in (None, here.size):
            text = f"{devices}, but the launcher started {here.size} processes"
            raise ConfigError(("--devices", f"{text}: omit --devices"))
        _member(here, work)
    elif devices in (None, 1):
        work(None)
    elif not hasattr(os, "fork"):
        raise ConfigError(
            ("--devices", "this system does not support fork: start the command with torchrun")
        )
    else:
        assert devices is not None
        raise SystemExit(_launch(devices, work))


def _member(here: World, work: Work) -> None:
    """Run one process of the group. All do the same work; only rank 0 prints and logs."""
    if here.rank:
        raise SystemExit(_quietly(here, work))
    try:
        with exit_codes(), _joined(here) as ranks:
            work(ranks)
    except SystemExit as end:
        if isinstance(end.__context__, RankLost):
            _end_at_once(1)
        raise


def _joined(here: World) -> AbstractContextManager[Any]:
    from metalearn.distributed.ranks import joined

    return joined(here)


def _quietly(here: World, work: Work) -> int:
    """Run `work` without output; return the exit code."""
    log.disabled = True
    with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
        try:
            with exit_codes(), _joined(here) as ranks, ranks.listening():
                _until_lost(ranks, work)
                return 0
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1


def _until_lost(ranks: Any, work: Work) -> None:
    """Run `work` until it ends, or end this process if another one is lost."""
    try:
        work(ranks)
    except RankLost as error:
        log.disabled = False
        log.info(f"{error}: shutting down this process too")
        _end_at_once(75 if ranks.stop else LOST)


def _end_at_once(code: int) -> None:
    """Exit without Python's finalization, which would wait for a sum of a lost process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# the launcher


@dataclass
class _Group:
    """The processes of one launch, by their process numbers."""

    ranks: dict[int, int] = field(default_factory=dict)  # process -> rank, of running processes
    # rank -> exit code, of ended processes
    codes: dict[int, int] = field(default_factory=dict)
    signals: int = 0
    lost: bool = False
    killing: bool = False  # deaths from now on are caused by the launcher

    def send(self, number: int, *, only: int | None = None) -> None:
        for process, rank in self.ranks.items():
            if only in (None, rank):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)

    def forward(self, *_: Any) -> None:
        """Forward a signal of the launcher to the ranks.

        The first one asks rank 0 to save and stop, the second kills all ranks."""
        self.signals += 1
        if self.signals > 1:
            self.send(signal.SIGKILL)
        else:
            self.send(PASSED_ON, only=0)

    def reap(self) -> None:
        """Record ended processes; a death of another rank is logged and asks rank 0 to stop."""
        while self.ranks:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            rank, code = self.ranks.pop(process), os.waitstatus_to_exitcode(status)
            self.codes[rank] = code
            # Rank 0 may have noticed, and ended, before the dead one is reaped: then only an exit
            # by signal shows which process died first.
            died = code < 0 or (code == LOST and 0 not in self.codes)
            if rank and died and not self.signals and not self.killing:
                self.lost = True
                log.error(f"rank {rank} {_how(code)}: ending the run; {GO_ON}")
                self.send(PASSED_ON, only=0)

    def wait(self) -> int:
        """Wait until all processes have ended; return the exit code of the launch."""
        deadline = None
        while self.ranks:
            self.reap()
            if self.codes and deadline is None:
                deadline = time.monotonic() + GRACE
            if deadline is not None and time.monotonic() > deadline:
                self.killing = True
                self.send(signal.SIGKILL)
            time.sleep(POLL_INTERVAL)
        exit_code = self.codes[0]
        if self.signals:
            return 0 if exit_code == 0 else 75
        if exit_code < 0:
            log.error(f"rank 0 {_how(exit_code)}; {GO_ON}")
        return 1 if exit_code < 0 or (self.lost and exit_code) else exit_code


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _nothing_to_save(*_: Any) -> None:
    raise SystemExit(75)


def _launch(devices: int, work: Work) -> int:
    """Fork the processes, watch them, and return the exit code of the launch."""
    folder = Path(tempfile.mkdtemp(prefix="metalearn-"))
    group = _Group()
    stop_signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    previous = {number: signal.signal(number, group.forward) for number in stop_signals}
    try:
        for rank in range(devices):
            process = os.fork()
            if process == 0:
                for number, handler in previous.items():
                    signal.signal(number, handler)
                _child(World(rank, devices, rank, devices), folder, work)
            group.ranks[process] = rank
        return group.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        shutil.rmtree(folder, ignore_errors=True)


def _child(here: World, folder: Path, work: Work) -> None:
    """Run a process of the group after the fork; it outlives its launcher only to save."""
    code = LOST if here.rank else 1
    try:
        os.setpgid(0, 0)  # signals of the terminal reach the launcher, which forwards them
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, int(PASSED_ON), 0, 0, 0)  # PR_SET_PDEATHSIG of Linux
        os.environ |= {
            "RANK": str(here.rank),
            "WORLD_SIZE": str(here.size),
            "LOCAL_RANK": str(here.local_rank),
        }
        os.environ |= {"LOCAL_WORLD_SIZE": str(here.local_size), STORE: str(folder / "meeting")}
        if Path("/sys/class/net/lo").exists():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all processes are on this machine
        signal.signal(PASSED_ON, signal.SIG_IGN if here.rank else _nothing_to_save)
        _member(here, work)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else code
    except BaseException:
        traceback.print_exc()
    finally:
        _end_at_once(code)
