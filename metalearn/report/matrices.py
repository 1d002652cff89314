"""Tables of pairs as matrices: row against column, a number a cell, its interval on hover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metalearn.report import numbers
from metalearn.results.records import Group, Json

SIGNIFICANT = 0.05


class Entry(NamedTuple):
    """A cell: what it shows, what it says on hover, and how it is coloured."""

    text: str = ""
    title: str = ""
    kind: str = "none"  # better, worse, open, none


class Matrix(NamedTuple):
    """Cells by row and column; rows and columns without an entry are left out."""

    labels: list[str]  # of the columns
    cells: list[list[Entry]]
    rows: list[str]


def paired_matrix(groups: Sequence[Group], pairs: Sequence[Json], up: bool) -> Matrix:
    """Differences row minus column; coloured where the contrast of both is significant by Holm."""
    found: dict[tuple[str, str], Entry] = {}
    for pair in pairs:
        found[pair["a"], pair["b"]] = _difference(pair, 1, up)
        found[pair["b"], pair["a"]] = _difference(pair, -1, up)
    return _matrix(groups, found)


def _difference(pair: Json, sign: int, up: bool) -> Entry:
    a, b = (pair["a"], pair["b"]) if sign > 0 else (pair["b"], pair["a"])
    value, ends = pair["difference"], pair["ci95"]
    if value is None or ends is None:
        return Entry(numbers.NONE, f"{a} − {b}: {pair.get('why') or 'undefined'}")
    low, high = sorted(sign * end for end in ends)
    shown = numbers.signed(sign * value, up)
    title = f"{a} − {b}: {shown}, {numbers.signed(low, up)} to {numbers.signed(high, up)}"
    if not _is_significant(pair):
        return Entry(shown, title, "open")
    return Entry(shown, title, "better" if (sign * value > 0) == up else "worse")


def _is_significant(pair: Json) -> bool:
    """By the p of a contrast; of a comparison without contrasts, by the interval."""
    if "contrast" not in pair:
        return not pair["ci95"][0] <= 0 <= pair["ci95"][1]
    adjusted = pair.get("p_holm")
    return adjusted is not None and bool(adjusted <= SIGNIFICANT)


def break_even_matrix(groups: Sequence[Group], rows: Sequence[Json], axis: str) -> Matrix:
    """From which new task on the row's higher up-front cost is repaid against the column.

    At the hardest level of each pair; the method with the higher up-front cost has the row."""
    found: dict[tuple[str, str], Entry] = {}
    for row in sorted(rows, key=lambda row: row.get("level") or 0):
        if row["axis"] == axis:
            found[row["a"], row["b"]] = _repaid(row)
    return _matrix(groups, found)


def _repaid(row: Json) -> Entry:
    tested, verdict, count = row.get("contrast", True), row["verdict"], numbers.tasks(row["tasks"])
    title = f"{row['a']} against {row['b']}: "
    title += verdict.replace("_", " ") if tested else "an estimate, not tested"
    if row["ci95"] is not None:
        title += f", 95 % interval {numbers.interval(row['ci95'])}"
    if not tested:
        return Entry(count, title, "none" if row["tasks"] is None else "open")
    if verdict in ("pays", "always"):
        return Entry("always" if verdict == "always" else count, title, "better")
    words = {"never": "never", "same": "same", "not_reached": numbers.NONE}
    return Entry(words.get(verdict, "open"), title, "worse" if verdict == "never" else "none")


def _matrix(groups: Sequence[Group], found: dict[tuple[str, str], Entry]) -> Matrix:
    labels = [group.label for group in groups]
    rows = [label for label in labels if any((label, other) in found for other in labels)]
    columns = [label for label in labels if any((other, label) in found for other in labels)]
    empty = Entry()
    cells = [[Entry("·") if a == b else found.get((a, b), empty) for b in columns] for a in rows]
    return Matrix(columns, cells, rows)
