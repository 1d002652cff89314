"""Columns of a file of rows: .csv, .parquet, .npz or .npy, without pickles."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metalearn.errors import ConfigError, DataError
from metalearn.storage.files import UNREADABLE

Array = npt.NDArray[Any]


def read_columns(path: Path, place: str) -> dict[str, Array]:
    """Columns by name, each [rows, ...]; those of a .csv file are text. `place` is named in errors.

    A .npy file has the one column x. Raises ConfigError for another kind of file and for columns
    of unequal length, DataError for a file that cannot be read.
    """
    readers = {".csv": _csv, ".parquet": _parquet, ".npz": _npz, ".npy": _npy}
    if not path.is_file():
        raise ConfigError((place, f"{path} is not a file"))
    if path.suffix not in readers:
        raise ConfigError((place, f"{path} is none of {', '.join(readers)}"))
    found = readers[path.suffix](path, place)
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError((place, f"{path} has columns of unequal length: {lengths}"))
    if not lengths or not next(iter(lengths.values())):
        raise ConfigError((place, f"{path} holds no rows"))
    return found


def numbers(column: Array, name: str, place: str) -> Array:
    """A column as finite float64; ConfigError with the first rows that are not."""
    try:
        values = np.asarray(column, np.float64)
    except (ValueError, TypeError) as error:
        raise ConfigError((place, f"column {name!r} must hold numbers ({error})")) from error
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(bad):
        rows = ", ".join(str(row + 1) for row in bad[:5])
        raise ConfigError((place, f"column {name!r} is not finite in rows {rows}"))
    return values


def _csv(path: Path, place: str) -> dict[str, Array]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = [(n, row) for n, row in enumerate(csv.reader(handle), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError((place, f"{path} cannot be read: {error}")) from error
    if len(rows) < 2:
        raise ConfigError((place, f"{path} needs a header and at least one row"))
    header = [name.strip() for name in rows[0][1]]
    if len(set(header)) < len(header):
        raise ConfigError((place, f"{path} names a column twice: {', '.join(header)}"))
    wrong = [f"line {n}" for n, row in rows[1:] if len(row) != len(header)]
    if wrong:
        raise ConfigError((place, f"{path}: {', '.join(wrong[:5])}: not {len(header)} fields"))
    columns = zip(*(row for _, row in rows[1:]), strict=True)
    return {
        name: np.array([value.strip() for value in column])
        for name, column in zip(header, columns, strict=True)
    }


def _parquet(path: Path, place: str) -> dict[str, Array]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        text = f"{path} needs pyarrow (pip install pyarrow), or store its rows as .csv"
        raise ConfigError((place, text)) from error
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise DataError((place, f"{path} cannot be read: {error}")) from error
    return {name: table[name].to_numpy() for name in table.column_names}


def _npz(path: Path, place: str) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise DataError((place, f"{path} cannot be read: {error}")) from error


def _npy(path: Path, place: str) -> dict[str, Array]:
    try:
        return {"x": np.load(path, allow_pickle=False)}
    except UNREADABLE as error:
        raise DataError((place, f"{path} cannot be read: {error}")) from error
