"""Columns of rows in memory: arrays, tables, and data sets of other packages.

Nothing is imported: a data set is recognised by its methods."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from metalearn.errors import ConfigError
from metalearn.logger import warn_once
from metalearn.storage.columns import (
    array_columns,
    as_texts,
    check_exact_labels,
    has_no_label,
    is_missing,
    missing_label_hint,
    require_dense,
    similar_names,
    stack_entries,
)
from metalearn.tasks.tables.splits import BY_FILE, SPLITS

Array = npt.NDArray[Any]
NO_VALUE = ("na", "n/a", "none", "null")  # texts that some programs write for a missing value
READ_AGAIN = 16  # rows of a data set that are read twice, to find random transforms
COLOUR_SPACES = ("HSV", "LAB", "YCbCr")  # of images, whose channels are read as they are


def to_columns(data: Any, target: str, group: str | None = None) -> dict[str, Array]:
    """Return columns by name, each [rows, ...]; `target` and `group` name those of labels.

    An array is the column x. A mapping of columns, a DataFrame and a Hugging Face Dataset have
    columns by name. Rows of a torch Dataset are (x, y), a dict, or x alone. A mapping of splits to
    any of these (such as a DatasetDict) gets a column `split`. Raises ConfigError otherwise."""
    data = require_dense(data, "x")
    if isinstance(data, np.ndarray):
        return {name: to_array(column) for name, column in array_columns(data).items()}
    if isinstance(data, torch.Tensor):
        return {"x": to_array(data)}
    if isinstance(data, Mapping):
        if data and all(str(name) in SPLITS and _is_table(part) for name, part in data.items()):
            return _join_splits(data, target, group)
        _check_splits(data)
        return {str(name): to_array(column) for name, column in data.items()}
    names = getattr(data, "column_names", None)
    if names is not None and not isinstance(names, Mapping) and hasattr(data, "__getitem__"):
        columns = {str(name): to_array(data[name]) for name in names}
        _check_class_labels(
            data, {name: columns[name] for name in (target, group) if name in columns}
        )
        return columns
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        if len(set(data.columns)) < len(data.columns):
            raise ConfigError(("x", f"names a column twice: {', '.join(map(str, data.columns))}"))
        return {str(name): to_array(data[name].to_numpy()) for name in data.columns}
    if isinstance(data, tuple) and len(data) == 2 and all(map(_is_array, data)):
        return {"x": to_array(data[0]), target: to_array(data[1])}
    if isinstance(data, list | tuple) and not (data and _is_row(data[0])):
        return {"x": to_array(data)}
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return _columns_from_rows(data, target)
    text = "pass an array, columns by name, or a data set with a length"
    hint = ": list(data) has one" if hasattr(data, "__iter__") else ""
    raise ConfigError(("x", f"is a {type(data).__name__}: {text}{hint}"))


def _check_splits(data: Mapping[Any, Any]) -> None:
    """Raise ConfigError for data sets by name, some of which are not splits."""
    tables = all(
        isinstance(part, Mapping) or hasattr(part, "column_names") for part in data.values()
    )
    others = [str(name) for name in data if str(name) not in SPLITS]
    if tables and len(others) < len(data):
        text = f"{others[0]!r} is not a split: pass train, valid and test alone"
        raise ConfigError(("x", text))


def _check_class_labels(data: Any, columns: Mapping[str, Array]) -> None:
    """Raise ConfigError for rows of a Hugging Face Dataset without a label (-1)."""
    features = getattr(data, "features", None)
    if not isinstance(features, Mapping):
        return
    for name, column in columns.items():
        classes = hasattr(features.get(name), "int2str") and column.dtype.kind in "if"
        if classes and (column < 0).any():
            text = f"column {name!r} has rows without a label (-1): remove them with filter"
            raise ConfigError(("x", text))


def _is_row(item: Any) -> bool:
    """Return whether an item of a list is a row (x, y) or a dict, not a part of an array."""
    return isinstance(item, Mapping) or (isinstance(item, tuple) and not np.isscalar(item[0]))


def _is_array(part: Any) -> bool:
    return isinstance(part, torch.Tensor | np.ndarray)


def _is_table(part: Any) -> bool:
    return isinstance(part, Mapping) or (
        hasattr(part, "__getitem__") and not isinstance(part, torch.Tensor | np.ndarray | list)
    )


def _join_splits(parts: Mapping[str, Any], target: str, group: str | None) -> dict[str, Array]:
    tables = {SPLITS[str(name)]: to_columns(part, target, group) for name, part in parts.items()}
    names = [set(table) for table in tables.values()]
    if any(columns != names[0] for columns in names):
        listing = "; ".join(f"{split}: {', '.join(table)}" for split, table in tables.items())
        raise ConfigError(("x", f"the splits have different columns: {listing}"))
    joined = {
        name: np.concatenate([table[name] for table in tables.values()])
        for name in next(iter(tables.values()))
    }
    lengths = [len(next(iter(table.values()))) for table in tables.values()]
    return {**joined, "split": np.repeat(list(tables), lengths)}


def _columns_from_rows(data: Any, target: str) -> dict[str, Array]:
    """Return the columns of a data set that yields one row at a time."""
    rows = [_pair(data[number]) for number in range(len(data))]
    if not rows:
        raise ConfigError(("x", "the data set has no rows"))
    for number, row in enumerate(rows[:READ_AGAIN]):
        if not _is_same(row, _pair(data[number])):
            text = f"row {number + 1} differs each time it is read, as after a random transform,"
            text += " but rows are read once: pass the data set without that transform"
            raise ConfigError(("x", text))
    if all(isinstance(row, Mapping) for row in rows):
        names = set(rows[0])
        if numbers := [number for number, row in enumerate(rows, 1) if set(row) != names]:
            columns, first = (", ".join(map(str, rows[n])) for n in (numbers[0] - 1, 0))
            text = f"row {numbers[0]} has the columns {columns}, row 1 has {first}"
            raise ConfigError(("x", text))
        return {str(name): to_array([row[name] for row in rows]) for name in rows[0]}
    if all(isinstance(row, tuple) and len(row) == 2 for row in rows):
        return {"x": to_array([row[0] for row in rows]), target: to_array([row[1] for row in rows])}
    if any(isinstance(row, tuple | Mapping) for row in rows):
        raise ConfigError(("x", "rows of a data set must be (x, y), a dict of columns, or x"))
    return {"x": to_array(rows)}


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two reads of a row, or of a part of it, are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = _to_numpy(one), _to_numpy(other)
    one, other = np.asarray(one), np.asarray(other)
    floats = one.dtype.kind in "fc" and other.dtype.kind in "fc"
    return np.array_equal(one, other, equal_nan=floats)


def _pair(row: Any) -> Any:
    """Return a row [x, y] whose x is an array or an image as a tuple; others unchanged."""
    pair = isinstance(row, list) and len(row) == 2
    if pair and (_is_array(row[0]) or hasattr(row[0], "getbands")) and np.ndim(row[1]) == 0:
        return tuple(row)
    return row


def _to_numpy(values: torch.Tensor) -> Array:
    """Return the array of a tensor; numpy has no bfloat16."""
    values = values.detach().cpu().resolve_conj().resolve_neg()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())


def to_array(values: Any) -> Array:
    """Return values as one array [rows, ...]; raises ConfigError if rows differ in shape."""
    values = require_dense(values, "x")
    if isinstance(values, torch.Tensor):
        return _to_numpy(values)
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values):
        if isinstance(values[0], torch.Tensor):
            values = [_to_numpy(item) for item in values]
        elif hasattr(values[0], "getbands"):  # a PIL image: [channels, H, W] in 0..1
            values = [_pixels(item) for item in values]
            if len(shapes := {item.shape for item in values}) > 1:
                text = f"images have shapes {sorted(map(list, shapes))}: convert them to one"
                raise ConfigError(("x", text))
        if _is_mixed(values):  # numpy would make texts of all; as labels they are refused
            return np.array(values, dtype=object)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ConfigError(("x", f"rows have different shapes ({error})")) from error
    if array.dtype != object:
        return array
    try:
        array = stack_entries(array)
    except ValueError as error:
        raise ConfigError(("x", f"rows have different shapes ({error})")) from error
    if array.dtype != object:
        return array
    missing = is_missing(array)
    present = array[~missing]
    if present.size and not isinstance(present[0], str):
        if not all(isinstance(item, int | float | np.number) for item in present):
            text = f"rows hold {', '.join(sorted({type(item).__name__ for item in present.flat}))}"
            raise ConfigError(("x", f"{text}: use numbers, or strings for labels"))
        values = [math.nan if lost else item for item, lost in zip(array.flat, missing.flat)]
        return np.array(values).reshape(array.shape)
    return array


def _is_mixed(values: Sequence[Any]) -> bool:
    """Return whether there are texts among numbers."""
    texts = any(isinstance(value, str) for value in values)
    return texts and any(isinstance(value, int | float | np.number) for value in values)


def _pixels(image: Any) -> Array:
    from metalearn.tasks.folders.decode import standard

    grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I;16")
    try:
        plain = standard(image)
        if plain.mode not in COLOUR_SPACES:
            plain = plain.convert("L" if grey else "RGB")
    except ValueError as error:
        raise ConfigError(("x", f"holds an image of mode {image.mode}: {error}")) from error
    pixels = np.asarray(plain, dtype=np.float32) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def hash_columns(columns: Mapping[str, Array]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of the columns."""
    digest = hashlib.sha256()
    for name in sorted(columns):
        column = np.ascontiguousarray(columns[name])
        digest.update(f"{name} {column.dtype.str} {column.shape}".encode())
        # bytes of an array of objects are their addresses
        texts = column.dtype == object
        digest.update(repr(column.tolist()).encode() if texts else column.tobytes())
    return digest.hexdigest()


def label_names(columns: dict[str, Array], group: str | None, target: str) -> Array:
    """Return the class or group of each row as text; 3.0 becomes "3" in every numeric type."""
    field, column = ("group", columns[group]) if group else ("target", columns[target])
    column = column.reshape(len(column)) if column.size == len(column) else column
    if column.ndim > 1:
        text = f"names the tasks and must be one column (got {list(column.shape)})"
        text += ": one-hot rows are labels by y.argmax(1)" if column.ndim == 2 else ""
        raise ConfigError((field, text))
    if (unlabelled := np.flatnonzero(has_no_label(column))).size:
        text = "has no label" if str(column[unlabelled[0]]).strip() else "is empty"
        hint = missing_label_hint(column[unlabelled[0]])
        text += f" in row {unlabelled[0] + 1}{hint}: remove such rows"
        raise ConfigError((field, text))
    if column.dtype == object and _is_mixed(column.tolist()):
        raise ConfigError((field, "mixes strings with numbers: use labels of one type"))
    if np.issubdtype(column.dtype, np.floating):
        if not np.isfinite(column).all():
            raise ConfigError((field, "contains labels that are not finite"))
        check_exact_labels(column, field)
        integral = (column == np.round(column)).all()
        column = column.astype(np.int64) if integral else column + 0.0  # -0 is 0
    texts = as_texts(column, field)
    names = [unicodedata.normalize("NFC", name.strip()) for name in texts]
    _check_names(sorted(set(names)), field)
    return np.array(names)


def _check_names(names: Sequence[str], field: str) -> None:
    """Raise ConfigError for two spellings of one name; warn of texts that may mean no label."""
    if pair := similar_names(names):
        text = f"contains labels that differ only in spaces, Unicode form or .0, {pair}"
        raise ConfigError((field, f"{text}: use one spelling"))
    for name in names:
        if name.lower() in NO_VALUE:
            text = f"the label {name!r} is a class or group as any other"
            warn_once(f"task: {text}: remove its rows if it means a missing value")


def by_class(columns: dict[str, Array], target: str | None, group: str | None) -> dict[str, Array]:
    """Return rows of x [classes, rows of each, *X] if there is no target; else all unchanged."""
    if target is not None:
        return columns
    x = columns.get("x")
    if x is None or x.ndim < 3 or group:
        text = "null means that x is [classes, rows of each, *X], and x is"
        raise ConfigError(("target", f"{text} {None if x is None else list(x.shape)}"))
    labels = np.repeat(np.arange(len(x)), x.shape[1])
    return {"x": x.reshape(-1, *x.shape[2:]), "y": labels}


def by_file(tables: dict[str, dict[str, Array]]) -> dict[str, Array]:
    """Return the rows of several files with a column of splits."""
    names = [list(table) for table in tables.values()]
    if any(set(columns) != set(names[0]) for columns in names):
        listing = "; ".join(f"{split}: {', '.join(table)}" for split, table in tables.items())
        raise ConfigError(("path", f"the files have different columns: {listing}"))
    lengths = [len(next(iter(table.values()))) for table in tables.values()]
    joined = {name: np.concatenate([t[name] for t in tables.values()]) for name in names[0]}
    return {**joined, BY_FILE: np.repeat(list(tables), lengths)}


def check_lengths(columns: dict[str, Array]) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(("x", f"columns have unequal lengths: {lengths}"))


def check_counts(counts: Mapping[str, int], need: int, ways: int | None, split: str) -> None:
    """Raise ConfigError if a split has too few classes for a task, or a class too few rows.

    counts: the rows of each class of the split, or of each group if `ways` is None; need: K + Q."""
    problems = []
    kind, least = ("groups", 1) if ways is None else ("classes", max(2, ways))
    if len(counts) < least:
        text = f"the {split} split has {len(counts)} {kind}, but a task needs {least}"
        problems.append(("group" if ways is None else "ways", text))
    small = [f"{name} ({count})" for name, count in counts.items() if count < need]
    if small:
        text = f"shots + queries = {need} rows, but {kind} of {split} have fewer: "
        text += ", ".join(small[:5])
        if ways is not None and len(small) == len(counts):
            text += "; regression needs `group`, the column of tasks"
        problems.append(("shots", text))
    if problems:
        raise ConfigError(*problems)
