"""Repeated rows of a table, and values that are the same in all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from metalearn.errors import ConfigError
from metalearn.logger import warn_once

Rows = NDArray[np.bool_]


def repeats(
    x: NDArray[Any], y: NDArray[Any] | None, labels: NDArray[Any], train: Rows, test: Rows
) -> dict[str, int]:
    """Count repeated rows of x [R, *X], for `facts`; counts of 0 are omitted.

    labels [R] are the classes of the rows; with values y [R, C] their groups, and rows are equal if
    their values are equal, too. `rows_in_several`: in another class or group as well;
    `rows_repeated`: beyond the first in their own; `test_rows_in_training`. train, test [R]: rows
    of these splits. Warns once of the first two."""
    flat = _flat(x, y)
    keys = np.fromiter((hash(row.tobytes()) for row in flat), np.int64, len(flat))
    row_ids = np.unique(keys, return_inverse=True)[1]  # [R], the index of each distinct row
    pairs = np.unique(row_ids * (labels.max() + 1) + labels)  # of a row and a class or group
    class_counts = np.bincount(pairs // (labels.max() + 1))  # of each distinct row
    counts = {
        "rows_in_several": int((class_counts[row_ids] > 1).sum()),
        "rows_repeated": len(x) - len(pairs),
        "test_rows_in_training": int(np.isin(row_ids[test], row_ids[train]).sum()),
    }
    counts = {name: count for name, count in counts.items() if count}
    _warn(counts, len(x), y is not None)
    return counts


def _flat(x: NDArray[Any], y: NDArray[Any] | None) -> NDArray[np.float64]:
    """Return rows [R, F] whose bytes are the same if they are equal."""
    parts = [part.reshape(len(part), -1) for part in (x, y) if part is not None]
    return np.concatenate(parts, 1, dtype=np.float64) + 0.0  # -0 becomes 0


def _warn(counts: dict[str, int], rows: int, values: bool) -> None:
    kind, same = ("group", "inputs and values") if values else ("class", "inputs")
    several, again = (counts.get(name, 0) for name in ("rows_in_several", "rows_repeated"))
    if several:
        shared = counts.get("test_rows_in_training", 0)
        detail = f", {shared} of them test rows that are in training" if shared else ""
        text = f"{several} of {rows} rows have the same {same} as a row of another {kind}{detail}"
        warn_once(f"task: {text}: remove unintended repeats")
    if again:
        text = f"{again} of {rows} rows have the same {same} as another of their {kind}"
        warn_once(f"task: {text}, so that a query may be a row of the support set")


def check_varies(y: NDArray[Any], train: Rows, name: str) -> None:
    """Raise ConfigError if values y [R, C] are the same in all training rows.

    Warns once if some of their columns are. `name` is the column's in the file."""
    training = y[train]
    if len(training) < 2:
        return
    constant = np.flatnonzero((training == training[0]).all(0)).tolist()
    if constant and len(constant) == y.shape[1]:
        text = f"{name!r} is {training[0, 0]:.6g} in all {len(training)} rows of the training split"
        raise ConfigError(("target", f"{text}, so that there is nothing to predict"))
    if constant:
        text = (
            f"task: output {constant[0] + 1} of {name!r} is {training[0, constant[0]]:.6g} in all"
        )
        warn_once(f"{text} rows of the training split")
