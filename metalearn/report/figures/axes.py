"""Common parts of figures: axes that show step 0, directions, names at the ends of lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from metalearn.report.figures.style import GREY, INK, SIZE, SMALL, SOFT, Drawing, Style, darken
from metalearn.results.records import Array, Group, Json

FigureData = tuple[Sequence[Group], Json]  # rows, and their comparison.json
# points right of the axes: a line's end, its marker, its name
LINE, MARK, NAME = ((4.5, 8.0, 12.0), 16.0, 21.0)
APART = 1.3  # distance of two names, in font sizes
WIDEST = 0.86  # of the figure, the axes' right edge at most


def by_label(results: Json, name: str, axis: str | None = None) -> dict[str, Json]:
    """Return the entries of a list of comparison.json by label, of one axis if they have one."""
    rows = results.get(name) or []
    return {row["label"]: row for row in rows if axis is None or row["axis"] == axis}


def array(values: Sequence[float | None]) -> Array:
    return np.asarray([np.nan if value is None else value for value in values], np.float64)


def title(axes: Axes, text: str) -> None:
    """Write what the height of a line means above the axes."""
    axes.set_title(text, loc="left", size="medium", color=INK, pad=8)


def band(axes: Axes, x: Array, low: Array, high: Array, style: Style) -> None:
    """Draw an interval around a line."""
    axes.fill_between(x, low, high, color=style.color, alpha=0.16, lw=0)


def line(axes: Axes, x: Array, y: Array, style: Style, marker: str) -> None:
    """Draw a line that may reach over the edge of the axes."""
    edge: Any = {"ms": 4.6, "mec": "white", "mew": 0.7, "solid_capstyle": "round"}
    look: Any = {"color": style.color, "ls": style.dash, "lw": 1.8, "marker": marker}
    axes.plot(x, y, **look, **edge, clip_on=False, zorder=3)


def panels(
    labels: Sequence[str], colors: Sequence[str], columns: int, height: float, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per label, in rows of `columns`, each `height` inches high."""
    rows = -(-len(labels) // columns)
    figure = Drawing((SIZE[0], height * rows + 0.6), layout="constrained")
    grid_axes = list(figure.subplots(rows, columns, squeeze=False, **grid).flat)
    for axes in grid_axes[len(labels) :]:
        axes.set_visible(False)
    for axes, label, color in zip(grid_axes, labels, colors):
        axes.set_title(label, loc="left", size="medium", color=darken(color), weight="bold")
    return figure, grid_axes[: len(labels)]


def steps_axis(axes: Axes, steps: Sequence[int]) -> None:
    """Set a symmetric logarithmic axis of steps, linear up to 1 so that 0 shows.

    Ticks are at the points, as far as there is room."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    last = max([*steps, 1])
    axes.set_xlim(0, last)
    ticks: list[int] = []
    for step in steps:
        place = step if step < 1 else 0.5 + np.log10(step)
        before = -1.0 if not ticks else ticks[-1] if ticks[-1] < 1 else 0.5 + np.log10(ticks[-1])
        if not ticks or place - before > 0.07 * (0.5 + np.log10(last)):
            ticks.append(step)
    axes.xaxis.set_major_locator(FixedLocator([float(step) for step in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0)


def value_axis(axes: Axes, groups: Sequence[Group], curves: Iterable[Json]) -> None:
    title(axes, f"{metric_name(groups)}, {direction(groups)}")
    values = np.concatenate([array(curve["mean"]) for curve in curves])
    values = values[np.isfinite(values)]
    if groups[0].higher_better:
        chance = 100 / int(groups[0].first.task.get("ways") or 1)
        if chance < 100:
            axes.axhline(chance, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=1)
            axes.annotate(
                "chance",
                (1, chance),
                (-3, -3),
                xycoords=("axes fraction", "data"),
                color=SOFT,
                textcoords="offset points",
                ha="right",
                va="top",
                size=SMALL,
            )
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, min(low, chance - 6)), min(high, 100.5))
    elif values.size and values.min() > 0 and values.max() / values.min() > 8:
        axes.set_yscale("log")
        axes.set_ylim(values.min() * 0.7, values.max() * 1.4)
        axes.yaxis.set_major_locator(
            FixedLocator(_round_ticks(values.min() * 0.7, values.max() * 1.4))
        )
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(bottom=0)


def _round_ticks(low: float, high: float) -> list[float]:
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    parts = (1, 2, 5) if len(decades) < 6 else (1,)
    return [
        part * 10.0**decade
        for decade in decades
        for part in parts
        if low <= part * 10.0**decade <= high
    ]


def metric_name(groups: Sequence[Group]) -> str:
    return "accuracy on queries, %" if groups[0].higher_better else "squared error on queries"


def direction(groups: Sequence[Group]) -> str:
    return "higher is better" if groups[0].higher_better else "lower is better"


def end_labels(axes: Axes, ends: Sequence[tuple[str, float]], style_of: dict[str, Style]) -> None:
    """Write names in the right margin at the height of each line's end, without overlap.

    The axes shrink for the longest name, and the figure grows with the number of names. The label
    of the x axis must be set before."""
    if axes is _target_axes.get():
        _legend(axes, ends, style_of)
        return
    _make_room(axes, len(ends))
    to_axes = axes.transData + axes.transAxes.inverted()
    places = sorted(
        ((float(to_axes.transform((1, value))[1]), label) for label, value in ends), reverse=True
    )
    size = float(axes.xaxis.label.get_fontsize())
    width, height = (72 * inches for inches in axes.get_figure(root=True).get_size_inches())  # type: ignore[union-attr]
    texts = {label: shorten(label, 20) for label, _ in ends}
    box, longest = (
        axes.get_position(),
        max((text_width(text, size) for text in texts.values()), default=0.0),
    )
    axes.set_position(
        (box.x0, box.y0, min(WIDEST, 1 - (NAME + longest + 1) / width) - box.x0, box.height)
    )
    _keep_inside(axes, size, width)
    right = [1 + points / (axes.get_position().width * width) for points in (*LINE, MARK, NAME)]
    spread = _spread([place for place, _ in places], APART * size / (box.height * height))
    for (end, label), place in zip(places, spread):
        style = style_of[label]
        extra: Any = {"transform": axes.transAxes, "clip_on": False}
        axes.plot(right[:3], [end, end, place], color=style.color, lw=0.8, **extra)
        axes.plot(right[3:4], [place], style.marker, color=style.color, ms=4.5, mew=0, **extra)
        axes.text(
            right[4],
            place,
            texts[label],
            color=darken(style.color),
            va="center",
            size=size,
            **extra,
        )


def _make_room(axes: Axes, names: int) -> None:
    """Make the figure high enough for `names` next to the axes, one under the other."""
    figure = axes.get_figure(root=True)
    width, height = figure.get_size_inches()  # type: ignore[union-attr]
    names_height = (names - 1) * APART * float(axes.xaxis.label.get_fontsize())
    high = 72 * height * axes.get_position().height
    figure.set_size_inches(width, height * max(1.0, names_height / high))  # type: ignore[union-attr]


def _legend(axes: Axes, ends: Sequence[tuple[str, float]], style_of: dict[str, Style]) -> None:
    looks: dict[str, Any] = {
        label: {"color": one.color, "marker": one.marker, "linestyle": one.dash}
        for label, one in ((label, style_of[label]) for label, _ in ends)
    }
    lines = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    axes.legend(handles=lines, fontsize="small", frameon=False)


def _keep_inside(axes: Axes, size: float, width: float) -> None:
    """Move a long label under narrow axes to the right until it begins inside the picture."""
    label, box = axes.xaxis.label, axes.get_position()
    middle = max(width * (box.x0 + box.width / 2), text_width(label.get_text(), size) / 2 + 2)
    label.set_x((middle / width - box.x0) / box.width)


def text_width(text: str, size: float) -> float:
    """Return the width in points in a wide font: text that fits in it fits in a browser's."""
    return float(
        TextPath((0, 0), text, size=size, prop=FontProperties("DejaVu Sans")).get_extents().width
    )


# (parts of a decade, decades apart)
_DENSITIES = (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3))


def round_ticks(axes: Axes, format_value: Callable[[float], str]) -> None:
    """Set round numbers as ticks of a logarithmic x axis of final width, as many as fit."""
    low, high = axes.get_xlim()
    size = float(axes.xaxis.label.get_fontsize())
    across = 72 * axes.get_position().width * float(axes.get_figure(root=True).get_size_inches()[0])  # type: ignore[union-attr]
    final = [low, high]
    for parts, every in _DENSITIES:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [part * 10.0**decade for decade in decades if decade % every == 0 for part in parts]
        ticks = [tick for tick in ticks if low <= tick <= high]
        places = [across * np.log10(tick / low) / np.log10(high / low) for tick in ticks]
        halves = [text_width(format_value(tick), size) / 2 for tick in ticks]
        spans = [(place - half, place + half) for place, half in zip(places, halves)]
        if ticks and all(
            other[0] - one[1] > 0.7 * size for one, other in itertools.pairwise(spans)
        ):
            final = ticks
            break
    axes.xaxis.set_major_locator(FixedLocator(final))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value)))


def _spread(places: list[float], least: float) -> list[float]:
    """Move descending positions as little as needed to be `least` apart and above 0.

    They are also below 1 if there is room."""
    heights = list(places)
    for _ in range(200):
        for upper in range(len(heights) - 1):
            overlap = least - (heights[upper] - heights[upper + 1])
            if overlap > 1e-6:
                heights[upper] += overlap / 2
                heights[upper + 1] -= overlap / 2
        over = max(0.0, heights[0] - 1.0) if heights else 0.0
        heights = [place - over for place in heights]
    heights[-1:] = [max(place, 0.0) for place in heights[-1:]]
    for lower in range(len(heights) - 1, 0, -1):
        heights[lower - 1] = max(heights[lower - 1], heights[lower] + least)
    return heights


def shorten(label: str, most: int) -> str:
    """Cut the middle of a long name: names of one family differ at their ends."""
    half = (most - 1) // 2
    return (
        label if len(label) <= most else f"{label[: most - 1 - half]}…{label[len(label) - half :]}"
    )


_target_axes: ContextVar[Axes | None] = ContextVar("axes", default=None)


@contextmanager
def drawing_on(axes: Axes) -> Iterator[None]:
    """Context manager that draws the next figure on these axes, with a legend, not end labels."""
    token = _target_axes.set(axes)
    try:
        yield
    finally:
        _target_axes.reset(token)


def empty_figure() -> tuple[Figure, Axes]:
    """Return a figure whose axes leave room for end labels; or those of `drawing_on`."""
    if (target := _target_axes.get()) is not None:
        return target.get_figure(root=True), target  # type: ignore[return-value]
    figure = Drawing(SIZE)
    axes = figure.add_axes((0.11, 0.15, 0.60, 0.76))
    axes.grid(axis="x", visible=False)
    return figure, axes


def four_panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with up to four panels in two columns, and room below for a legend."""
    figure = Drawing((SIZE[0], SIZE[1] + 0.9))
    corners = [(0.13, 0.66), (0.58, 0.66), (0.13, 0.25), (0.58, 0.25)][:count]
    return figure, [figure.add_axes((*corner, 0.39, 0.27)) for corner in corners]


def one_panel(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Return a figure of one panel, with room for its labels; or those of `drawing_on`."""
    if (target := _target_axes.get()) is not None:
        return target.get_figure(root=True), target  # type: ignore[return-value]
    figure = Drawing(size, layout="constrained")
    return figure, figure.subplots()


def score_scale(group: Group) -> float:
    """Return the factor with which a score is shown: accuracies are percentages."""
    return 100.0 if group.higher_better else 1.0
