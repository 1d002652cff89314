"""The figures of a report as SVG text: learning curves, adaptation time, training against
validation tasks, points.

Each is drawn in two sizes, for a page and for a phone, with the same colour, marker and line for a
label everywhere. Deterministic: a fixed salt for identifiers, no dates; text stays text.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from metalearn.report.figures.axes import (
    INK,
    SOFT,
    Style,
    array,
    by_label,
    dark,
    direction,
    end_labels,
    metric_name,
    steps_axis,
    value_axis,
)
from metalearn.results.records import Array, Group, Json, Run

# Okabe & Ito's colours, yellow left out (too pale for a line on white), then five of Paul Tol's
# muted ones.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#999933",
    "#44AA99",
    "#332288",
)
SCRATCH = "#5B5B5B"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
SHIFT = 3  # in the row of markers, from one use of a colour to the next
PREFERRED = (
    "maml",
    "reptile",
    "proto_net",
    "fine_tune",
    "linear_probe",
    "anil",
    "boil",
    "meta_sgd",
    "nearest_centroid",
)
WIDE, NARROW = (7.4, 4.0), (3.75, 3.5)  # inches at 96 a pixel row: 710 and 360 pixels

_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metalearn",
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8A9199",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECEEF0",
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}
_FONT = (
    "font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
)


What = TypeVar("What")
Drawn = TypeVar("Drawn")
Size = tuple[float, float]
Compared = tuple[Sequence[Group], Json]  # rows, and their comparison.json


def styled(draw: Callable[[What, Size], Drawn]) -> Callable[[What, Size], Drawn]:
    """Draw under this file's settings, with type that fits the size: they act when ticks and texts
    are made.
    """

    @functools.wraps(draw)
    def inner(what: What, size: Size) -> Drawn:
        with matplotlib.rc_context(_RC | {"font.size": _points(size)}):
            return draw(what, size)

    return inner


def styles(groups: Sequence[Group]) -> dict[str, Style]:
    """Label -> style: known methods keep their colour in every report, others take the next free
    one by name.

    Where the colours are used up, each comes again with another marker and another kind of line.
    """
    found: dict[str, Style] = {}
    free = list(range(len(PALETTE)))
    later = []
    for group in sorted(groups, key=lambda item: (item.label != item.method, item.label)):
        place = PREFERRED.index(group.method) if group.method in PREFERRED else -1
        if group.method == "scratch" and SCRATCH not in {style.color for style in found.values()}:
            found[group.label] = Style(SCRATCH, "o", "--")
        elif place in free:
            free.remove(place)
            found[group.label] = Style(PALETTE[place], MARKERS[place], "-")
        else:
            later.append(group.label)
    count, begin = len(PALETTE), len(PALETTE) - len(free)
    for number, label in enumerate(later, begin):
        place, again = free[number - begin] if number < count else number % count, number // count
        marker = MARKERS[(place + SHIFT * again) % len(MARKERS)]
        found[label] = Style(PALETTE[place], marker, ("-", ":", "-.", "--")[again % 4])
    return found


@styled
def steps_figure(what: Compared, size: Size) -> Figure | None:
    """The headline metric against gradient steps on a new task, with 95 % bands over tasks."""
    groups, found = what
    curves = by_label(found, "curves")
    if not curves:
        return None
    figure, axes = empty_figure(size)
    look = styles(groups)
    ends: list[tuple[str, float]] = []
    last = max([1, *(max(curve["steps"]) for curve in curves.values())])
    for group in groups:
        curve, style = curves[group.label], look[group.label]
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
    end_labels(axes, ends, look)
    return figure


@styled
def training_figure(what: Compared, size: Size) -> Figure | None:
    """Training tasks against validation tasks during meta-training, one small panel a method; None
    without any.

    A method that was looked at once, for want of training, has no curve and no panel.
    """
    groups = what[0]
    shown = [group for group in groups if any(_looks(run) > 1 for run in group.runs)]
    if not shown:
        return None
    columns = min(len(shown), 3 if size[0] > 5 else 1 if len(shown) == 1 else 2)
    rows = -(-len(shown) // columns)
    height = (2.3 if size[0] > 5 else 1.9) * rows + 0.55
    look = styles(groups)
    figure = Figure((size[0], height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for group, axes in zip(shown, grid.flat):
        _training_panel(axes, group, look[group.label])
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    entries = [_legend_line("-", "training tasks"), _legend_line((0, (3, 2)), "validation tasks")]
    figure.legend(
        handles=entries, loc="outside upper left", ncols=2, frameon=False, handlelength=2.4
    )
    figure.supxlabel("meta-training or pretraining steps", size=_points(size), color=INK)
    label = f"{metric_name(shown)}" if size[0] < 5 else f"{metric_name(shown)}, {direction(shown)}"
    figure.supylabel(label, size=_points(size), color=INK)
    return figure


def _looks(run: Run) -> int:
    return len({line["step"] for split in ("train", "valid") for line in run.valid(split)})


def _training_panel(axes: Axes, group: Group, style: Style) -> None:
    axes.set_title(group.label, loc="left", size="medium", color=dark(style.color), weight="bold")
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


@styled
def points_figure(episodes: dict[str, Array], size: Size) -> Figure:
    """Test tasks of points: what the learner is given, and what it must find. First coordinate of x
    and of y.
    """
    count = len(episodes["support_x"])
    narrow = size[0] < 5
    figure = Figure((size[0], 1.75 * count + 0.5 if narrow else 2.5), layout="constrained")
    grid = figure.subplots(
        count if narrow else 1, 1 if narrow else count, squeeze=False, sharex=True, sharey=True
    )
    for place, axes in enumerate(grid.flat):
        given = [
            episodes[name][place].reshape(len(episodes[name][place]), -1)[:, 0] for name in _POINTS
        ]
        order = np.argsort(given[2])
        axes.plot(
            given[2][order],
            given[3][order],
            color="#8A9199",
            lw=1,
            marker=".",
            ms=3,
            label="query: to find",
        )
        axes.plot(given[0], given[1], "o", color=PALETTE[1], ms=4.5, mew=0, label="support: given")
        axes.set_title(f"task {place + 1}", loc="left", size="medium", color=INK)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    figure.supxlabel("x", size=_points(size))
    figure.supylabel("y", size=_points(size))
    return figure


_POINTS = ("support_x", "support_y", "query_x", "query_y")


def svg(figure: Figure, name: str) -> str:
    """A standalone SVG; identifiers begin with `name`, so that several can stand in one page."""
    with matplotlib.rc_context(_RC):
        file = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    text = file.getvalue()
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    return re.sub(r"(font: [^;\"]*?px) 'DejaVu Sans'|font-family: 'DejaVu Sans'", _family, text)


def _family(found: re.Match[str]) -> str:
    return f"{found[1]} sans-serif; {_FONT}" if found[1] else _FONT


def inline(text: str, description: str) -> str:
    """The `<svg>` element of a standalone file, ready for a page: no prologue, no namespaces,
    scalable, described.
    """
    body = text[text.index("<svg") :].strip()
    body = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href", "href")
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{description}">{rest}'


def duration(seconds: float) -> str:
    """Seconds for people: 85 µs, 12.3 ms, 4.6 s, 12 min, 3.2 h."""
    for limit, factor, unit in (
        (1e-3, 1e6, "µs"),
        (1, 1e3, "ms"),
        (120, 1, "s"),
        (7200, 1 / 60, "min"),
    ):
        if seconds < limit * 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def empty_figure(size: Size) -> tuple[Figure, Axes]:
    """Axes that leave room for names beside the lines' ends."""
    figure = Figure(size)
    left, right = (0.085, 0.80) if size[0] > 5 else (0.135, 0.70)
    axes = figure.add_axes((left, 0.14, right - left, 0.80))
    axes.grid(axis="x", visible=False)
    return figure, axes


def _points(size: Size) -> float:
    return 9.0 if size[0] > 5 else 8.0


def scale_of(group: Group) -> float:
    """What a score is multiplied with to be shown: accuracies are percentages."""
    return 100.0 if group.higher_better else 1.0


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
