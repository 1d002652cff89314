"""Progress: a bar in a terminal, plain lines elsewhere; always with rate and time left."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from metalearn.logger import log

EVERY = 15.0  # seconds between plain lines


class Progress:
    """A counter of `total` units of work."""

    def __init__(self, title: str, total: int, done: int = 0, *, show: bool = True) -> None:
        self._title, self._total, self._first, self._done = title, total, done, done
        self._begin = self._logged = time.monotonic()
        self._bar: Bar | None = None
        if show and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            from rich.console import Console

            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def at(self, done: int, note: str = "") -> None:
        """Show that `done` units are done."""
        self._done = done
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._begin, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=done, note=f"{rate:.1f}/s {note}")
        elif now - self._logged >= EVERY:
            self._logged = now
            left = (self._total - done) / rate if rate else float("inf")
            log.info(
                f"{self._title}: {done}/{self._total}, {rate:.1f}/s, {_clock(left)} "
                f"left{'; ' + note if note else ''}"
            )


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
