"""Figures of the rows: seconds per step by workload, seconds per task by tasks per batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from metalearn.bench.contenders import ENGINES
from metalearn.bench.table import Row, best, groups, speedup, times
from metalearn.report.figures.style import MARKERS, PALETTE, RC, SOFT, svg
from metalearn.report.numbers import duration

COLOURS = dict(zip(ENGINES, PALETTE))
SHAPES = dict(zip(ENGINES, MARKERS))
WHITE_EDGE: Any = {"mec": "white", "mew": 0.6}
_RC: Any = RC | {"font.size": 9}


def workloads_figure(rows: Sequence[Row]) -> str:
    """Plot times as multiples of our median, logarithmic, one line per workload.

    Bars range from first to third quartile.

    On the left is our own median; on the right the best peer's time over ours. A workload that was
    timed without us is relative to its fastest engine."""
    timed = {index: group for index, group in groups(rows).items() if best(group, ENGINES)}
    with matplotlib.rc_context(_RC):
        height = 0.42 * len(timed) + 1.15
        figure = Figure((8.2, height))
        axes = figure.add_axes((0.31, 0.55 / height, 0.58, 1 - 1.15 / height))
        labels = []
        for index, ((name, tasks), group) in enumerate(timed.items()):
            unit = best(group, ("native",)) or best(group, ENGINES)
            assert unit is not None
            labels.append(f"{name}, {tasks}:  {duration(unit['median_seconds'])}")
            rows_of_engines = [best(group, (engine,)) for engine in ENGINES]
            _points(axes, index, rows_of_engines, unit["median_seconds"])
            _right_label(axes, index, times(speedup(group)), va="center", weight="bold")
        axes.axvline(1, color=SOFT, lw=0.8)
        axes.set_yticks(range(len(timed)), labels)
        axes.set_ylim(len(timed) - 0.4, -0.6)
        _right_label(axes, -0.7, "best peer\nover ours", color=SOFT, size=8)
        what = "time of a meta-step (sampling: of an episode)"
        axes.set_xlabel(f"{what} over our median, logarithmic")
        _logarithmic(axes, "x", lambda value: f"{value:g}x")
        _legend(figure, rows)
        return svg(figure, "bench")


def _right_label(axes: Any, y: float, text: str, **style: Any) -> None:
    axes.text(1.02, y, text, transform=axes.get_yaxis_transform(), **style)


def _points(axes: Any, y_center: int, rows: Sequence[Row | None], unit: float) -> None:
    """Plot the best row of each engine, slightly offset from each other."""
    for number, row in enumerate(rows):
        if row is None:
            continue
        y, engine = y_center + (number - 2) * 0.13, row["engine"]
        low, high = row["quartiles_seconds"]
        bar: Any = {"color": COLOURS[engine], "lw": 2.4, "alpha": 0.55}
        axes.plot([low / unit, high / unit], [y, y], **bar, solid_capstyle="butt")
        mark: Any = {"marker": SHAPES[engine], "ms": 5.5, **WHITE_EDGE}
        axes.plot(row["median_seconds"] / unit, y, color=COLOURS[engine], **mark)


def scaling_figure(rows: Sequence[Row]) -> str:
    """Plot seconds per task against tasks per batch, both logarithmic, one panel per workload."""
    names = list(dict.fromkeys(row["workload"] for row in rows))
    with matplotlib.rc_context(_RC):
        figure = Figure((8.2, 3.6), layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names):
            for engine in ENGINES:
                _curve(axes, [row for row in rows if row["workload"] == name], engine)
            axes.set_title(name, loc="left", size=9, weight="bold")
            _logarithmic(axes, "y")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        figure.supxlabel("tasks per batch", size=9)
        panels[0].set_ylabel("seconds a task")
        _legend(figure, rows, "outside upper left")
        return svg(figure, "bench-scaling")


def _curve(axes: Any, rows: list[Row], engine: str) -> None:
    counts = sorted({row["tasks"] for row in rows})
    best_rows = [
        best([row for row in rows if row["tasks"] == count], (engine,)) for count in counts
    ]
    timed = [row for row in best_rows if row]
    if not timed:
        return
    tasks = [row["tasks"] for row in timed]
    style: Any = {"color": COLOURS[engine], "marker": SHAPES[engine], "ms": 4.6, **WHITE_EDGE}
    axes.plot(tasks, [row["median_seconds"] / row["tasks"] for row in timed], **style, lw=1.6)
    low, high = ([row["quartiles_seconds"][end] / row["tasks"] for row in timed] for end in (0, 1))
    axes.fill_between(tasks, low, high, color=COLOURS[engine], alpha=0.16, lw=0)


def _logarithmic(axes: Any, which: str, formatter: Callable[[float], str] = duration) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=14))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: formatter(value)))


def _legend(figure: Figure, rows: Sequence[Row], location: Any = "upper left") -> None:
    engines = [engine for engine in ENGINES if best(rows, (engine,))]
    names = {name: "ours" if name == "native" else name for name in engines}
    handles = [
        Line2D([], [], color=COLOURS[name], marker=SHAPES[name], ls="", ms=5.5, label=label)
        for name, label in names.items()
    ]
    figure.legend(
        handles=handles, loc=location, ncols=len(handles), frameon=False, handletextpad=0.2
    )
