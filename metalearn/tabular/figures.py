"""Output of a race on a table: grids for terminal and Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from metalearn.report.figures.style import (
    GREY,
    INK,
    MARKERS,
    PALETTE,
    SCRATCH,
    SOFT,
    Style,
    svg,
    with_style,
)
from metalearn.report.markdown import image, replace_section, table

Json = dict[str, Any]
RECKONINGS = {
    "truth": "searching the truth itself",
    "scores": "searching each task by its own scores",
}
STYLES = {
    "random": Style(SCRATCH, "o", "-"),
    "evolution": Style(PALETTE[0], MARKERS[0], "-"),
    "tpe": Style(PALETTE[1], MARKERS[1], "-"),
    "halving": Style(PALETTE[2], MARKERS[2], "-"),
    "params": Style(PALETTE[3], "", "-"),
    "flops": Style(PALETTE[4], "", "--"),  # where both coincide, both stay visible
}


class Grid(NamedTuple):
    """Format a table as text."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    below: Sequence[str] = ()  # sentences under it


def show(race: Json, console: Console | None = None) -> None:
    """Print every grid on the terminal."""
    screen = console or Console()
    screen.print(title(race), style="bold", highlight=False, soft_wrap=True)
    for grid in grids(race):
        style: Json = {"title_justify": "left", "title_style": "bold", "padding": (0, 1, 0, 0)}
        grid_table = Table(title=grid.title, box=SIMPLE, **style)
        for index, name in enumerate(grid.head):
            grid_table.add_column(name, justify="right" if index else "left", no_wrap=index == 0)
        for line in grid.lines:
            grid_table.add_row(*(cell.replace(" ± ", "\n±") for cell in line))
        if grid.lines:
            screen.print(grid_table)
        for sentence in grid.below:
            screen.print(sentence, highlight=False, soft_wrap=True)
    screen.print()


def title(race: Json) -> str:
    """Return the title: the table of the race and its tasks."""
    header, spec = race["header"], race["header"]["spec"]
    source = (header.get("task") or {}).get("source", "tasks")
    classes = f"{spec['ways']}-way " if spec["kind"] == "classification" else ""
    shape = f"{classes}{spec['shots']}-shot"
    return (
        f"{header['space']}, {race['networks']} networks; {source} {shape}, {header['tasks']} "
        f"tasks, {header['seeds']} trainings of each; regret in {metric(race)}, lower is better"
    )


def metric(race: Json) -> str:
    """Return the unit of regret."""
    return "accuracy" if race["header"]["spec"]["kind"] == "classification" else "squared error"


def grids(race: Json) -> list[Grid]:
    """Return all grids that the terminal and Markdown show."""
    curves = [_regrets(race, which) for which in RECKONINGS if race["curves"]]
    last = [grid for grid in (_paired(race), _picks(race)) if grid.lines]
    return [*curves, *last, _noise(race)]


def number(value: float | None, sign: str = "") -> str:
    """Format with four decimals below 1 and fewer above; None as a dash."""
    if value is None:
        return "–"
    digits = next((count for limit, count in ((1, 4), (10, 3), (100, 2)) if abs(value) < limit), 1)
    return f"{value:{sign}.{digits}f}"


def _with(value: float | None, half: float | None, sign: str = "") -> str:
    return number(value, sign) if half is None else f"{number(value, sign)} ± {number(half)}"


def _regrets(race: Json, which: str) -> Grid:
    rows = [row for row in race["curves"] if row["reckoning"] == which]
    lines, below = [], []
    for row in rows:
        lines.append([row["searcher"], *(_with(*pair) for pair in zip(row["regret"], row["ci95"]))])
        if "exact" in row:
            lines.append(["random, exact", *map(number, row["exact"])])
            where = "lies within" if row["agrees"] else "DOES NOT lie within"
            text = f"Random search {where} 4 standard errors of its exact expectation at every n."
            below.append(text)
    below.append(f"A network drawn at random: {number(race['chance'][which])}.")
    head = ["searcher, n", *map(str, rows[0]["evaluations"])]
    heading = (
        f"Regret after n evaluations, {RECKONINGS[which]}: mean ± 95 % interval over "
        f"{race['seeds']} seeds"
    )
    return Grid(heading, head, lines, below)


def _paired(race: Json) -> Grid:
    lines = [
        [
            row["searcher"],
            row["reckoning"],
            number(row["regret"]),
            number(row["difference"], "+"),
            " to ".join(number(end, "+") for end in row["ci95"]),
            row["verdict"],
            _with(row["over_exact"], row["over_exact_ci95"], "+"),
        ]
        for row in race["paired"]
    ]
    head = ["searcher", "reckoning", "regret", "over random's", "95 % interval", "verdict"]
    head.append("over theory's")
    below = [
        f"Verdicts: {race['rule']}. Intervals are not corrected for the number of searchers. Over "
        "theory's: against random search's exact expectation, so without the noise of its seeds."
    ]
    heading = f"Against random search at {race['budget']} evaluations, same seeds"
    return Grid(heading, head, lines, below)


def _picks(race: Json) -> Grid:
    lines, below = [], []
    for row in race["picks"]:
        ranks = [
            f"{row['rank']:.1f}",
            f"{row['percentile']:.0f} %",
            _with(row["regret"], row["ci95"]),
        ]
        gap = _with(row["over_chance"], row["over_chance_ci95"], "+")
        among = [f"{row['shared']['rank']:.1f}", number(row["shared"]["regret"])]
        lines.append([row["searcher"], *ranks, gap, *among])
        below = [
            f"Ranks are among {race['networks']} networks, 1 the best, "
            f"{(race['networks'] + 1) / 2:.1f} by chance; beats: the share of the others that are "
            "worth less; in all: by the mean truth of all tasks. Regret by chance: "
            f"{number(row['chance'])}, in all {number(row['shared']['chance'])}; of random search "
            f"with {race['budget']} evaluations of each task's scores, exactly: "
            f"{number(row['random_at_budget'])}."
        ]
    head = ["searcher", "rank", "beats", "regret", "over chance's", "rank in all", "regret in all"]
    heading = (
        "Picks of searchers that train, one a task: by that task's truth, mean ± 95 % "
        "interval over tasks"
    )
    return Grid(heading, head, lines, below)


def _noise(race: Json) -> Grid:
    noise = race["noise"]
    lines = [
        ["score and truth", _with(noise["tau"], noise["tau_ci95"])],
        ["score and the truth of one training", number(noise["one_seed"])],
        ["truths of two trainings: the ceiling", number(noise["ceiling"])],
        ["truths of two tasks", number(noise["between_tasks"])],
    ]
    below = [f"Regret of the best score of all networks: {number(noise['regret_of_best_score'])}."]
    if race["diverged"]:
        counted = (
            " and count as the largest loss that counts" if metric(race) == "squared error" else ""
        )
        below.append(f"{race['diverged']:.2%} of the trainings diverged{counted}.")
    return Grid(
        "Noise of the table: Kendall's tau, mean over tasks", ["between", "tau"], lines, below
    )


# Markdown

HEAD = """# Searchers on tables whose truth is known

Written by `metalearn nas race --markdown`; the section of a table is replaced by its next race,
text outside of the marked sections stays.
"""


def write_markdown(path: Path, race: Json, plot: Path | None) -> None:
    """Replace the section of the same table with this race's, or append it."""
    name = Path(race["table"]).stem
    content = markdown(race, "" if plot is None else image(plot, path, name))
    replace_section(path, f"race: {name}", content, HEAD)


def markdown(race: Json, picture: str = "") -> str:
    """Return the section: title, figure and every grid."""
    parts = [f"## {Path(race['table']).stem}", f"{title(race)}.", picture]
    for grid in grids(race):
        parts += [f"### {grid.title}", table(grid.head, grid.lines, left=1), *grid.below]
    return "\n\n".join(part for part in parts if part) + "\n"


# the figure


def drawing(race: Json) -> str:
    """Return regret against evaluations as a standalone SVG."""
    return svg(figure(race, (8.2, 4.2)), "race")


@with_style
def figure(race: Json, size: tuple[float, float]) -> Figure:
    """Plot regret against evaluations, one panel per reckoning, with 95 % bands over seeds.

    Also random search's exact expectation, and chance."""
    figure = Figure(size, layout="constrained")
    panels = figure.subplots(1, len(RECKONINGS), squeeze=False)[0]
    for axes, (which, title) in zip(panels, RECKONINGS.items()):
        rows = [row for row in race["curves"] if row["reckoning"] == which]
        top = race["chance"][which]
        _scales(axes, rows, top)
        for row in rows:
            _curve(axes, row)
        dots: Json = {"color": GREY, "lw": 0.9, "ls": (0, (1, 2)), "zorder": 1}
        axes.axhline(top, **dots, label="a network drawn at random")
        axes.set_title(title, loc="left", size="medium", color=INK)
    figure.supxlabel("evaluations, in full trainings (logarithmic)", size="medium", color=INK)
    figure.supylabel(f"regret in {metric(race)}, lower is better", size="medium", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
    return figure


def _curve(axes: Axes, row: Json) -> None:
    """Plot a line with its band; for a searcher that asks once, a horizontal line."""
    style, x = STYLES[row["searcher"]], np.asarray(row["evaluations"], np.float64)
    line: Json = {"color": style.color, "ls": style.dash, "label": row["searcher"]}
    if _asks_once(row):
        axes.plot(x, row["regret"], **line, lw=1.4, zorder=2)
        return
    low, high = _band(row)
    axes.fill_between(
        x, np.maximum(low, axes.get_ylim()[0]), high, color=style.color, alpha=0.14, lw=0
    )
    marks: Json = {"marker": style.marker, "ms": 4.6, "mec": "white", "mew": 0.7}
    axes.plot(x, row["regret"], **line, **marks, lw=1.6, zorder=3)
    if "exact" in row:
        axes.plot(
            x, row["exact"], color=INK, lw=1.1, ls=(0, (4, 2)), zorder=4, label="random, exact"
        )


def _asks_once(row: Json) -> bool:
    return STYLES[row["searcher"]].marker == ""


def _band(row: Json) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 95 % interval at each number of evaluations; without one, the mean twice."""
    y = np.asarray(row["regret"], np.float64)
    half = np.asarray([value or 0.0 for value in row["ci95"]], np.float64)
    return y - half, y + half


def _scales(axes: Axes, rows: Sequence[Json], top: float) -> None:
    """Set a logarithmic axis of evaluations; also of regret if it spans more than a factor of 8,
    linear around a regret of 0."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([float(count) for count in rows[0]["evaluations"]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(colors=SOFT)
    values = [
        value
        for row in rows
        for value in (*row["regret"], *row.get("exact", ()), top)
        if value is not None
    ]
    least, high = top / 100, 1.5 * max(values, default=1.0)
    if top <= 0 or max(values) < 8 * min(values):
        bands = [float(_band(row)[1].max()) for row in rows if not _asks_once(row)]
        axes.set_ylim(0, 1.05 * max([*values, *bands, top]) or 1.0)
        return
    if min(values) < least:
        axes.set_yscale("symlog", linthresh=least, linscale=0.5)
        axes.set_ylim(0, high)
    else:
        least = min(values) / 1.5
        axes.set_yscale("log")
        axes.set_ylim(least, high)
    ticks = [
        part * 10.0**power
        for power in range(-12, 13)
        for part in ((1, 2, 5) if high < 1000 * least else (1,))
    ]
    axes.yaxis.set_major_locator(
        FixedLocator([0.0, *(tick for tick in ticks if least <= tick <= high)])
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
