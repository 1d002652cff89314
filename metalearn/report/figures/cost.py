"""Figures of cost: a metric against FLOPs, tasks solved, total cost, break-even."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from metalearn.evaluate.cost_block import Axis
from metalearn.report.figures.axes import (
    FigureData,
    array,
    band,
    by_label,
    direction,
    empty_figure,
    end_labels,
    four_panels,
    line,
    metric_name,
    panels,
    round_ticks,
    score_scale,
    shorten,
    title,
    value_axis,
)
from metalearn.report.figures.style import GREY, INK, SMALL, Style, styles, with_style
from metalearn.report.numbers import duration, operations
from metalearn.results.records import Array, Json
from metalearn.results.searches import selections

MOST_TASKS = 1_000_000  # of the break-even picture


@with_style
def cost_figure(data: FigureData, axis: Axis) -> Figure | None:
    """Draw the headline metric against the cost of one new task; None if nothing was measured."""
    groups, results = data
    figure, axes = empty_figure()
    style_of, ends, curves = styles(groups), [], []
    whole, by_cost = by_label(results, "curves"), by_label(results, "cost_curves", axis)
    for group in groups:
        curve = by_cost.get(group.label)
        if curve is None or not np.isfinite(array(curve["mean"])).any():
            continue
        style, scale = style_of[group.label], score_scale(group)
        curves.append(whole[group.label])
        low, mean, high = (array(curve[name]) * scale for name in ("low", "mean", "high"))
        cost = array(curve["cost"])
        if len(mean) == 1:
            _draw_bar(axes, [*cost, *cost], [*low, *high], style)
            _draw_marker(axes, cost, mean, style, 7.5)
        else:
            band(axes, cost, low, high, style)
            line(axes, cost, mean, style, style.marker)
        ends.append((group.label, float(mean[np.isfinite(mean)][-1])))
    if not curves:
        return None
    axes.set_xscale("log")
    value_axis(axes, groups, curves)
    each = "to learn and predict one new task, logarithmic"
    axes.set_xlabel(f"FLOPs {each}" if axis == "flops" else f"time {each}")
    end_labels(axes, ends, style_of)
    round_ticks(axes, _cost_formatter(axis))
    return figure


@with_style
def solved_figure(data: FigureData, axis: Axis) -> Figure | None:
    """Draw the fraction of tasks that reached the target by cost; None without target or costs."""
    groups, results = data
    rows = by_label(results, "solved")
    within = {label: row["within"].get(axis) for label, row in rows.items()}
    curves = {label: part for label, part in within.items() if part is not None}
    costs = [cost for part in curves.values() for cost in part["cost"]]
    if not any(cost > 0 for cost in costs):
        return None
    figure, axes = empty_figure()
    style_of, ends = styles(groups), []
    least, most = min(cost for cost in costs if cost > 0), max(costs)
    for label, part in curves.items():
        style = style_of[label]
        x, y = np.maximum(part["cost"], least / 2), 100 * array(part["share"])
        axes.step(x, y, where="post", color=style.color, linestyle=style.dash, lw=1.8)
        _draw_marker(axes, x[-1:], y[-1:], style, 5)
        ends.append((label, float(y[-1])))
    axes.set_xscale("log")
    axes.set_xlim(least / 2, most * 1.15)
    axes.set_ylim(0, 102)
    title(axes, "tasks that reached the target, %, higher is better")
    axes.set_xlabel(f"{'FLOPs' if axis == 'flops' else 'time'} spent on the task, logarithmic")
    end_labels(axes, ends, style_of)
    round_ticks(axes, _cost_formatter(axis))
    return figure


@with_style
def pareto_figure(data: FigureData) -> Figure | None:
    """Draw the headline metric against the total cost, with the front of the means as a line.

    The cost is that up front and on the test tasks; both have 95 % intervals."""
    groups, results = data
    scale, totals = score_scale(groups[0]), by_label(results, "total_cost")
    values = {line["label"]: line["value"] for line in results["summary"]}
    ends = {line["label"]: line.get("interval") for line in results["summary"]}
    points = [
        (label, row["flops"], values[label] * scale, row["on_front"]["flops"])
        for label, row in totals.items()
        if row["flops"] and values.get(label) is not None
    ]
    if not points:
        return None
    figure, axes = empty_figure()
    style_of, tasks = styles(groups), next(iter(totals.values()))["tasks"]
    front = sorted((total, value) for _, total, value, best in points if best)
    axes.step(*zip(*front), where="post", color=GREY, lw=1.1, ls=(0, (4, 2)), zorder=1)
    for label, total, value, best in points:
        style = style_of[label]
        cost_ends = (totals[label].get("ci95") or {}).get("flops")
        if ends[label]:
            bar = array(ends[label])  # of an accuracy, to the end of the scale
            bar = bar.clip(0, 1) if groups[0].higher_better else bar
            _draw_bar(axes, [total] * 2, bar * scale, style)
        if cost_ends and cost_ends[0] > 0:
            _draw_bar(axes, cost_ends, [value] * 2, style)
        mark: Any = {"mfc": style.color if best else "white", "ms": 8, "mew": 1.4, "zorder": 4}
        axes.plot([total], [value], style.marker, color=style.color, **mark)
    axes.margins(x=0.14, y=0.12)
    axes.set_xscale("log")
    title(axes, f"{metric_name(groups)}, {direction(groups)}")
    axes.set_xlabel(f"total FLOPs: up front and {tasks:,} new tasks, logarithmic")
    end_labels(axes, [(label, value) for label, _, value, _ in points], style_of)
    round_ticks(axes, operations)
    return figure


@with_style
def break_even_figure(data: FigureData) -> Figure | None:
    """Draw the total FLOPs after n new tasks, each learned to the target.

    Lines are faint if fewer than half of the tasks reach it."""
    groups, results = data
    figure, axes = empty_figure()
    style_of, ends = styles(groups), []
    for label, costs in by_label(results, "break_even_lines").items():
        last = _draw_total(axes, costs, costs["per_solved"], style_of[label])
        ends.append((f"{label}{_free_mark(costs)} {100 * costs['share']:.0f} %", last))
        style_of[ends[-1][0]] = style_of[label]
    if not ends:
        return None
    _logarithmic(axes)
    axes.yaxis.set_major_locator(LogLocator(numticks=9))
    title(axes, "total FLOPs, logarithmic, lower is better")
    axes.set_xlabel("new tasks learned to the target, logarithmic")
    end_labels(axes, ends, style_of)
    round_ticks(axes, operations)
    return figure


@with_style
def break_even_by_queries_figure(data: FigureData) -> Figure | None:
    """Draw the total FLOPs after n new tasks with their predictions, a panel per number of queries.

    Lines are as in `break_even_figure`; None without costs by numbers of queries."""
    groups, results = data
    rows, style_of = by_label(results, "break_even_lines"), styles(groups)
    counts = sorted({one["queries"] for row in rows.values() for one in row.get("by_queries", ())})
    if not counts:
        return None
    figure, axes_of_counts = four_panels(len(counts))
    for number, (axes, count) in enumerate(zip(axes_of_counts, counts)):
        for label, row in rows.items():
            for one in row.get("by_queries", ()):
                if one["queries"] == count:
                    _draw_total(axes, row, one["per_solved"], style_of[label])
        _logarithmic(axes)
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.set_title(f"{count:,} quer{'y' if count == 1 else 'ies'} per task", size=9)
        if number > 1:
            axes.set_xlabel("new tasks, logarithmic")
    names = {label: f"{label}{_free_mark(row)}" for label, row in rows.items()}
    handles = [
        Line2D(
            [], [], color=style_of[label].color, ls=style_of[label].dash, label=shorten(name, 24)
        )
        for label, name in names.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=SMALL)
    return figure


def _free_mark(row: Json) -> str:
    return "*" if row.get("pretraining") == "free" else ""


def _draw_total(axes: Axes, row: Json, per_solved: float, style: Style) -> float:
    """Draw the total by number of tasks, faint if few solve it, and return its last value."""
    tasks = np.logspace(0, np.log10(MOST_TASKS), 121)
    total = row["up_front"] + tasks * per_solved
    width, alpha = (0.9, 0.45) if row["share"] < 0.5 else (1.8, 1.0)
    axes.plot(tasks, total, color=style.color, ls=style.dash, lw=width, alpha=alpha)
    return float(total[-1])


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1, MOST_TASKS)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: operations(value)))


@with_style
def selection_figure(data: FigureData) -> Figure | None:
    """Draw scores of candidates against their value on queries, one panel per search; or None."""
    groups = data[0]
    searches = selections(groups)
    if not searches:
        return None
    style_of, text_style = styles(groups), {"size": "medium", "color": INK}
    colors = [style_of[group.label].color for group, *_ in searches]
    names = [shorten(group.label, 26) for group, *_ in searches]
    figure, panel_axes = panels(names, colors, min(len(searches), 2), 2.2)
    for (_, score, truth, picks, _), axes, color in zip(searches, panel_axes, colors):
        axes.plot(score.ravel(), truth.ravel(), ".", color=color, ms=4, alpha=0.5, mew=0)
        for one, real, pick in zip(score, truth, picks):
            axes.plot([one[pick]], [real[pick]], "o", mfc="none", color=INK, ms=6, mew=1)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel("selection score (minus a loss), higher is better", **text_style)
    better = ", higher is better" if len(searches) > 2 else ""
    figure.supylabel(f"minus the loss on queries{better}", **text_style)
    return figure


def _cost_formatter(axis: Axis) -> Callable[[float], str]:
    """Return the function that formats costs of an axis.

    Seconds stay seconds, as round numbers of them are not round minutes."""
    if axis == "flops":
        return operations
    return lambda value: f"{value:g} s" if value >= 1 else duration(value)


def _draw_marker(axes: Axes, x: Array, y: Array, style: Style, size: float) -> None:
    edge: Any = {"mec": "white", "mew": 0.7, "zorder": 4}
    axes.plot(x, y, style.marker, color=style.color, ms=size, **edge)


def _draw_bar(axes: Axes, x: Any, y: Any, style: Style) -> None:
    axes.plot(x, y, color=style.color, lw=1.0, zorder=2)
