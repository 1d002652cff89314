"""Figures of a page by name: functions of rows and comparison.json, None without numbers."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from metalearn.report.figures import cost, curves, decision
from metalearn.report.figures.axes import Compared, drawing_on
from metalearn.report.figures.tuning import tuning_figure

FIGURES: dict[str, Callable[[Compared], Figure | None]] = {
    "steps": curves.steps_figure,
    "training": curves.training_figure,
    "flops": cost.flops_figure,
    "seconds": cost.seconds_figure,
    "reached-flops": cost.reached_figure,
    "reached-seconds": cost.reached_seconds_figure,
    "pareto": cost.pareto_figure,
    "break-even": cost.break_even_figure,
    "decision-flops": decision.decision_figure,
    "decision-seconds": decision.decision_seconds_figure,
    "selection": cost.selection_figure,
    "tuning": tuning_figure,
}

__all__ = ["FIGURES", "Compared", "drawing_on"]
