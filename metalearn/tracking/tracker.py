"""The sinks of one run: none can stop it or hold it up for longer than LIMIT in all, each fails
with one warning.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from metalearn.logger import log
from metalearn.storage.checkpoint import steps_in
from metalearn.storage.files import read_json
from metalearn.tracking import SINKS
from metalearn.tracking.sink import Json, Sink, SinkOptions, Watched

LIMIT = 10.0  # seconds in all that a sink may hold up a run, and once more at its end
WAITING = 10_000  # orders that a slow sink may have before it

Order = Callable[[], Any]


class _Guarded:
    """One sink in a thread of its own. Once it has held up the run for LIMIT it works behind it, in
    its own time.
    """

    def __init__(self, name: str, build: Callable[[], Sink | None]) -> None:
        self._name, self._build, self._patience = name, build, LIMIT
        self._orders: queue.Queue[tuple[Order | None, threading.Event]] = queue.Queue(WAITING)
        self._sink: Sink | None = None
        self._error: BaseException | None = None
        self._over = False
        threading.Thread(target=self._work, daemon=True, name=f"sink {name}").start()
        self._do(self._open)

    def _open(self) -> None:
        self._sink = self._build()
        self._over = self._sink is None  # switched off

    def _work(self) -> None:
        order: Order | None = self._open
        while order is not None:
            order, done = self._orders.get()
            try:
                if order is not None and not self._over:
                    order()
            except (
                BaseException
            ) as error:  # whatever a sink raises, SystemExit too, is told and not followed
                self._error, self._over = error, True
            done.set()

    def tell(self, act: Callable[[Sink], None]) -> None:
        def order() -> None:
            assert self._sink is not None
            act(self._sink)

        if not self._over:
            self._do(order)

    def _do(self, order: Order) -> None:
        done, begin = threading.Event(), time.monotonic()
        try:
            self._orders.put_nowait((order, done))
        except queue.Full:
            self._error, self._over = TimeoutError(f"{WAITING} messages behind"), True
            done.set()
        done.wait(self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - begin))
        self._warn()

    def close(self) -> None:
        """The end: what a slow sink still has before it gets LIMIT seconds more."""
        if self._over:
            return self._end()
        self._patience = LIMIT
        finished = threading.Event()

        def last() -> None:
            assert self._sink is not None
            self._sink.close()
            finished.set()

        self._do(last)
        if not finished.is_set() and self._error is None:
            self._error = TimeoutError(f"not finished within {LIMIT:.0f} s")
        self._end()

    def _end(self) -> None:
        self._over = True
        with suppress(queue.Full):
            self._orders.put_nowait((None, threading.Event()))
        self._warn()

    def _warn(self) -> None:
        """One warning a sink."""
        if self._error is not None and self._name:
            why = " ".join(str(self._error).split()) or type(self._error).__name__
            log.warning(f"{self._name}: {why}; going on without it, metrics.jsonl has everything")
            self._name = ""


class Tracker:
    """What a run tells its sinks."""

    def __init__(self, watched: Watched, options: Any) -> None:
        first = os.environ.get("RANK", "0") == "0"  # of several processes one tells
        wanted: dict[str, SinkOptions] = (
            {name: getattr(options, name) for name in SINKS} if first else {}
        )
        self._sinks = [
            _Guarded(name, partial(made.build, watched)) for name, made in wanted.items()
        ]

    def rows(self, rows: Sequence[Json]) -> None:
        for one in self._sinks:
            one.tell(lambda sink: sink.rows(rows))

    def result(self, result: Json) -> Json:
        for one in self._sinks:
            one.tell(lambda sink: sink.result(result))
        return result

    def page(self, folder: Path, page: Path) -> None:
        for one in self._sinks:
            one.tell(lambda sink: sink.page(folder, page))

    def close(self) -> None:
        for one in self._sinks:
            one.close()


@contextmanager
def tracked(
    folder: Path, experiment: Any, figures: Callable[[Path], dict[str, Any]]
) -> Iterator[Tracker]:
    """The sinks of a run directory, open for the block."""
    step = max(steps_in(folder / "checkpoints"), default=0)
    facts = folder / "environment.json"
    known = dict(read_json(facts)) if facts.exists() else {}
    title = f"{experiment.label} seed {experiment.run.seeds[0]}"
    title = f"trial {folder.name}" if folder.parent.name == "trials" else title
    watched = Watched(folder, title, experiment.resolved(), known, step, figures=figures)
    tracker = Tracker(watched, experiment.run.track)
    try:
        yield tracker
    finally:
        tracker.close()


def group_of(name: str, folder: Path) -> str:
    """The group of all runs of one comparison or sweep: the same whenever it goes on."""
    return f"{name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]}"


def grouped(experiment: Any, group: str, **more: Any) -> Any:
    """The experiment, its runs shown together unless it names a group of its own."""
    track = experiment.run.track
    wandb = track.wandb.model_copy(update={"group": track.wandb.group or group, **more})
    return experiment.replace(
        run=experiment.run.model_copy(update={"track": track.model_copy(update={"wandb": wandb})})
    )


def tell_page(experiment: Any, name: str, folder: Path, page: Path) -> None:
    """The report of a comparison or a sweep, as a run of its own in their group."""
    track = grouped(experiment, group_of(name, folder)).run.track
    tracker = Tracker(
        Watched(folder, f"{name} report", {"experiment": name}, {}, 0, "report"), track
    )
    tracker.page(folder, page)
    tracker.close()
