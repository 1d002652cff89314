"""Rows as text for the terminal, and the comparison of ours with the best peer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from metalearn.bench.contenders import PEERS
from metalearn.report.numbers import duration

Row = dict[str, Any]


def size(count: float | None) -> str:
    """Format bytes: 0.3 MiB, 118 MiB, 1.4 GiB."""
    if count is None:
        return "–"
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.3g} KiB"


def engine_label(row: Row) -> str:
    """native (compiled:4), torchopt (MetaSGD), ..."""
    detail = engine_detail(row)
    return f"{row['engine']} ({detail})" if detail else str(row["engine"])


def engine_detail(row: Row) -> str:
    """compiled:4, auto compiled:4, MetaSGD, or nothing."""
    if row.get("chose"):
        return f"auto {row['chose']}"
    executor, form = row.get("executor") or "", row.get("form") or ""
    executor = f"{executor}:{row['chunk']}" if row.get("chunk") else executor
    return ", ".join(part for part in (executor, form) if part)


def groups(rows: Iterable[Row]) -> dict[tuple[str, int], list[Row]]:
    """Group rows by workload and number of tasks, in their order."""
    result: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        result.setdefault((row["workload"], row["tasks"]), []).append(row)
    return result


def best(rows: Iterable[Row], engines: Sequence[str]) -> Row | None:
    """Return the fastest timed row of these engines."""
    timed = [row for row in rows if row["engine"] in engines and row.get("median_seconds")]
    return min(timed, key=lambda row: float(row["median_seconds"]), default=None)


def speedup(rows: Iterable[Row], engines: Sequence[str] = PEERS) -> float | None:
    """Return the best time of `engines` over that of our best executor; None without both."""
    rows = list(rows)
    ours, theirs = best(rows, ("native",)), best(rows, engines)
    if ours is None or theirs is None:
        return None
    return float(theirs["median_seconds"] / ours["median_seconds"])


def auto_over_best(rows: Sequence[Row]) -> float | None:
    """Return the time of auto's whole run over that of the best executor; None without both.

    It includes trials, compilation and steps."""
    runs = [
        (row["executor"] == "auto", row["run_seconds"]) for row in rows if row.get("run_seconds")
    ]
    auto = [seconds for is_auto, seconds in runs if is_auto]
    others = [seconds for is_auto, seconds in runs if not is_auto]
    return float(auto[0] / min(others)) if auto and others else None


def times(ratio: float | None) -> str:
    """2.5 x, 31 x, or a dash."""
    return "–" if ratio is None else f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def share_of_limit(row: Row | None, facts: Row) -> float | None:
    """Return the time of the step's FLOPs at the rate of a plain convolution, over the row's."""
    rate, flops = facts.get("conv_flops_per_second"), facts.get("flops")
    if row is None or not rate or not flops or not row.get("median_seconds"):
        return None
    return float(flops / rate / row["median_seconds"])


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print one table of all rows; ratios are relative to our best executor."""
    title = "one meta-step: sample, meta-gradient, meta-update (sampling: one episode)"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=0)
    table.add_column("workload, tasks / engine", overflow="fold")
    columns = {"median": 7, "IQR": 7, "x ours": 6, "1st step": 8, "peak": 8, "error": 5}
    for head, width in columns.items():
        table.add_column(head, justify="right", no_wrap=True, min_width=width)
    for (workload, tasks), group in groups(rows).items():
        ours = best(group, ("native",))
        table.add_row(f"[bold]{workload}[/bold], {tasks}")
        for index, row in enumerate(group):
            table.add_row(*_cells(row, ours), end_section=index == len(group) - 1)
    (console or Console()).print(table)


def _cells(row: Row, ours: Row | None) -> list[str]:
    if row.get("error"):
        return [f"  {engine_label(row)}", "error", *[""] * 4, _error(row)]
    ratio = None if ours is None else row["median_seconds"] / ours["median_seconds"]
    seconds = [duration(row["median_seconds"]), duration(row["iqr_seconds"]), times(ratio)]
    first = duration(row["compile_seconds"])
    return [f"  {engine_label(row)}", *seconds, first, size(row["peak_bytes"]), _error(row)]


def _error(row: Row) -> str:
    return "–" if row["gradient_error"] is None else f"{row['gradient_error']:.0e}"
