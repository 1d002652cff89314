"""A line in the terminal for every validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metalearn.component import option
from metalearn.logger import log
from metalearn.tracking.sink import Json, Sink, SinkOptions, TrackedRun, scalars


class Terminal(SinkOptions):
    """Prints one line per validation.

    >>> track = {"terminal": {"on": False}}
    >>> task = ml.tasks.Sinusoid()
    >>> experiment = ml.experiment(ml.algorithms.MAML(), task=task, run={"track": track})
    >>> experiment.run.track.terminal.on
    False
    """

    on: bool = option(True, "Print one line per validation.")

    def build(self, run: TrackedRun) -> Sink | None:
        return _Lines(run) if self.on else None


class _Lines:
    def __init__(self, run: TrackedRun) -> None:
        self._tracked = run

    def rows(self, rows: Sequence[Json]) -> None:
        validations = [row for row in rows if row.get("kind") == "valid"]
        if validations:
            scores = {
                name: value
                for row in validations
                for name, value in scalars(row).items()
                if not name.endswith("_ci95")
            }
            values = ", ".join(
                f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items()
            )
            log.info(f"{self._tracked.title} step {validations[-1]['step']}: {values}")

    def result(self, result: Json) -> None:
        pass  # the command prints it

    def page(self, folder: Path, page: Path) -> None:
        pass

    def close(self) -> None:
        pass
