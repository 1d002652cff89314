"""Atomic writes of files, JSON without NaN, and append-only lines."""

from __future__ import annotations

import json
import os
import secrets
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from metalearn.errors import ConfigError

UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
LARGEST = 1e30  # of a number in a JSON file


def write_atomic(path: Path, content: bytes) -> None:
    """Write to a temporary file in the same folder, flush it to disk, then rename it atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # containers share numbers
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with naming(path):
        _replace(path, temporary, content)


def _replace(path: Path, temporary: Path, content: bytes) -> None:
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system inside the block names the file that was to be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def plain(value: Any) -> Any:
    """The same data with null in the place of NaN, infinities (JSON has neither) and values beyond
    LARGEST, of a run that diverged, which no figure can draw and which readers refuse."""
    if isinstance(value, float):
        return value if abs(value) <= LARGEST else None
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def write_json(path: Path, data: Any) -> None:
    write_atomic(path, (json.dumps(plain(data), indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The data of a JSON file; ConfigError that names the file when it is not readable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError((str(path), f"is not readable JSON: {error}")) from error


def read_text(path: Path) -> str:
    """The text of a file; ConfigError that names it when it is not readable as text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError((str(path), f"is not readable text: {error}")) from error


def read_npz(path: Path) -> dict[str, NDArray[np.float64]]:
    """The arrays of an npz file as numbers, never unpickled; ConfigError that names the file."""
    try:
        with (
            path.open("rb") as stream,
            np.load(stream, allow_pickle=False) as file,
        ):  # numpy leaves a torn file open
            return {name: np.asarray(file[name]).astype(np.float64) for name in file.files}
    except (*UNREADABLE, AttributeError) as error:  # an array of npz members is none of npy's
        raise ConfigError((str(path), f"is not readable as arrays of numbers: {error}")) from error


def write_yaml(path: Path, data: Any) -> None:
    write_atomic(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add JSON lines and flush them to disk."""
    if not rows:
        return
    with naming(path), path.open("a", encoding="utf-8") as handle:
        handle.write("".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows))
        handle.flush()
        os.fsync(handle.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, up to the first torn one."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def cut_lines(path: Path, step: int) -> None:
    """Keep the lines up to a step: what a resumed run has not yet done again."""
    rows = [row for row in read_lines(path) if row.get("step", 0) <= step]
    lines = (json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines).encode())


# What zipfile and numpy raise on bytes that are no archive, or a damaged one.
