"""Your own arrays: classes of labelled rows, or groups of rows with values to predict."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import PrivateAttr, field_validator

from metalearn import rng
from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError, did_you_mean
from metalearn.storage.columns import numbers, read_columns
from metalearn.tasks.rows import RowSource
from metalearn.types import EpisodeSpec

Array = npt.NDArray[Any]
SPLITS = ("train", "valid", "test")


class Arrays(TaskComponent):
    """Your own arrays or tables: in memory, or from .npz, .npy, .csv and .parquet files.

    Without `group` the targets are classes, and a task is N of them; with it each value of that
    column is one task of regression. Classes (or groups) are split by the column `split`, or by
    `fractions` in an order drawn with `split_seed`. In Python `Arrays(x, y, ways=5)` takes numpy
    or torch; `group` and `split` may then be arrays too, and the data are known by their hash.
    """

    default_model: ClassVar[str] = "mlp"
    source: Literal["arrays"] = option("arrays", "The task source.")
    path: str | None = option(None, "File of rows; null: given in memory.", min_length=1)
    inputs: tuple[str, ...] | None = option(
        None, "Columns of the inputs; null: x where there is one, else all other numbers."
    )
    target: str = option("y", "Column of class labels, or of values.")
    group: str | None = option(None, "Column whose values are the tasks of a regression.")
    split: str | None = option(None, "Column of train, valid or test, constant in a class.")
    fractions: tuple[float, float, float] = option(
        (0.64, 0.16, 0.20), "Shares of the classes or groups for train, valid and test."
    )
    split_seed: int = option(0, "Seed of the split by fractions.", ge=0)
    ways: int = option(5, "N, classes in a task; ignored in regression.", ge=1)
    shots: int = option(1, "K, support rows of each class, or of a group.", ge=1)
    queries: int = option(5, "Q, query rows of each class, or of a group.", ge=0)
    data_sha256: str | None = option(None, "Hash of data given in memory; set by Arrays(x, y).")
    _columns: dict[str, Array] | None = PrivateAttr(default=None)

    def __init__(self, x: Any = None, y: Any = None, **fields: Any) -> None:
        columns: dict[str, Array] = {}
        if isinstance(x, (str, Path)):
            fields["path"] = str(x)
        elif x is not None:
            columns["x"] = _array(x)
            if y is not None:
                columns[fields.setdefault("target", "y")] = _array(y)
            for name in ("group", "split"):
                if fields.get(name) is not None and not isinstance(fields[name], str):
                    columns[name], fields[name] = _array(fields[name]), name
            fields["data_sha256"] = _hash(columns)
        super().__init__(**fields)
        if columns:
            self._columns = columns

    @field_validator("fractions")
    @classmethod
    def _check_fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
            raise ValueError(f"fractions must be three shares with sum 1 (got {sum(value):g})")
        return value

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> RowSource:
        """The source of one split; ConfigError with everything that does not fit."""
        if split not in SPLITS:
            raise ConfigError(("split", f"{split!r} is no split; valid: {', '.join(SPLITS)}"))
        columns = self._read()
        x = self._inputs(columns)
        unit = columns[self._column(self.group or self.target, columns)].astype(str)
        names, place = np.unique(unit, return_inverse=True)
        chosen = self._split(columns, names, place)[split]
        self._check(names, np.bincount(place), chosen, split)
        order = np.concatenate([np.flatnonzero(place == n) for n in chosen])
        counts = [int((place == n).sum()) for n in chosen]
        y = self._values(columns) if self.group else None
        spec = EpisodeSpec(
            kind="regression" if self.group else "classification",
            ways=1 if self.group else self.ways,
            shots=self.shots,
            queries=self.queries,
            x_shape=x.shape[1:],
            outputs=self.ways if y is None else y.shape[1],
            num_classes=0 if self.group else len(chosen),
            split=split,
            dtype=dtype,
            device=device,
        )
        values = None if y is None else torch.as_tensor(y[order])
        digest = self.data_sha256 or _hash(columns)
        return RowSource(torch.as_tensor(x[order]), values, counts, spec, digest)

    def _read(self) -> dict[str, Array]:
        if self._columns is not None:
            return self._columns
        if self.path is None:
            text = f"data given in memory (SHA-256 {str(self.data_sha256)[:12]}...)"
            raise ConfigError(("path", f"is null, and the run used {text}: give the data again"))
        return read_columns(Path(self.path).expanduser(), "path")

    def _column(self, name: str, columns: dict[str, Array]) -> str:
        if name not in columns:
            raise ConfigError(("path", f"has no column {name!r}; {did_you_mean(name, columns)}"))
        return name

    def _inputs(self, columns: dict[str, Array]) -> Array:
        others = {self.target, self.group, self.split}
        names = self.inputs or (
            ["x"] if "x" in columns else [n for n in columns if n not in others]
        )
        parts = [numbers(columns[self._column(n, columns)], n, "inputs") for n in names]
        if not parts:
            raise ConfigError(("inputs", "there are no columns of inputs"))
        if len(parts) == 1 and parts[0].ndim > 1:
            return parts[0]
        return np.stack(parts, 1)

    def _values(self, columns: dict[str, Array]) -> Array:
        values = numbers(columns[self._column(self.target, columns)], self.target, "target")
        return values.reshape(len(values), -1)

    def _split(self, columns: dict[str, Array], names: Array, place: Array) -> dict[str, list[int]]:
        """Places of the classes or groups of each split."""
        if self.split is None:
            key = rng.fold_in(self.split_seed, "arrays")
            order = rng.permutation(key, len(names)).tolist()
            ends = [round(len(names) * share) for share in np.cumsum([0, *self.fractions])]
            parts = (order[a:b] for a, b in pairwise(ends))
            return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}
        column = columns[self._column(self.split, columns)].astype(str)
        unknown = sorted(set(column) - set(SPLITS))
        mixed = [str(n) for k, n in enumerate(names) if len(set(column[place == k])) > 1]
        if unknown or mixed:
            text = f"holds {unknown[0]!r}" if unknown else f"splits {mixed[0]!r} itself"
            raise ConfigError(("split", f"{text}: one of {', '.join(SPLITS)} for each class"))
        of = [column[place == k][0] for k in range(len(names))]
        return {split: [k for k, name in enumerate(of) if name == split] for split in SPLITS}

    def _check(self, names: Array, counts: Array, chosen: list[int], split: str) -> None:
        problems = []
        kind, least = ("groups", 1) if self.group else ("classes", max(2, self.ways))
        if len(chosen) < least:
            text = f"the {split} split has {len(chosen)} {kind}, and a task needs {least}"
            problems.append(("ways" if not self.group else "group", text))
        need = self.shots + self.queries
        small = [f"{names[k]} ({counts[k]})" for k in chosen if counts[k] < need]
        if small:
            text = f"shots + queries = {need} rows, and {kind} of {split} have fewer: "
            problems.append(("shots", text + ", ".join(small[:5])))
        if problems:
            raise ConfigError(*problems)


def _array(values: Any) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _hash(columns: dict[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns):
        column = np.ascontiguousarray(columns[name])
        digest.update(f"{name} {column.dtype.str} {column.shape}".encode())
        digest.update(column.tobytes())
    return digest.hexdigest()
