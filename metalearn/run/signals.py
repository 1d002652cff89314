"""What SIGTERM and SIGUSR1 do: the first one saves and stops, the second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metalearn.distributed.ranks import ALONE, STOPS, Ranks
from metalearn.distributed.world import PASSED_ON
from metalearn.errors import Stopped
from metalearn.logger import log

_RECEIVED: list[int] = []  # signals that this process received


@contextmanager
def signals(handler: Callable[[], None], ranks: Ranks = ALONE) -> Iterator[None]:
    """Call `handler` on SIGTERM and SIGUSR1 inside the block.

    Only the main thread can handle signals, and only rank 0 does: other ranks forward them to it.
    PASSED_ON is the launcher's copy of a signal that this process may have received as well: both
    together count once."""
    if threading.current_thread() is not threading.main_thread() or not ranks.is_first:
        yield
        return

    def on_signal(number: int, _: Any) -> None:
        before = _count()
        _RECEIVED.append(number)
        if _count() > before:
            handler()

    previous = {number: signal.signal(number, on_signal) for number in (*STOPS, PASSED_ON)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
        if _RECEIVED and previous[PASSED_ON] is not signal.SIG_DFL:
            # a member of a group that is ending: the launcher's signal may come after its own
            signal.signal(PASSED_ON, signal.SIG_IGN)


def _count() -> int:
    passed_on = _RECEIVED.count(PASSED_ON)
    return max(passed_on, len(_RECEIVED) - passed_on)


@contextmanager
def finishing_step(ranks: Ranks) -> Iterator[None]:
    """Context manager: a first signal sets `ranks.signalled`, a second one ends the process."""

    def on_signal() -> None:
        if ranks.signalled:
            raise SystemExit(75)
        ranks.signalled = True
        log.info("signal: finishing this step and saving; a second signal stops immediately")

    with signals(on_signal, ranks):
        try:
            yield
        finally:
            if ranks.is_first:
                ranks.signalled = False


def stop(folder: Path, where: str = "") -> None:
    """Raise Stopped with the command that continues the run."""
    raise Stopped(f"stopped by a signal{where}; continue with: metalearn resume {folder}")
