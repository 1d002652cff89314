"""A line in the terminal for every look at validation tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metalearn.component import option
from metalearn.logger import log
from metalearn.tracking.sink import Json, Sink, SinkOptions, Watched, names


class Terminal(SinkOptions):
    """A line for every look at validation tasks."""

    on: bool = option(True, "whether there are such lines")

    def build(self, watched: Watched) -> Sink | None:
        return _Lines(watched) if self.on else None


class _Lines:
    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def rows(self, rows: Sequence[Json]) -> None:
        looks = [row for row in rows if row.get("kind") == "valid"]
        if looks:
            found = {
                name: value
                for row in looks
                for name, value in names(row).items()
                if not name.endswith("_ci95")
            }
            told = ", ".join(
                f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items()
            )
            log.info(f"{self._watched.title} step {looks[-1]['step']}: {told}")

    def result(self, result: Json) -> None:
        pass  # the command says it

    def page(self, folder: Path, page: Path) -> None:
        pass

    def close(self) -> None:
        pass
