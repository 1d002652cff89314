"""The interface of a sink: it receives the rows of metrics.jsonl and the result, and may fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from metalearn.component import Component

Json = dict[str, Any]


def no_figures(folder: Path) -> dict[str, Any]:
    """Return no figures."""
    return {}


class TrackedRun(NamedTuple):
    """The run that a sink is opened for."""

    folder: Path
    title: str
    config: Json  # as config.yaml has it
    facts: Json  # environment.json: versions, machine, the code's commit
    step: int  # the last step that was logged, of a resumed run
    job: str = "run"  # or report, of a comparison or a sweep
    figures: Callable[[Path], dict[str, Any]] = no_figures  # of a finished run directory, as images


class Sink(Protocol):
    """An open sink of a tracker. If a call raises, the run warns once and drops the sink."""

    def rows(self, rows: Sequence[Json]) -> None:
        """Log lines of metrics.jsonl, each with `kind` and `step`."""

    def result(self, result: Json) -> None:
        """Log result.json; the run directory is complete."""

    def page(self, folder: Path, page: Path) -> None:
        """Log the report of a comparison or a sweep, whose runs were logged separately."""

    def close(self) -> None:
        """Close the sink; this is the last call."""


class SinkOptions(Component):
    """The options of a sink in the config."""

    def build(self, watched: TrackedRun) -> Sink | None:
        """Open the sink, or return None if it is switched off."""
        return None


def scalars(row: Json) -> dict[str, float]:
    """Return the numbers of a row by the names that all sinks use.

    train/... of steps, valid/... and train_tasks/... of validations."""
    valid = row.get("kind") == "valid"
    if valid:
        prefix = "valid" if row.get("split") == "valid" else "train_tasks"
    else:
        prefix = str(row.get("kind", "train"))
    skipped = {"kind", "step", "split", "at"}
    numbers = {
        name: value
        for name, value in row.items()
        if name not in skipped and type(value) in (int, float)
    }
    return {f"{prefix}/{name}": float(value) for name, value in numbers.items()}
