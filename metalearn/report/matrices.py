"""Tables of pairs as matrices: row against column, one number per cell, its interval on hover."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from metalearn.evaluate.comparable import LARGEST_GAP
from metalearn.report import numbers
from metalearn.results.contrasts import SIGNIFICANT
from metalearn.results.records import Group, Json

MOST_SEEDS = 5  # listed on hover
Reading = Literal["different", "not distinguished", "exploratory", "not tested", "too few seeds"]


class Entry(NamedTuple):
    """A cell: its text, its text on hover, and its colour."""

    text: str = ""
    title: str = ""
    kind: str = "none"  # better, worse, open, none


class Matrix(NamedTuple):
    """Cells by row and column, without rows and columns that have no entry."""

    labels: list[str]  # of the columns
    cells: list[list[Entry]]
    rows: list[str]


def paired_matrix(groups: Sequence[Group], pairs: Sequence[Json], up: bool) -> Matrix:
    """Return differences row minus column, coloured if the contrast is significant by Holm."""
    entries: dict[tuple[str, str], Entry] = {}
    for pair in pairs:
        entries[pair["a"], pair["b"]] = _difference(pair, 1, up)
        entries[pair["b"], pair["a"]] = _difference(pair, -1, up)
    return _matrix(groups, entries)


def _difference(pair: Json, sign: int, up: bool) -> Entry:
    a, b = (pair["a"], pair["b"]) if sign > 0 else (pair["b"], pair["a"])
    value, ends = pair["difference"], pair["ci95"]
    if value is None or ends is None:
        return Entry(numbers.NONE, f"{a} − {b}: {pair.get('why') or 'undefined'}")
    low, high = sorted(sign * end for end in ends)
    text = numbers.signed(sign * value, up)
    title = f"{a} − {b}: {text}, {numbers.signed(low, up)} to {numbers.signed(high, up)}"
    title += f" ({describe_basis(pair)})"
    if not _is_significant(pair):
        return Entry(text, title, "open")
    return Entry(text, title, "better" if (sign * value > 0) == up else "worse")


def describe_basis(pair: Json) -> str:
    """Return the common seeds and tasks that a paired difference is over."""
    seeds = pair.get("seeds") or []
    listed = ", ".join(map(str, seeds)) if len(seeds) <= MOST_SEEDS else f"{len(seeds)} common ones"
    parts = [f"seed{'s' * (len(seeds) != 1)} {listed}"] if seeds else []
    parts += [f"{pair['tasks']:,} tasks"] if pair.get("tasks") else []
    return "; ".join(parts) or numbers.NONE


def reading(pair: Json) -> Reading:
    """Return what the test of a pair says: contrasts alone are tested, by their adjusted p."""
    if pair.get("p") is None:
        return "too few seeds"
    if pair.get("p_holm") is None or not pair.get("contrast"):
        return "not tested"
    if pair.get("exploratory"):
        return "exploratory"
    return "different" if pair["p_holm"] <= SIGNIFICANT else "not distinguished"


def _is_significant(pair: Json) -> bool:
    """Decide by the test of a contrast; in a comparison without contrasts, by the interval."""
    if "contrast" not in pair:
        return not pair["ci95"][0] <= 0 <= pair["ci95"][1]
    return reading({"p": pair.get("p_holm"), **pair}) == "different"


def break_even_matrix(
    groups: Sequence[Group],
    rows: Sequence[Json],
    axis: str,
    metric: str = "accuracy",
    shares: Mapping[tuple[str, float | None], float] | None = None,
) -> Matrix:
    """Return the new task from which on the row's higher up-front cost breaks even with the column.

    `rows` are at one level, in units of `metric`; the method with the higher up-front cost has the
    row. `shares` are those of `solved_shares`."""
    entries: dict[tuple[str, str], Entry] = {}
    test_tasks = {group.label: group.test_tasks for group in groups}
    for row in sorted(rows, key=lambda row: row.get("level") or 0):
        if row["axis"] == axis:
            tasks = min(test_tasks.get(row[side], 0) for side in ("a", "b"))
            entry = _break_even_entry(row, metric, shares or {}, tasks)
            entries[row["a"], row["b"]] = entry
    return _matrix(groups, entries)


def solved_shares(results: Json) -> dict[tuple[str, float | None], float]:
    """Return the fraction of solved tasks by label and level, as comparison.json has them."""
    return {
        (one["label"], share["level"]): share["share"]
        for one in results.get("solved") or []
        for share in one.get("shares") or []
    }


def uncounted(row: Json, shares: Mapping[tuple[str, float | None], float]) -> str:
    """Return why the estimate of a break-even row is not shown as a count; empty if it is.

    A count is the difference of two up-front costs over that of two costs per solved task, of
    methods that solve about equally many tasks: both differences must be distinguished from 0."""
    if row["tasks"] is None:
        return ""
    first, second = (shares.get((row[name], row.get("level"))) for name in ("a", "b"))
    if first is not None and second is not None and abs(first - second) > LARGEST_GAP + 1e-9:
        return f"the fractions of solved tasks are {100 * abs(first - second):.0f} points apart"
    if row["ci95"] is None:
        return ""
    low, high = (math.inf if end is None else end for end in row["ci95"])
    if high == math.inf:
        return "the costs per solved task are not distinguished"
    if low <= 1 < high:
        return "the up-front costs are not distinguished"
    return ""


def _break_even_entry(
    row: Json, metric: str, shares: Mapping[tuple[str, float | None], float], tasks: int
) -> Entry:
    is_contrast, verdict, count = (
        row.get("contrast", True),
        row["verdict"],
        numbers.tasks(row["tasks"]),
    )
    title = f"{row['a']} against {row['b']}: "
    title += verdict.replace("_", " ") if is_contrast else "an estimate, not tested"
    if row.get("level") is not None:
        title += f", at {numbers.level(row['level'], metric)}"
    if row["ci95"] is not None:
        title += f", 95 % interval {numbers.interval(row['ci95'])}"
    if row.get("seeds"):
        title += f" (seeds: {row['seeds'][0]} and {row['seeds'][1]}; {tasks:,} tasks)"
    if not is_contrast and (why := uncounted(row, shares)):
        return Entry(numbers.NONE, f"{title}; no count: {why}")
    if not is_contrast:
        return Entry(count, title, "none" if row["tasks"] is None else "open")
    if verdict in ("pays", "always"):
        return Entry("always" if verdict == "always" else count, title, "better")
    words = {"never": "never", "same": "same", "not_reached": numbers.NONE}
    return Entry(words.get(verdict, "open"), title, "worse" if verdict == "never" else "none")


def _matrix(groups: Sequence[Group], entries: dict[tuple[str, str], Entry]) -> Matrix:
    labels = [group.label for group in groups]
    rows = [label for label in labels if any((label, other) in entries for other in labels)]
    columns = [label for label in labels if any((other, label) in entries for other in labels)]
    empty = Entry()
    cells = [[Entry("·") if a == b else entries.get((a, b), empty) for b in columns] for a in rows]
    return Matrix(columns, cells, rows)
