"""Table and figures of the result of one run, in Python and for loggers that show images."""

from __future__ import annotations

import html
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.errors import ConfigError
from metalearn.results import records
from metalearn.results.shown import Text, columns, curve_rows, data_frame, html_table, table_cells

FIGURES = ("steps", "training", "flops", "seconds")  # those that one run has


class TestedRun(ABC):
    """Base class of the result of one run, with its table and figures."""

    __test__ = False  # no class of tests

    @abstractmethod
    def record(self) -> records.Run:
        """Return the result, and what else is on disk of it."""

    def table(self) -> Text:
        """Return one line per point of the learning curve of new tasks."""
        return columns(self._cells())

    def to_pandas(self) -> Any:
        """Return one row per point of the learning curve of new tasks, with all measured values."""
        return data_frame(curve_rows(self.record().test), "result.json").set_index("step")

    def plot(self, name: str = "steps", ax: Any = None) -> Any:
        """Draw a figure of the report: steps, training, flops or seconds.

        Returns a matplotlib Figure, which a notebook shows; if `ax` is given, draws on it and
        returns it."""
        from metalearn.report.figures import draw

        return draw(name, _figure_data(self.record()), ax, FIGURES)

    def _repr_html_(self) -> str:
        try:
            table = html_table(self._cells())
        except ConfigError:  # not finished
            table = ""
        return f"<p>{html.escape(repr(self))}</p>{table}"

    def _cells(self) -> list[list[str]]:
        run = self.record()
        heads = ["step", run.metric, f"{run.metric}_ci95", "diverged"]
        return table_cells(curve_rows(run.test), heads)


class _EvaluationFields(NamedTuple):
    result: records.Json
    path: Path


class Evaluation(_EvaluationFields, TestedRun):
    """What `evaluate_run` returns: (result, path of its file)."""

    def record(self) -> records.Run:
        """Return the result alone."""
        return records.Run(
            self.path,
            str(self.result["label"]),
            int(self.result["seed"]),
            self.result,
            {},
            "",
            {},
            [],
        )

    def __repr__(self) -> str:
        task = self.result["task"]
        return f"{self.result['label']} on {task['source']}, split {task['split']}; {self.path}"


class Runs(list[Any]):
    """The runs of one experiment under several seeds."""

    def table(self) -> Text:
        """Return one line per seed and point of the learning curve."""
        return columns(self._cells())

    def to_pandas(self) -> Any:
        """Return one row per seed and point of the learning curve."""
        return data_frame(self._rows(), "result.json").set_index(["seed", "step"])

    def plot(self, name: str = "steps", ax: Any = None) -> Any:
        """Draw a figure of the report, like that of one run, over all seeds."""
        from metalearn.report.figures import draw

        return draw(name, _figure_data(*(run.record() for run in self)), ax, FIGURES)

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return html_table(self._cells())

    def _cells(self) -> list[list[str]]:
        metric = self[0].record().metric if self else "loss"
        heads = ["seed", "step", metric, f"{metric}_ci95", "diverged"]
        return table_cells(self._rows(), heads)

    def _rows(self) -> list[dict[str, Any]]:
        runs: Sequence[records.Run] = [run.record() for run in self]
        return [{"seed": run.seed, **row} for run in runs for row in curve_rows(run.test)]


def figures(folder: Path) -> dict[str, Any]:
    """Return the figures of a report of this run alone, as images."""
    from PIL import Image

    from metalearn.report.figures.curves import steps_figure, training_figure

    data = _figure_data(records.load(folder))
    images: dict[str, Any] = {}
    for name, draw in {"steps": steps_figure, "training": training_figure}.items():
        figure = draw(data)
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
            images[name] = Image.open(buffer)
    return images


def _figure_data(*runs: records.Run) -> tuple[list[records.Group], records.Json]:
    """Return the data from which figures are drawn."""
    from metalearn.results.curves import cost_curves, curves

    groups = records.group(runs)
    return groups, {"curves": curves(groups), "cost_curves": cost_curves(groups)}
