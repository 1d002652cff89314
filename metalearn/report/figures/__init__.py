"""Figures of a page by name: functions of rows and comparison.json, None without numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from metalearn.errors import ConfigError, did_you_mean
from metalearn.report.figures import cost, curves, decision
from metalearn.report.figures.axes import FigureData, drawing_on
from metalearn.report.figures.tuning import tuning_figure

FIGURES: dict[str, Callable[[FigureData], Figure | None]] = {
    "steps": curves.steps_figure,
    "training": curves.training_figure,
    "flops": partial(cost.cost_figure, axis="flops"),
    "seconds": partial(cost.cost_figure, axis="seconds"),
    "reached-flops": partial(cost.solved_figure, axis="flops"),
    "reached-seconds": partial(cost.solved_figure, axis="seconds"),
    "pareto": cost.pareto_figure,
    "break-even": cost.break_even_figure,
    "break-even-queries": cost.break_even_by_queries_figure,
    "decision-flops": partial(decision.decision_figure, name="decision_map"),
    "decision-seconds": partial(decision.decision_figure, name="decision_map_seconds"),
    "decision-free": partial(decision.decision_figure, name="decision_map_free"),
    "decision-seconds-free": partial(decision.decision_figure, name="decision_map_seconds_free"),
    "selection": cost.selection_figure,
    "tuning": tuning_figure,
}
# Figures that no single axes can hold.
SEVERAL_PANELS = frozenset(
    {"training", "selection", "break-even-queries"}
    | {name for name in FIGURES if name.startswith("decision-")}
)


def draw(name: str, what: FigureData, ax: Any, names: Sequence[str]) -> Any:
    """Draw the figure `name`, one of `names`, and return it; with `ax`, draw on it and return it.

    Raises ConfigError for another name, for axes that cannot hold it, and if numbers are
    missing."""
    if name not in names:
        raise ConfigError(("plot", f"unknown figure {name!r}; {did_you_mean(name, names)}"))
    if ax is None:
        figure = FIGURES[name](what)
    else:
        if name in SEVERAL_PANELS:
            raise ConfigError(("plot", f"the figure {name} has several panels: omit ax"))
        with drawing_on(ax):
            figure = FIGURES[name](what)
    if figure is None:
        raise ConfigError(("plot", f"these results have no data for the figure {name}"))
    return figure if ax is None else ax


__all__ = ["FIGURES", "Compared", "draw", "drawing_on"]
