"""Examples of a new task from files: folders of images, rows of a CSV file, arrays of an .npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.errors import ConfigError
from metalearn.storage.columns import default_inputs, numbers, read_columns, stack_inputs
from metalearn.tasks.image_folder import decode_images, image_files, list_folder
from metalearn.types import EpisodeSpec

TARGETS = ("y", "label", "target")  # names of a CSV file's column of labels or values


class Examples(NamedTuple):
    """Inputs, their targets if the file has them, and a name for each example."""

    x: np.ndarray[Any, Any]  # [B, *X] floats
    y: np.ndarray[Any, Any] | None  # [B] labels or values
    names: list[str]
    columns: tuple[str, ...] | None = None  # of a table: the inputs' names
    group: str | None = None  # of a table with a column of groups: the group of all rows


def read_examples(
    path: Path,
    spec: EpisodeSpec,
    field: str,
    *,
    labelled: bool,
    invert: bool,
    inputs: Sequence[str] | None = None,
    target: str | None = None,
    group: str | None = None,
) -> Examples:
    """Read the examples at `path`; `labelled` ones need targets. `field` is named in errors.

    A folder: one folder of images per class if labelled, else images at any depth; `invert` turns
    dark ink on light paper into bright ink. A table: one column called `target`, y, label or
    target, and one column per input: those named `inputs`, else all others. If it has the column
    `group`, all rows must be of one group. An .npz file: x [B, *X] and y [B]."""
    if path.is_dir():
        examples = _images(path, spec, field, labelled, invert)
    else:
        examples = _rows(path, spec, field, inputs, target, group)
    if labelled and examples.y is None:
        text = f"{path} has no labels: name a column (or array) {target or TARGETS[0]}"
        raise ConfigError((field, text))
    return examples


def _images(path: Path, spec: EpisodeSpec, field: str, labelled: bool, invert: bool) -> Examples:
    shape = spec.x_shape
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ConfigError(
            (field, f"is a directory, but the run was trained on inputs of shape {shape}")
        )
    if labelled:
        listing = list_folder(path)
        files = [file for group in listing.files for file in group]
        labels = [name for name, group in zip(listing.names, listing.files) for _ in group]
    else:
        files, labels = image_files(path), None
    if not files:
        raise ConfigError((field, f"{path} contains no images"))
    pixels = decode_images(files, shape[1], shape[0], invert)
    names = [file.relative_to(path).as_posix() for file in files]
    y = None if labels is None else np.array(labels)
    return Examples(pixels.astype(np.float32) / 255, y, names)


def _rows(
    path: Path,
    spec: EpisodeSpec,
    field: str,
    inputs: Sequence[str] | None,
    target: str | None,
    group: str | None,
) -> Examples:
    columns = read_columns(path, field)
    row_group = _group(columns, group, field)
    targets = [name for name in columns if name.lower() in TARGETS]
    targets = [target] if target in columns else targets
    if len(targets) > 1:
        raise ConfigError((field, f"{path} has more than one column of targets: {targets}"))
    y = columns.pop(targets[0]) if targets else None
    if y is not None and not spec.classification:
        y = numbers(y, targets[0], field)
    table = "x" not in columns or columns["x"].ndim == 1
    names = list(columns) if table else ["x"]
    if table and inputs is None:
        names = default_inputs(names, field)
    if table and inputs is not None:
        names = list(inputs)
        if missing := [name for name in names if name not in columns]:
            text = f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(columns)}"
            raise ConfigError((field, text))
    x = stack_inputs(columns, names, field)
    try:
        x = x.reshape(len(x), *spec.x_shape)
    except ValueError as error:
        text = f"{path} has {x[:1].size} inputs per row, but the run needs {list(spec.x_shape)}"
        raise ConfigError((field, text)) from error
    rows = [f"row {n}" for n in range(1, len(x) + 1)]
    return Examples(x, y, rows, tuple(names) if table else None, row_group)


def _group(columns: dict[str, Any], name: str | None, field: str) -> str | None:
    """Return the group of all rows, and remove its column. Raises ConfigError for several."""
    column = columns.pop(name, None) if name else None
    if column is None:
        return None
    groups = sorted({str(value) for value in column})
    if len(groups) > 1:
        text = f"has rows of {len(groups)} tasks by column {name!r} ({', '.join(groups[:3])}"
        raise ConfigError((field, f"{text}, ...): predict for one task at a time"))
    return groups[0]
