"""Learning curves of new tasks, and of training tasks against validation tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from metalearn.report.figures.axes import (
    FigureData,
    array,
    band,
    by_label,
    direction,
    empty_figure,
    end_labels,
    line,
    metric_name,
    panels,
    score_scale,
    shorten,
    steps_axis,
    value_axis,
)
from metalearn.report.figures.style import FONT, INK, Style, styles, with_style
from metalearn.results.records import Array, Group, Json, Run


@with_style
def steps_figure(data: FigureData) -> Figure | None:
    """Draw the headline metric against gradient steps on a new task, with 95 % bands over tasks."""
    groups, results = data
    curves = by_label(results, "curves")
    if not curves:
        return None
    figure, axes = empty_figure()
    style_of = styles(groups)
    ends: list[tuple[str, float]] = []
    last = max([1, *(max(curve["steps"]) for curve in curves.values())])
    for group in groups:
        curve, style = curves[group.label], style_of[group.label]
        x, y, width = _plot_values(curve, group)
        if not np.isfinite(y).any():
            continue
        if not group.uses_steps:
            x, y, width = np.array([0.0, last]), np.repeat(y[:1], 2), np.repeat(width[:1], 2)
        _draw_band(axes, x, y, width, style)
        for seed in curve["seeds"] if group.uses_steps else []:
            axes.plot(x, array(seed) * score_scale(group), color=style.color, lw=0.6, alpha=0.5)
        line(axes, x, y, style, style.marker if group.uses_steps else "")
        ends.append((group.label, float(y[np.isfinite(y)][-1])))
    steps_axis(axes, sorted({step for curve in curves.values() for step in curve["steps"]}))
    value_axis(axes, groups, curves.values())
    axes.set_xlabel("gradient steps on the new task")
    end_labels(axes, ends, style_of)
    return figure


@with_style
def training_figure(data: FigureData) -> Figure | None:
    """Draw training and validation tasks during meta-training, one panel per method; or None.

    A method with a single validation, because it is not trained, has no panel."""
    groups = data[0]
    panel_groups = [group for group in groups if has_training_curves(group)]
    if not panel_groups:
        return None
    columns = min(len(panel_groups), 2 if len(panel_groups) < 5 else 3)
    panel_styles = [styles(groups)[group.label] for group in panel_groups]
    names = [shorten(group.label, 17) for group in panel_groups]
    figure, panel_axes = panels(
        names, [style.color for style in panel_styles], columns, 1.75, sharey=True
    )
    for group, style, axes in zip(panel_groups, panel_styles, panel_axes):
        _draw_training_panel(axes, group, style)
    entries = [_legend_line("-", "training tasks"), _legend_line((0, (3, 2)), "validation tasks")]
    figure.legend(
        handles=entries, loc="outside upper left", ncols=2, frameon=False, handlelength=2.4
    )
    figure.supxlabel("meta-training or pretraining steps", size=FONT, color=INK)
    label = metric_name(panel_groups) + (
        f", {direction(panel_groups)}" if len(panel_groups) > columns else ""
    )
    figure.supylabel(label, size=FONT, color=INK)
    return figure


def has_training_curves(group: Group) -> bool:
    """Return whether a run of a method has at least two validations."""
    return any(_validations(run) > 1 for run in group.runs)


def _validations(run: Run) -> int:
    return len({line["step"] for split in ("train", "valid") for line in run.valid(split)})


def _draw_training_panel(axes: Axes, group: Group, style: Style) -> None:
    several = len(group.runs) > 1
    for run in group.runs:
        for split, dash, marker in (("train", "-", ""), ("valid", (0, (3, 2)), style.marker)):
            points = [row for row in run.valid(split) if row.get(group.metric) is not None]
            x = np.asarray([row["step"] for row in points], np.float64)
            y = array([row[group.metric] for row in points]) * score_scale(group)
            halves = [row.get(f"{group.metric}_ci95") or None for row in points]
            _draw_band(axes, x, y, array(halves) * score_scale(group), style)
            look: Any = {"lw": 0.9} if several else {"lw": 1.4, "marker": marker}
            axes.plot(x, y, ls=dash, ms=2.8, mew=0, color=style.color, **look)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _plot_values(curve: Json, group: Group) -> tuple[Array, Array, Array]:
    scale = score_scale(group)
    mean, ci95 = array(curve["mean"]) * scale, array(curve["ci95"]) * scale
    return np.asarray(curve["steps"], np.float64), mean, ci95


def _draw_band(axes: Axes, x: Array, y: Array, width: Array, style: Style) -> None:
    if len(x) > 1:
        band(axes, x, y - np.nan_to_num(width), y + np.nan_to_num(width), style)


def _legend_line(dash: Any, label: str) -> Any:
    return Line2D([], [], color=INK, lw=1.4, linestyle=dash, label=label)
