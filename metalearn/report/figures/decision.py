"""The decision map: which method is the cheapest, by number of new tasks, target and queries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator

from metalearn.report.figures.axes import FigureData, four_panels, shorten
from metalearn.report.figures.style import GREY, INK, SMALL, Style, styles, with_style
from metalearn.report.numbers import level
from metalearn.results.records import Json

MOST_LABELS = 7  # targets written next to a panel
HATCH = "////"  # where the data do not settle the winner, or that there is none


@with_style
def decision_figure(data: FigureData, name: str) -> Figure | None:
    """Draw the cheapest method, one panel per number of queries; None without the map `name`."""
    groups, results = data
    grid: Json | None = results.get(name)
    if not grid or not winners(grid):
        return None
    style_of, names = styles(groups), winners(grid)
    figure, panels = four_panels(len(grid["queries"]))
    for number, (axes, queries) in enumerate(zip(panels, grid["queries"])):
        _draw_panel(axes, grid, number, style_of, inner=number % 2 == 1)
        suffix = ", as tested" if queries == grid["as_tested"] else ""
        axes.set_title(f"{queries:,} quer{'y' if queries == 1 else 'ies'} per task{suffix}", size=9)
        if number > 1:
            axes.set_xlabel("new tasks, logarithmic")
    handles = [Patch(color=style_of[name].color, label=shorten(name, 24)) for name in names]
    handles.append(Patch(facecolor="white", edgecolor=INK, hatch=HATCH, label="inconclusive"))
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=SMALL)
    return figure


def winners(grid: Json) -> list[str]:
    """Return the methods that win a cell, each once, in the order of their first cell."""
    names = (name for part in grid["winner"] for row in part for name in row)
    return list(dict.fromkeys(name for name in names if name is not None))


def _draw_panel(
    axes: Axes, grid: Json, number: int, style_of: dict[str, Style], *, inner: bool
) -> None:
    """Draw the cells of one number of queries, with the hardest target on top."""
    winner, settled = grid["winner"][number], grid["settled"][number]
    for row, names in enumerate(winner):
        column = 0
        for (name, clear), alike in groupby(zip(names, settled[row], strict=True)):
            width = len(list(alike))
            color = "white" if name is None else style_of[name].color
            _draw_cells(axes, (column, row), width, color, clear)
            column += width
    targets, tasks = grid["targets"], grid["tasks"]
    axes.set_xlim(0, len(tasks))
    axes.set_ylim(0, len(targets))
    axes.grid(visible=False)
    powers = [place for place in range(len(tasks)) if place % 4 == 0]
    axes.set_xticks([place + 0.5 for place in powers], [_power(tasks[place]) for place in powers])
    every = -(-len(targets) // MOST_LABELS)
    rows = range(0, len(targets), every)
    texts = ["" if inner else level(targets[row], grid["metric"]) for row in rows]
    axes.set_yticks([row + 0.5 for row in rows], texts)
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_cells(axes: Axes, corner: tuple[int, int], width: int, color: str, settled: bool) -> None:
    """Draw equal neighbouring cells of a row as one rectangle, which halves the time of drawing."""
    axes.add_patch(Rectangle(corner, width, 1, facecolor=color, edgecolor="none"))
    if not settled:
        line = GREY if color == "white" else "white"
        axes.add_patch(Rectangle(corner, width, 1, fill=False, edgecolor=line, hatch=HATCH, lw=0))


def _power(tasks: float) -> str:
    for unit, word in ((10**6, "M"), (10**3, "k")):
        if tasks >= unit:
            return f"{tasks / unit:g}{word}"
    return f"{tasks:g}"


def map_text(grid: Json | None, queries: int | None = None) -> str:
    """Return the map as text: letters of the winners, in lower case if the winner is not settled.

    `queries` restricts it to one number of queries per task. A number after a letter is that of the
    checkpoint along meta-training at which the winner stops."""
    if not grid or not winners(grid):
        return "no decision map: no target was set, or no method with a known cost reaches it"
    grid = grid if queries is None else _at_queries(grid, queries)
    letters = {name: chr(ord("A") + place % 26) for place, name in enumerate(winners(grid))}
    lines = [f"rows: {grid['metric']} that counts as solved; columns: number of new tasks"]
    if grid.get("pretraining") == "free":
        lines.append("without the cost of pretraining by others")
    left_out = list(grid.get("left_out") or ())
    if left_out:
        lines.append(
            f"left out, as a cost is unknown or there are no scores: {', '.join(left_out)}"
        )
    for number, count in enumerate(grid["queries"]):
        suffix = " (as tested)" if count == grid["as_tested"] else ""
        noun = "query" if count == 1 else "queries"
        lines.append(f"{count:,} {noun} per task{suffix}, cheapest in {grid['axis']}:")
        lines += _map_lines(grid, number, letters)
    along = grid.get("along") or {}
    for name, letter in letters.items():
        steps = along.get(name, ())
        numbers = ", ".join(f"{step:,}" for step in steps)
        cells = ", ".join(f"{letter}{number}" for number, _ in enumerate(steps, 1))
        note = f", also stopped after {numbers} meta-steps ({cells})" if steps else ""
        lines.append(f"{letter} {name}{note}")
    reached = f"no {'other ' if left_out else ''}method reaches it"
    end = f"small letter: inconclusive; .: {reached}; ?: none does, inconclusive"
    return "\n".join([*lines, end])


def _at_queries(grid: Json, queries: int) -> Json:
    """Return the part of a map for one of its numbers of queries; raises ValueError for others."""
    if queries not in grid["queries"]:
        text = f"the map has no {queries} queries per task; it has {grid['queries']}"
        raise ValueError(text)
    place = grid["queries"].index(queries)
    lists = ("queries", "winner", "settled", "stops_after")
    return grid | {name: [grid[name][place]] for name in lists if name in grid}


def _map_lines(grid: Json, number: int, letters: dict[str, str]) -> Sequence[str]:
    winner, settled = grid["winner"][number], grid["settled"][number]
    names = [level(value, grid["metric"]) for value in grid["targets"]]
    width, stops = max(map(len, names)), grid.get("stops_after")
    rows = list[tuple[str, str]]()
    for row in reversed(range(len(names))):
        after = stops[number][row] if stops else [None] * len(winner[row])
        cells = (
            _cell(name, letters, clear) + stop
            for name, clear, stop in zip(
                winner[row], settled[row], _stops(grid, winner[row], after), strict=True
            )
        )
        line = "".join(cell.ljust(5) for cell in cells)
        rows.append((f"  {names[row].rjust(width)}  {line}".rstrip(), line))
    lines = []
    for _, alike in groupby(rows, key=itemgetter(1)):
        texts = [text for text, _ in alike]
        between = [f"  {'...'.rjust(width)}  the same"] if len(texts) > 3 else texts[1:-1]
        lines += [texts[0], *between, *texts[1:][-1:]]
    heads = "".join(_power(tasks).ljust(5) for tasks in grid["tasks"])
    return [*lines, f"  {' ' * width}  {heads}".rstrip() + "  tasks"]


def _cell(name: str | None, letters: dict[str, str], settled: bool) -> str:
    if name is None:
        return "." if settled else "?"
    return letters[name] if settled else letters[name].lower()


def _stops(grid: Json, names: Sequence[str | None], after: Sequence[int | None]) -> list[str]:
    """Return the index of each winner's last step among those tested; empty for its whole
    training."""
    pairs = zip(names, after, strict=True)
    return [
        "" if step is None else f"{grid['along'][name].index(step) + 1}" for name, step in pairs
    ]
