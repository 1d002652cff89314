"""The sinks of one run.

Each may delay it by at most LIMIT, and as much again at its end; one that fails is dropped with one
warning."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metalearn.logger import log
from metalearn.storage.checkpoint import steps_in
from metalearn.storage.files import read_json
from metalearn.tracking import SINKS
from metalearn.tracking.settings import sink_options
from metalearn.tracking.sink import Json, Sink, SinkOptions, TrackedRun

LIMIT = 10.0  # total seconds that a sink may delay a run, and once more at its end
QUEUE = 10_000  # calls that may wait for a slow sink

Call = Callable[[], Any]


class _SinkThread:
    """One sink in a daemon thread. After a total delay of LIMIT, the run no longer waits for it."""

    def __init__(self, name: str, options: SinkOptions, run: TrackedRun) -> None:
        self._name, self._remaining = name, LIMIT
        self._sink: Sink | None = None
        self._error: BaseException | None = None
        self._is_closed = False
        self._calls: queue.Queue[tuple[Call, threading.Event] | None] = queue.Queue(QUEUE)
        threading.Thread(target=self._work, daemon=True, name=f"sink {name}").start()
        self._do(lambda: self._open(options, run))

    def _open(self, options: SinkOptions, run: TrackedRun) -> None:
        self._sink = options.build(run)
        self._is_closed = self._sink is None  # switched off

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, done = item
            try:
                if not self._is_closed:
                    call()
            except BaseException as error:  # SystemExit also ends the sink and not the run
                self._error, self._is_closed = error, True
            done.set()

    def call(self, function: Callable[[Any], None]) -> None:
        if not self._is_closed:
            self._do(lambda: function(self._sink))

    def _do(self, call: Call) -> bool:
        """Wait for a call for the remaining time; return whether it has ended."""
        done, started_at = threading.Event(), time.monotonic()
        try:
            self._calls.put_nowait((call, done))
            done.wait(self._remaining)
        except queue.Full:
            self._error, self._is_closed = TimeoutError(f"{QUEUE} calls behind"), True
        self._remaining = max(0.0, self._remaining - (time.monotonic() - started_at))
        self._warn()
        return done.is_set()

    def close(self) -> None:
        """Wait at most LIMIT more seconds for the calls that a slow sink has not done."""
        self._remaining = LIMIT
        if not self._is_closed and self._sink and not self._do(self._sink.close):
            self._error = self._error or TimeoutError(f"not finished within {LIMIT:.0f} s")
            self._warn()
        self._is_closed = True
        with suppress(queue.Full):
            self._calls.put_nowait(None)

    def _warn(self) -> None:
        """Log one warning per sink."""
        if self._error is not None and self._name:
            why = " ".join(str(self._error).split()) or type(self._error).__name__
            log.warning(f"{self._name}: {why}; continuing without it, metrics.jsonl is complete")
            self._name = ""


class Tracker:
    """All sinks of one run."""

    def __init__(self, run: TrackedRun, options: Any) -> None:
        first = os.environ.get("RANK", "0") == "0"  # of several processes one logs
        self._sinks = [
            _SinkThread(name, sink_options(options, name), run) for name in SINKS if first
        ]

    def rows(self, rows: Sequence[Json]) -> None:
        for thread in self._sinks:
            thread.call(lambda sink: sink.rows(rows))

    def result(self, result: Json) -> Json:
        for thread in self._sinks:
            thread.call(lambda sink: sink.result(result))
        return result

    def page(self, folder: Path, page: Path) -> None:
        for thread in self._sinks:
            thread.call(lambda sink: sink.page(folder, page))

    def close(self) -> None:
        for thread in self._sinks:
            thread.close()


@contextmanager
def open_tracker(
    folder: Path, experiment: Any, figures: Callable[[Path], dict[str, Any]]
) -> Iterator[Tracker]:
    """Context manager that opens the sinks of a run directory."""
    step = max(steps_in(folder / "checkpoints"), default=0)
    facts_file = folder / "environment.json"
    facts = dict(read_json(facts_file)) if facts_file.exists() else {}
    title = f"{experiment.label} seed {experiment.run.seeds[0]}"
    title = f"trial {folder.name}" if folder.parent.name == "trials" else title
    run = TrackedRun(folder, title, experiment.resolved(), facts, step, figures=figures)
    tracker = Tracker(run, experiment.run.track)
    try:
        yield tracker
    finally:
        tracker.close()


def group_name(name: str, folder: Path) -> str:
    """Return the group of all runs of one comparison or sweep; a resumed one has the same."""
    return f"{name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]}"


def with_wandb_group(experiment: Any, group: str, **more: Any) -> Any:
    """Return the experiment with its runs in `group`, unless it has its own group."""
    track = experiment.run.track
    wandb = track.wandb.model_copy(update={"group": track.wandb.group or group, **more})
    return experiment.replace(
        run=experiment.run.model_copy(update={"track": track.model_copy(update={"wandb": wandb})})
    )


def log_page(experiment: Any, name: str, folder: Path, page: Path) -> None:
    """Log the report of a comparison or a sweep as a separate run in its group."""
    track = with_wandb_group(experiment, group_name(name, folder)).run.track
    tracker = Tracker(
        TrackedRun(folder, f"{name} report", {"experiment": name}, {}, 0, "report"), track
    )
    tracker.page(folder, page)
    tracker.close()
