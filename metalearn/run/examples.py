"""Examples of a new task from files: folders of images, rows of a CSV file, arrays of an .npz."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.errors import ConfigError, DataError
from metalearn.storage.files import UNREADABLE
from metalearn.tasks.image_folder import decode_images, image_files, list_folder
from metalearn.types import EpisodeSpec

TARGETS = ("y", "label", "target")  # names of a CSV file's column of labels or values


class Examples(NamedTuple):
    """Inputs, their targets where the file has them, and what to call each of them."""

    x: np.ndarray[Any, Any]  # [B, *X] floats
    y: np.ndarray[Any, Any] | None  # [B] labels or values
    names: list[str]


def read_examples(
    path: Path, spec: EpisodeSpec, place: str, *, labelled: bool, invert: bool
) -> Examples:
    """The examples at `path`; `labelled` ones need targets. `place` is named in errors.

    A folder: one folder of images a class where labelled, else images at any depth; `invert` turns
    dark ink on light paper into bright ink. A .csv file: a header, one column called y, label or
    target, and one column for each input. An .npz file: x [B, *X] and y [B].
    """
    if path.is_dir():
        found = _images(path, spec, place, labelled, invert)
    elif path.suffix == ".csv":
        found = _rows(path, spec, place)
    elif path.suffix == ".npz":
        found = _arrays(path, place)
    else:
        kind = "is not there" if not path.exists() else "is neither a folder, a .csv nor an .npz"
        raise ConfigError((place, f"{path} {kind}"))
    if labelled and found.y is None:
        text = f"{path} has no labels: name a column (or array) {TARGETS[0]}"
        raise ConfigError((place, text))
    return found


def _images(path: Path, spec: EpisodeSpec, place: str, labelled: bool, invert: bool) -> Examples:
    shape = spec.x_shape
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ConfigError((place, f"is a folder, but the run learned inputs of shape {shape}"))
    if labelled:
        listing = list_folder(path)
        files = [file for group in listing.files for file in group]
        labels = [name for name, group in zip(listing.names, listing.files) for _ in group]
    else:
        files, labels = image_files(path), None
    if not files:
        raise ConfigError((place, f"{path} holds no images"))
    pixels = decode_images(files, shape[1], shape[0], invert)
    names = [file.relative_to(path).as_posix() for file in files]
    y = None if labels is None else np.array(labels)
    return Examples(pixels.astype(np.float32) / 255, y, names)


def _rows(path: Path, spec: EpisodeSpec, place: str) -> Examples:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = [row for row in csv.reader(handle) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError((place, f"{path} cannot be read: {error}")) from error
    if len(rows) < 2:
        raise ConfigError((place, f"{path} needs a header and at least one row"))
    header, body = rows[0], rows[1:]
    columns = [n for n, name in enumerate(header) if name.strip().lower() not in TARGETS]
    targets = [n for n in range(len(header)) if n not in columns]
    if len(targets) > 1:
        raise ConfigError((place, f"{path} has more than one column of targets: {header}"))
    lines = [f"line {n}" for n, row in enumerate(body, 2) if len(row) != len(header)]
    if lines:
        raise ConfigError((place, f"{path}: {', '.join(lines[:5])}: not {len(header)} fields"))
    try:
        values = [[float(row[n]) for n in columns] for row in body]
        x = np.array(values, np.float64).reshape(len(body), *spec.x_shape)
    except ValueError as error:
        text = f"{path}: inputs must be numbers, {int(np.prod(spec.x_shape))} a row ({error})"
        raise ConfigError((place, text)) from error
    y = np.array([row[targets[0]].strip() for row in body]) if targets else None
    if y is not None and not spec.classification:
        try:
            y = y.astype(np.float64)
        except ValueError as error:
            raise ConfigError((place, f"{path}: targets must be numbers ({error})")) from error
    return Examples(x, y, [f"row {n}" for n in range(1, len(body) + 1)])


def _arrays(path: Path, place: str) -> Examples:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in ("x", "y")}
    except UNREADABLE as error:
        raise DataError((place, f"{path} cannot be read: {error}")) from error
    if "x" not in arrays:
        raise ConfigError((place, f"{path} needs an array x [B, *X]"))
    x = arrays["x"]
    return Examples(x, arrays.get("y"), [f"row {n}" for n in range(1, len(x) + 1)])
