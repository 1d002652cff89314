"""The rows as a Markdown table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from metalearn.report.figures.style import MARKERS, PALETTE, RC, svg
from metalearn.report.markdown import table

Row = dict[str, Any]


def markdown(result: dict[str, Any]) -> str:
    """Render a section for the problem that was trained on, and one per other problem."""
    lines = [f"# {result['experiment']}: learned and hand-made optimizers", "", _what(result), ""]
    for problem in result["problems"]:
        lines += [
            f"## {problem['name']}",
            "",
            _table(problem["rows"], result["points"], result["headline"]),
            "",
        ]
        lines += [*_paired(problem["paired"], result["headline"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _what(result: dict[str, Any]) -> str:
    return (
        f"Training loss after so many steps, on {result['tasks']} fresh tasks and "
        f"{result['inner_seeds']} inner seeds (starts and orders of data), {len(result['seeds'])} "
        "meta-training seeds. A cell holds the mean ± half its 95 % interval over tasks / over "
        f"meta-training seeds. Rates of the hand-made rules: the best of {len(result['grid'])} "
        f"half decades on {result['tuning_tasks']} other tasks, chosen for each number of steps; "
        "`per task`: the best rate of each test task, which nobody knows beforehand. Adam's steps "
        "for the same: the least in which Adam at some rate gets as low as the row at step "
        f"{result['headline']}; its FLOPs and its seconds are of those steps, as multiples of the "
        "row's own."
    )


def _table(rows: Sequence[Row], points: Sequence[int], headline: int) -> str:
    shown = [point for point in points if point]
    head = ["optimizer", *(f"step {point}" for point in shown), "rate", "diverged"]
    head += ["Adam's steps for the same", "its FLOPs", "its seconds"]
    head += ["us per step", "FLOPs per step"]
    lines = []
    index = list(points).index(headline)
    adam = next((row for row in rows if row["label"] == "adam"), {})
    for row in sorted(
        rows, key=lambda row: (row["kind"] == "per_task", _worst_last(row["loss"][index]))
    ):
        cells = [row["label"], *(_cell(row, list(points).index(point)) for point in shown)]
        cells += [_rate(row, headline), f"{100 * row['diverged'][index]:.1f} %", _adam(row)]
        cells += [
            _against(row, adam, headline, cost) for cost in ("flops_per_step", "seconds_per_step")
        ]
        cells += [f"{1e6 * row['seconds_per_step']:.1f}", _count(row["flops_per_step"])]
        lines.append(cells)
    return table(head, lines)


def _worst_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _cell(row: Row, index: int) -> str:
    value, tasks, seeds = (
        row["loss"][index],
        row["loss_ci95_tasks"][index],
        row["loss_ci95_seeds"][index],
    )
    if value is None:
        return "not finite"
    text = f"{value:.4f} ± {tasks:.4f}" if tasks is not None else f"{value:.4f}"
    text += f" / {seeds:.4f}" if seeds is not None else ""
    return f"**{text}**" if row["kind"] == "learned" else text


def _rate(row: Row, headline: int) -> str:
    rate = (row.get("rates") or {}).get(str(headline))
    return "learned" if row["kind"] == "learned" else "its own" if rate is None else f"{rate:.2g}"


def _adam(row: Row) -> str:
    """Return the steps that tuned Adam takes to this row's loss at the headline step."""
    adam_steps = row.get("adam_steps")
    if adam_steps is None:
        return ""
    return (
        f"{adam_steps['steps']}"
        if adam_steps["steps"] is not None
        else f"over {adam_steps['within']}"
    )


def _against(row: Row, adam: Row, headline: int, cost: str) -> str:
    """Return the cost of those steps of tuned Adam, as a multiple of that of the row's steps to
    the headline."""
    steps, row_cost, adam_cost = (
        (row.get("adam_steps") or {}).get("steps"),
        row.get(cost),
        adam.get(cost),
    )
    return (
        f"{steps * adam_cost / (headline * row_cost):.2g}x"
        if steps is not None and row_cost and adam_cost
        else ""
    )


def _count(flops: int | None) -> str:
    return "" if flops is None else f"{flops:,}"


def _paired(rows: Sequence[Row], headline: int) -> list[str]:
    if not rows:
        return []
    lines = [
        f"Difference at step {headline} to each hand-made rule, paired over tasks (negative: "
        f"the learned is lower):",
        "",
    ]
    for row in rows:
        if row["difference"] is None:
            lines.append(f"* {row['a']} - {row['b']}: not defined, as a run is not finite")
            continue
        ends = "" if row["ci95"] is None else " [{:+.4f}, {:+.4f}]".format(*row["ci95"])
        lines.append(f"* {row['a']} - {row['b']}: {row['difference']:+.4f}{ends}")
    return lines


def picture(result: dict[str, Any]) -> str:
    """Plot training loss against steps, one panel per problem, logarithmic; learned rules thick."""
    problems = result["problems"]
    columns = min(len(problems), 3)
    lines = -(-len(problems) // columns)
    with matplotlib.rc_context(RC | {"font.size": 9}):
        figure = Figure((4.2 * columns + 1.6, 3.2 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False)
        for index, problem in enumerate(problems):
            _panel(panels[index // columns][index % columns], problem, result["points"])
        for index in range(len(problems), lines * columns):
            panels[index // columns][index % columns].set_visible(False)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        return svg(figure, "l2o")


def _panel(axes: Any, problem: dict[str, Any], points: Sequence[int]) -> None:
    """Plot learned rules thick and black, each hand-designed one in a colour, its cosine schedule
    dashed in the same."""
    shown = [row for row in problem["rows"] if row["kind"] != "per_task"]
    rules = list(
        dict.fromkeys(row["label"].split(",")[0] for row in shown if row["kind"] == "baseline")
    )
    for row in shown:
        learned, name = row["kind"] == "learned", row["label"].split(",")[0]
        rule_index = 0 if learned else rules.index(name)
        style = (
            {"lw": 2.4, "color": "#1f2328"}
            if learned
            else {"lw": 1.1, "color": PALETTE[rule_index]}
        )
        style |= {
            "ls": "--" if "," in row["label"] else "-",
            "marker": "" if learned else MARKERS[rule_index],
            "ms": 3.5,
        }
        heights = [float("nan") if value is None else value for value in row["loss"]]
        axes.plot(points, heights, label=row["label"], **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(problem["name"], loc="left", fontsize=9)
    axes.set_xlabel("steps")
    axes.set_ylabel("training loss")
