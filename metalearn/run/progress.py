"""Progress: a bar in a terminal or a notebook, plain lines elsewhere; with rate and time left."""

from __future__ import annotations

import html
import importlib
import sys
import time
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from metalearn.logger import log

EVERY = 15.0  # seconds between plain lines
REDRAW_EVERY = 0.2  # seconds between two states of a notebook's bar


class State(NamedTuple):
    """What a display shows."""

    title: str
    done: int
    total: int
    rate: float = 0.0  # units per second
    note: str = ""

    def __str__(self) -> str:
        left = (self.total - self.done) / self.rate if self.rate else float("inf")
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.title}: {self.done}/{self.total}, {self.rate:.1f}/s, {_clock(left)} left{note}"
        )


class Display(Protocol):
    """Where progress is shown."""

    def show(self, state: State) -> None: ...

    def close(self) -> None: ...


class Progress:
    """A counter of `total` units of work."""

    def __init__(self, title: str, total: int, done: int = 0, *, show: bool = True) -> None:
        self._title, self._total, self._first = title, total, done
        self._started_at = time.monotonic()
        self._show = show
        self._display: Display = _Lines()

    def __enter__(self) -> Progress:
        state = State(self._title, self._first, self._total)
        if self._show and sys.stderr.isatty():
            self._display = _TerminalBar(state)
        elif self._show and _in_notebook():
            self._display = _NotebookBar(state)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.close()

    def at(self, done: int, note: str = "") -> None:
        """Show that `done` units are done."""
        rate = (done - self._first) / max(time.monotonic() - self._started_at, 1e-9)
        self._display.show(State(self._title, done, self._total, rate, note))


class _TerminalBar:
    def __init__(self, state: State) -> None:
        from rich.console import Console

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(
            state.title, total=state.total, completed=state.done, note=""
        )
        self._bar.start()

    def show(self, state: State) -> None:
        note = f"{state.rate:.1f}/s {state.note}"
        self._bar.update(self._task, completed=state.done, note=note)

    def close(self) -> None:
        self._bar.stop()


class _NotebookBar:
    """A bar below the running cell, removed at the end."""

    def __init__(self, state: State) -> None:
        display = importlib.import_module("IPython.display").display
        self._handle: Any = display(_Rendered(state), display_id=True)
        self._updated_at = time.monotonic()

    def show(self, state: State) -> None:
        if (now := time.monotonic()) - self._updated_at >= REDRAW_EVERY:
            self._updated_at = now
            self._handle.update(_Rendered(state))

    def close(self) -> None:
        self._handle.update(_Rendered(None))


class _Rendered:
    """A state as a notebook shows it: a bar, or a line without HTML."""

    def __init__(self, state: State | None) -> None:
        self._state = state

    def __repr__(self) -> str:
        return "" if self._state is None else str(self._state)

    def _repr_html_(self) -> str:
        if self._state is None:
            return ""
        bar = f'<progress value="{self._state.done}" max="{self._state.total}"></progress>'
        return f"<div>{bar} {html.escape(str(self._state))}</div>"


class _Lines:
    def __init__(self) -> None:
        self._logged_at = time.monotonic()

    def show(self, state: State) -> None:
        if (now := time.monotonic()) - self._logged_at >= EVERY:
            self._logged_at = now
            log.info(str(state))

    def close(self) -> None:
        pass


def _in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this; a terminal's IPython has none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
