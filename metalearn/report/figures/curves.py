"""Learning curves of new tasks, and of training tasks against validation tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from metalearn.report.figures.axes import (
    Compared,
    array,
    by_label,
    direction,
    empty_figure,
    end_labels,
    metric_name,
    scale_of,
    shortened,
    steps_axis,
    value_axis,
)
from metalearn.report.figures.style import FONT, INK, SIZE, Drawing, Style, dark, styled, styles
from metalearn.results.records import Array, Group, Json, Run


@styled
def steps_figure(what: Compared) -> Figure | None:
    """The headline metric against gradient steps on a new task, with 95 % bands over tasks."""
    groups, found = what
    curves = by_label(found, "curves")
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
        _band(axes, x, y, width, style)
        for line in curve["seeds"] if group.uses_steps else []:
            axes.plot(x, array(line) * scale_of(group), color=style.color, lw=0.6, alpha=0.5)
        _line(axes, x, y, style, marked=group.uses_steps)
        ends.append((group.label, float(y[np.isfinite(y)][-1])))
    steps_axis(axes, sorted({step for curve in curves.values() for step in curve["steps"]}))
    value_axis(axes, groups, curves.values())
    axes.set_xlabel("gradient steps on the new task")
    end_labels(axes, ends, style_of)
    return figure


@styled
def training_figure(what: Compared) -> Figure | None:
    """Training and validation tasks during meta-training, one panel a method; or None.

    A method with a single validation, for want of training, has no curve and no panel."""
    groups = what[0]
    shown = [group for group in groups if any(_validations(run) > 1 for run in group.runs)]
    if not shown:
        return None
    columns = min(len(shown), 2 if len(shown) < 5 else 3)
    rows = -(-len(shown) // columns)
    style_of = styles(groups)
    figure = Drawing((SIZE[0], 1.75 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for group, axes in zip(shown, grid.flat):
        _training_panel(axes, group, style_of[group.label])
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    entries = [_legend_line("-", "training tasks"), _legend_line((0, (3, 2)), "validation tasks")]
    figure.legend(
        handles=entries, loc="outside upper left", ncols=2, frameon=False, handlelength=2.4
    )
    figure.supxlabel("meta-training or pretraining steps", size=FONT, color=INK)
    label = metric_name(shown) + (f", {direction(shown)}" if rows > 1 else "")
    figure.supylabel(label, size=FONT, color=INK)
    return figure


def _validations(run: Run) -> int:
    return len({line["step"] for split in ("train", "valid") for line in run.valid(split)})


def _training_panel(axes: Axes, group: Group, style: Style) -> None:
    axes.set_title(
        shortened(group.label, 17),
        loc="left",
        size="medium",
        color=dark(style.color),
        weight="bold",
    )
    for run in group.runs:
        for split, dash, marker in (("train", "-", ""), ("valid", (0, (3, 2)), style.marker)):
            points = [line for line in run.valid(split) if line.get(group.metric) is not None]
            x = np.asarray([line["step"] for line in points], np.float64)
            y = np.asarray([line[group.metric] for line in points], np.float64) * scale_of(group)
            width = np.asarray(
                [line.get(f"{group.metric}_ci95") or np.nan for line in points]
            ) * scale_of(group)
            _band(axes, x, y, width, style)
            several = len(group.runs) > 1
            axes.plot(
                x,
                y,
                ls=dash,
                marker="" if several else marker,
                ms=2.8,
                mew=0,
                lw=0.9 if several else 1.4,
                color=style.color,
            )
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _thousands(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def _plot_values(curve: Json, group: Group) -> tuple[Array, Array, Array]:
    scale = scale_of(group)
    mean, ci95 = array(curve["mean"]) * scale, array(curve["ci95"]) * scale
    return np.asarray(curve["steps"], np.float64), mean, ci95


def _band(axes: Axes, x: Array, y: Array, width: Array, style: Style) -> None:
    if len(x) > 1:
        axes.fill_between(
            x,
            y - np.nan_to_num(width),
            y + np.nan_to_num(width),
            color=style.color,
            alpha=0.16,
            lw=0,
        )


def _line(axes: Axes, x: Array, y: Array, style: Style, marked: bool = True) -> None:
    axes.plot(
        x,
        y,
        color=style.color,
        linestyle=style.dash,
        lw=1.8,
        marker=style.marker if marked else "",
        ms=4.6,
        mec="white",
        mew=0.7,
        solid_capstyle="round",
        clip_on=False,
        zorder=3,
    )


def _legend_line(dash: Any, label: str) -> Any:
    return Line2D([], [], color=INK, lw=1.4, linestyle=dash, label=label)
