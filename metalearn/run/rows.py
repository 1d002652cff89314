"""The rows of a comparison, shared by all processes that work on the same folder: who is free takes the next one.

Nothing but the run directories and their locks is between them, so one may join, be killed, and come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from metalearn.run.config import Experiment
from metalearn.run.lock import Busy
from metalearn.run.loop import Say

PAUSE = 1.0  # seconds between two looks at what others have in hand
Row = tuple[Experiment, Path]  # one method and seed, and its run directory


def share(rows: Sequence[Row], run: Callable[[Experiment, Path], None], say: Say, pause: float = PAUSE) -> None:
    """`run` every row in order, once what it needs is made; a row that another process has in hand is seen again later.

    Returns when all rows were run here or there.
    """
    waiting = {folder: experiment for experiment, folder in rows}
    told: set[Path] = set()
    while waiting:
        left = len(waiting)
        for folder, experiment in list(waiting.items()):
            if any(needed in waiting for needed in needs(experiment, folder, rows)):
                continue
            try:
                run(experiment, folder)
            except Busy as busy:
                if folder not in {Path(place) for place, _ in busy.problems}:
                    raise
                if folder not in told:
                    say(f"{experiment.label} seed {experiment.run.seeds[0]}: in the hands of another process")
                told.add(folder)
                continue
            del waiting[folder]
        if len(waiting) == left:
            time.sleep(pause)


def needs(experiment: Experiment, folder: Path, rows: Sequence[Row]) -> list[Path]:
    """The run directories that are to be finished before this one begins: its start, and the seed that tunes for it."""
    found = []
    if experiment.start:
        found.append(folder.parent.parent / experiment.start / folder.name)
    if experiment.budget.once:
        first = next(other for _, other in rows if other.parent == folder.parent)
        found.append(first)
    return [other for other in found if other != folder]
