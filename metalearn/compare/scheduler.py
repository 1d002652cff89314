"""Distribute the rows of a comparison over all processes that work on the same folder.

A free process takes the next row. The processes share only the run directories and their locks, so
one may join, be killed, and start again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from metalearn.config.experiment import Experiment
from metalearn.distributed.ranks import ALONE, Ranks
from metalearn.errors import Stopped
from metalearn.logger import log
from metalearn.run.signals import signals
from metalearn.run.tuning.choice import has_tuning
from metalearn.run.warm_start import start_candidates
from metalearn.storage.lock import Busy, lock_folder

PAUSE = 1.0  # seconds before a row that another process runs is tried again
Row = tuple[Experiment, Path]  # one method and seed, and its run directory


def run_rows(
    rows: Sequence[Row],
    run: Callable[[Experiment, Path], None],
    pause: float = PAUSE,
    ranks: Ranks = ALONE,
) -> None:
    """Call `run` for every row in order, once the rows that it needs are finished.

    A row that another process runs is tried again later. Returns when all rows were run, here or
    elsewhere. Rows with circular dependencies are started anyway: `run` raises an error, because
    the run that they start from is missing."""
    waiting = {folder: experiment for experiment, folder in rows}
    reported_busy: set[Path] = set()
    with signals(_raise_stopped, ranks):  # a row that is running has its own handler
        while waiting:
            runnable = ranks.on_rank0(partial(_runnable, waiting, rows))
            for folder in runnable or [next(iter(waiting))]:
                if _run(waiting[folder], folder, run, quiet=folder in reported_busy):
                    del waiting[folder]
                    break  # a row that can run now may come before the others
                reported_busy.add(folder)
            else:
                time.sleep(pause)


def _runnable(waiting: dict[Path, Experiment], rows: Sequence[Row]) -> list[Path]:
    """Return the rows for which all that they need is finished."""
    return [
        one
        for one in waiting
        if not any(other in waiting for other in needs(waiting[one], one, rows))
    ]


def _run(
    experiment: Experiment, folder: Path, run: Callable[[Experiment, Path], None], *, quiet: bool
) -> bool:
    """Run a row; return False while another process runs it, which is logged unless `quiet`."""
    try:
        run(experiment, folder)
    except Busy as busy:
        if folder not in {Path(place) for place, _ in busy.problems}:
            raise
        if not quiet:
            log.info(
                f"{experiment.label} seed {experiment.run.seeds[0]}: another process is running it"
            )
        return False
    return True


def needs(experiment: Experiment, folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Return the run directories that this one needs first.

    They are its start, and those of seeds that may tune for it."""
    folders: list[Path] = []
    if experiment.start:
        places = {
            place.resolve()
            for place in start_candidates(experiment.start, folder, experiment.run.seeds[0])
        }
        folders += [other for _, other in rows if other.resolve() in places]
    if experiment.budget.once and has_tuning(experiment):
        own = [other for _, other in rows if other.parent == folder.parent]
        earlier = own[: own.index(folder)]
        folders += [] if any((other / "result.json").exists() for other in earlier) else earlier
    return [other for other in folders if other != folder]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Context manager that holds a folder, once no other process does."""
    while True:
        try:
            with lock_folder(folder):
                yield
            return
        except Busy as busy:
            if folder not in {Path(place) for place, _ in busy.problems}:
                raise
        with signals(_raise_stopped):
            time.sleep(PAUSE)


def _raise_stopped() -> None:
    raise Stopped("stopped by a signal between two runs; repeat the command to continue")
