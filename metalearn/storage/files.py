"""Atomic writes of files, JSON without NaN, and append-only lines."""

from __future__ import annotations

import hashlib
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

# what zipfile and numpy raise on bytes that are not an archive, or a damaged one
UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
LARGEST = 1e30  # largest number in a JSON file


def write_atomic(path: Path, content: bytes) -> None:
    """Write to a temporary file in the same folder, flush it to disk, then rename it atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # containers share process numbers
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with naming_file(path):
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
def naming_file(path: Path) -> Iterator[None]:
    """Context manager that adds the name of the file to be written to system errors."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def plain(value: Any) -> Any:
    """Return the data with null instead of NaN, infinities (JSON has neither) and values beyond
    LARGEST, from a diverged run, which figures cannot show and readers reject."""
    if isinstance(value, float):
        return value if abs(value) <= LARGEST else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def write_json(path: Path, data: Any) -> None:
    write_atomic(path, (json.dumps(plain(data), indent=1, allow_nan=False) + "\n").encode())


def sha256_of_json(data: Any) -> str:
    """Return the SHA-256 of plain data as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Return the data of a JSON file. Raises ConfigError if it is not readable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError((str(path), f"is not readable JSON: {error}")) from error


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ConfigError if it is not readable as text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError((str(path), f"is not readable text: {error}")) from error


def read_npz(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the arrays of an npz file as numbers, never unpickled. Raises ConfigError."""
    try:
        with (
            path.open("rb") as stream,
            np.load(stream, allow_pickle=False) as file,
        ):  # numpy leaves a truncated file open
            return {name: np.asarray(file[name]).astype(np.float64) for name in file.files}
    except (*UNREADABLE, AttributeError) as error:  # a member may not be an npy array
        raise ConfigError((str(path), f"is not readable as arrays of numbers: {error}")) from error


def write_yaml(path: Path, data: Any) -> None:
    write_atomic(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add JSON lines and flush them to disk."""
    if not rows:
        return
    with naming_file(path), path.open("a", encoding="utf-8") as handle:
        handle.write("".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows))
        handle.flush()
        os.fsync(handle.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file, up to the first incomplete one."""
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
    """Keep the lines up to a step; a resumed run writes the later ones again."""
    rows = [row for row in read_lines(path) if row.get("step", 0) <= step]
    lines = (json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines).encode())
