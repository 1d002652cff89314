"""Figures of a page by name: functions of rows and comparison.json, None without numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from metalearn.report.figures import cost, curves, decision
from metalearn.report.figures.axes import Compared, drawing_on
from metalearn.report.figures.tuning import tuning_figure

FIGURES: dict[str, Callable[[Compared], Figure | None]] = {
    "steps": curves.steps_figure,
    "training": curves.training_figure,
    "flops": partial(cost.cost_figure, axis="flops"),
    "seconds": partial(cost.cost_figure, axis="seconds"),
    "reached-flops": partial(cost.reached_figure, axis="flops"),
    "reached-seconds": partial(cost.reached_figure, axis="seconds"),
    "pareto": cost.pareto_figure,
    "break-even": cost.break_even_figure,
    "decision-flops": partial(decision.decision_figure, axis="flops"),
    "decision-seconds": partial(decision.decision_figure, axis="seconds"),
    "selection": cost.selection_figure,
    "tuning": tuning_figure,
}

__all__ = ["FIGURES", "Compared", "drawing_on"]
