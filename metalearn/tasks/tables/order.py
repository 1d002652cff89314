"""Order of the rows of each class or group by a column, such as the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metalearn.errors import ConfigError
from metalearn.logger import warn_once
from metalearn.storage.columns import numbers

Array = NDArray[Any]


def order_problem(order: str | None, target: str, group: str | None) -> str:
    """Return why a column cannot order the rows of a class or group; empty if it can."""
    if order is None or order not in (target, group):
        return ""
    kind = "target, which is unknown for queries" if order == target else "group"
    return f"order: {order!r} is the column of the {kind}: name another, such as the time"


def check_order_array(columns: Mapping[str, Array]) -> None:
    """Raise ConfigError if an array of the order, a new column `order`, would become an input."""
    if "x" not in columns or "order" in columns:
        text = "is an array, but x has columns by name: add it to them, and pass its name here"
        raise ConfigError(("order", text))


def order_rows(
    columns: Mapping[str, Array],
    labels: Array,
    classes: Sequence[int],
    order: str | None,
    shots: int,
    split: str,
) -> NDArray[np.int64]:
    """Return the indices of the rows of `classes`, class after class.

    labels [R] are the classes of all rows. The rows of a class are sorted by the column `order`, or
    as in the file if it is None. Warns once if the first `shots` rows are not unique. Raises
    ConfigError if the column does not hold numbers."""
    rows = [np.flatnonzero(labels == number) for number in classes]
    if order is not None:
        values = _values(columns[order], order)
        rows = [own[np.argsort(values[own], kind="stable")] for own in rows]
        _warn_of_ties([values[own] for own in rows], order, shots, split)
    return np.concatenate(rows)


def _values(column: Array, name: str) -> NDArray[np.float64]:
    """Return the values [R] of the column of the order."""
    values: NDArray[np.float64] = numbers(column, name, "order")
    if values.size != len(values):
        text = f"column {name!r} must have one number in each row (got {list(values.shape)})"
        raise ConfigError(("order", text))
    return values.reshape(-1)


def _warn_of_ties(values: Sequence[Array], name: str, shots: int, split: str) -> None:
    """Warn of sorted values whose last support row is equal to the row after it."""
    tied = sum(len(own) > shots and bool(own[shots - 1] == own[shots]) for own in values)
    if tied:
        text = f"task: {tied} of {len(values)} classes or groups of the {split} split have the same"
        text += f" {name!r} in row {shots} and row {shots + 1} of their order"
        warn_once(f"{text}: the row that comes first in the file is the support row")
