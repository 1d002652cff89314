"""Columns of a file of rows: .csv, .tsv, .parquet, .npz or .npy, without pickles."""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from metalearn.errors import ConfigError, DataError, did_you_mean
from metalearn.logger import warn_once
from metalearn.storage.files import UNREADABLE

Array = npt.NDArray[Any]
GAPS = "remove rows with missing values, or fill them in"
DATES = "replace dates and times with numbers, such as hours since the first"
DATE = r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}\b|\d{1,2}:\d\d"  # the beginning of a date or a time
INVISIBLE = "[\u200b\u2060\ufeff]"  # zero width: joiners, and the byte order mark
EXACT = 2**53  # whole numbers from here on are rounded as float64
NO_LABEL = ("", "nan", "NaN", "<NA>", "NaT")  # texts of a missing value


def read_columns(path: Path, field: str) -> dict[str, Array]:
    """Return columns by name, each [rows, ...]; text for a .csv file. `field` is named in errors.

    A .csv file is separated by commas, or by semicolons or tabs if its header has no comma, in
    UTF-8, or in UTF-16 with a byte order mark. A .npy file has the single column x. Raises
    ConfigError for another kind of file and for columns of unequal length, DataError for a file
    that cannot be read."""
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".npz": _npz, ".npy": _npy}
    if not path.is_file():
        raise ConfigError((field, f"{path} is not a file"))
    if path.suffix.lower() not in readers:
        raise ConfigError((field, f"{path} must end with one of {', '.join(readers)}"))
    columns = readers[path.suffix.lower()](path, field)
    if single := [name for name, column in columns.items() if not column.ndim]:
        text = f"{path} contains {single[0]!r}, a single value and not a column: remove it"
        raise ConfigError((field, text))
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError((field, f"{path} has columns of unequal length: {lengths}"))
    if not lengths or not next(iter(lengths.values())):
        raise ConfigError((field, f"{path} has no rows"))
    return columns


def missing_column_text(name: str, columns: Sequence[str] | dict[str, Array]) -> str:
    """Return the end of a sentence about a file without the column `name`."""
    if list(columns) == ["x"]:  # as of a .npy file
        text = (
            f"has no column {name!r}, only an array x: an .npz file can contain both; with target"
        )
        return f"{text} null (None in Python) x is [classes, rows of each, *X]"
    return f"has no column {name!r}; {did_you_mean(name, columns)}"


def numbers(column: Array, name: str, field: str) -> Array:
    """Return a column as finite float64. Raises ConfigError with the first rows that are not."""
    try:
        column = stack_entries(column)
        if np.iscomplexobj(column) or column.dtype.kind in "mM":
            raise TypeError(f"got {column.dtype}" + f"; {DATES}" * (column.dtype.kind in "mM"))
        if column.dtype.kind in "OUS" and (np.char.find(as_texts(column, field), "_") >= 0).any():
            raise ValueError("a text with an underscore")  # which Python reads as a number
        values = np.asarray(column, np.float64)
    except (ValueError, TypeError) as error:
        text = f"column {name!r} must contain numbers "
        raise ConfigError((field, text + (_first_text(column) or f"({error})"))) from error
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(bad):
        rows = ", ".join(str(row + 1) for row in bad[:5])
        raise ConfigError((field, f"column {name!r} is not finite in rows {rows}: {GAPS}"))
    return values


def stack_inputs(columns: dict[str, Array], names: Sequence[str], field: str) -> Array:
    """Return inputs [rows, *X] from columns by name: one array, or [rows, columns] of numbers.

    Bytes of images [rows, ..., H, W] become numbers in 0..1."""
    parts: list[Array] = []
    problems: list[tuple[str, str]] = []
    for name in names:
        try:
            parts.append(numbers(columns[name], name, field))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    if len(set(names)) < len(names):
        raise ConfigError((field, f"names a column twice: {', '.join(names)}"))
    if len(parts) == 1 and parts[0].ndim > 1:
        image = columns[names[0]].dtype == np.uint8 and parts[0].ndim > 2
        _check_channels(parts[0].shape[1:], image, field)
        return parts[0] / 255 if image else parts[0]
    if arrays := [name for name, values in zip(names, parts, strict=True) if values.ndim > 1]:
        text = f"column {arrays[0]!r} is an array and must be the only column of inputs (got"
        text = f"{text} {', '.join(names)}): name one"
        raise ConfigError((field, text))
    return np.stack(parts, 1) if parts else np.zeros((0, 0))


def _check_channels(shape: tuple[int, ...], image: bool, field: str) -> None:
    """Raise ConfigError for bytes of images [H, W, channels]; warn for numbers of that shape."""
    channels = (1, 3, 4) if image else (3, 4)  # numbers [*, *, 1] may be anything
    if len(shape) != 3 or shape[-1] not in channels or min(shape[:2]) < 8 or shape[0] in channels:
        return
    text = f"have rows of shape {list(shape)}, but images must be [channels, H, W]: use "
    text += "x.transpose(0, 3, 1, 2)"
    if image:
        raise ConfigError((field, text))
    warn_once(f"{field} {text}, if they are images")


def default_inputs(columns: Sequence[str], field: str) -> list[str]:
    """Return the columns of inputs if none are named. Raises ConfigError for an unnamed column.

    Such a column is the index of a DataFrame, which reveals the classes of a sorted file."""
    unnamed = [name for name in columns if not name or name.startswith("Unnamed: ")]
    if unnamed:
        text = f"column {unnamed[0]!r} has no name, as the index of a DataFrame: write the file "
        raise ConfigError((field, text + "with to_csv(index=False), or name the inputs"))
    return list(columns)


def stack_entries(column: Array) -> Array:
    """Stack a column of arrays or lists of one length; return any other unchanged."""
    if column.dtype == object and len(column) and isinstance(column.flat[0], np.ndarray | list):
        return np.stack([np.asarray(entry) for entry in column])
    return column


def require_dense(values: Any, field: str) -> Any:
    """Return the values. Raises ConfigError if they are masked, sparse or quantized."""
    text = ""
    if np.ma.is_masked(values):
        text = "has masked entries, which have no value: " + GAPS
    elif str(getattr(values, "layout", "")).startswith("torch.sparse"):
        text = "is sparse: pass .to_dense()"
    elif hasattr(values, "nnz") and hasattr(values, "toarray"):
        text = "is sparse: pass .toarray()"
    elif getattr(values, "is_quantized", False):
        text = "is quantized: pass .dequantize()"
    if text:
        raise ConfigError((field, text))
    return values


def has_no_label(column: Array) -> NDArray[np.bool_]:
    """Return where a column has no label: no value, or a text of `NO_LABEL`."""
    missing = is_missing(column)
    if column.dtype.kind in "OUS":
        missing = missing | np.isin(np.char.strip(as_texts(column, "labels")), NO_LABEL)
    return missing


def as_texts(column: Array, field: str) -> Array:
    """Return a column as text, bytes decoded as UTF-8. Raises ConfigError for other bytes."""
    if column.dtype.kind != "S":
        return column.astype(str)
    try:
        return np.char.decode(column, "utf-8")
    except UnicodeDecodeError as error:
        text = f"contains bytes that are not UTF-8 ({error.object!r}): decode them to texts"
        raise ConfigError((field, text)) from error


def missing_label_hint(label: Any) -> str:
    """Return a hint about a text of `NO_LABEL` that may be a class; empty for other labels."""
    text = str(label).strip() if isinstance(label, str) else ""
    return f" ({text!r}; rename it if it is a class)" if text else ""


def similar_names(names: Sequence[str]) -> str:
    """Return two names that differ only in spaces, Unicode form or `.0`; empty without any."""
    spellings: dict[str, str] = {}
    for name in names:
        name = str(name)  # may be a numpy string
        normalised = unicodedata.normalize("NFC", re.sub(INVISIBLE, "", " ".join(name.split())))
        first = spellings.setdefault(re.sub(r"^([+-]?\d+)\.0*$", r"\1", normalised), name)
        if first != name:
            return f"{first!r} and {name!r}"
    return ""


def check_exact_labels(labels: Any, field: str) -> None:
    """Raise ConfigError for float labels too large for float64 to represent every integer."""
    array = np.asarray(labels)
    if array.dtype.kind == "f" and array.size and np.abs(array).max() >= EXACT:
        text = f"contains {array.flat[np.abs(array).argmax()]:.0f}, a float of more than 15 digits"
        raise ConfigError((field, f"{text}, which may be several labels: use integers or strings"))


def is_missing(column: Array) -> NDArray[np.bool_]:
    """Return where a column has no value: None, NaN or NaT."""
    if column.dtype == object:
        # pandas.NA equals nothing and has no truth value
        missing = [
            value is None or type(value).__name__ == "NAType" or value != value
            for value in column.flat
        ]
        return np.array(missing, bool).reshape(column.shape)
    if column.dtype.kind in "mM":
        return np.asarray(np.isnat(column))
    return (
        np.asarray(np.isnan(column)) if column.dtype.kind == "f" else np.zeros(column.shape, bool)
    )


def _first_text(column: Array) -> str:
    """Describe the first row that is not a number; empty if the column is not text."""
    if column.dtype.kind not in "OUS" or column.ndim > 1:
        return ""
    for row, value in enumerate(column, 1):
        try:
            float(str(value).replace("_", "-"))
        except (ValueError, TypeError):
            return f"(row {row} contains {str(value)!r}): {_remedy(str(value).strip())}"
    return ""


def _remedy(value: str) -> str:
    """Return what to do about a text instead of a number."""
    if value in ("", "None", "NA", "<NA>"):
        return GAPS
    with_point = value.replace(",", ".")
    if with_point.count(".") == 1 and with_point.replace(".", "").lstrip("+-").isdecimal():
        without_commas = value.replace(",", "")
        is_ambiguous = "," in value and len(with_point.split(".")[1]) == 3
        return f"write {without_commas} or {with_point}" if is_ambiguous else f"write {with_point}"
    if re.match(DATE, value):
        return DATES
    return "remove the column, or replace it with numbers, such as 0 and 1 for each of its values"


def _csv(path: Path, field: str) -> dict[str, Array]:
    try:
        content = path.read_bytes()
        is_utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
        lines = io.StringIO(text, newline="")
        reader = csv.reader(lines, delimiter=_delimiter(text), skipinitialspace=True)
        rows = [(n, row) for n, row in enumerate(reader, 1) if row]
    except UnicodeDecodeError as error:
        raise DataError((field, f"{path} is not UTF-8: save it with that encoding")) from error
    except (OSError, csv.Error) as error:
        raise DataError((field, f"{path} cannot be read: {error}")) from error
    if len(rows) < 2:
        raise ConfigError((field, f"{path} needs a header and at least one row"))
    header = [name.strip() for name in rows[0][1]]
    if _are_values(header):
        text = f"{path} begins with a row of numbers: its first line must contain the column names"
        raise ConfigError((field, text))
    if len(set(header)) < len(header):
        raise ConfigError((field, f"{path} names a column twice: {', '.join(header)}"))
    wrong_lines = [f"line {n}" for n, row in rows[1:] if len(row) != len(header)]
    if wrong_lines:
        text = f"{path}: {', '.join(wrong_lines[:5])}: not {len(header)} fields"
        raise ConfigError((field, text))
    columns = zip(*(row for _, row in rows[1:]), strict=True)
    return {
        name: np.array([value.strip() for value in column])
        for name, column in zip(header, columns, strict=True)
    }


def _are_values(header: list[str]) -> bool:
    """Return whether a header is a row of numbers, and not the column numbers."""
    try:
        return [float(name) for name in header] not in (
            [float(n) for n in range(first, first + len(header))] for first in (0, 1)
        )
    except ValueError:
        return False


def _delimiter(text: str) -> str:
    """Return the separator of the header: a comma, a semicolon or a tab."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    header = re.sub('"[^"]*"', "", header)  # a name may have commas
    separators = [separator for separator in ";\t" if separator in header]
    return separators[0] if "," not in header and separators else ","


def _parquet(path: Path, field: str) -> dict[str, Array]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        text = f"{path} needs pyarrow (pip install pyarrow), or store its rows as .csv"
        raise ConfigError((field, text)) from error
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise DataError((field, f"{path} cannot be read: {error}")) from error
    return {name: stack_entries(table[name].to_numpy()) for name in table.column_names}


def _npz(path: Path, field: str) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise _unreadable(path, field, error) from error


def array_columns(array: Array) -> dict[str, Array]:
    """Return the columns of an array with named fields; any other array is the column x."""
    fields = array.dtype.names
    return {"x": array} if fields is None else {name: array[name] for name in fields}


def _npy(path: Path, field: str) -> dict[str, Array]:
    try:
        return array_columns(np.load(path, allow_pickle=False))
    except UNREADABLE as error:
        raise _unreadable(path, field, error) from error


def _unreadable(path: Path, field: str, error: Exception) -> DataError:
    if "Object arrays" in str(error):
        text = f"{path} contains objects, which are not loaded: save strings as y.astype(str), rows"
        return DataError((field, f"{text} as one array of numbers"))
    return DataError((field, f"{path} cannot be read: {error}"))
