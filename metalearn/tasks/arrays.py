"""Your own arrays: classes of labelled rows, or groups of rows with values to predict."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import PrivateAttr, field_validator, model_validator

from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError
from metalearn.in_memory import Held, held, hold
from metalearn.storage.columns import (
    default_inputs,
    missing_column_text,
    numbers,
    read_columns,
    stack_inputs,
)
from metalearn.tasks.images import check_shares, split_problem
from metalearn.tasks.store import write_npz
from metalearn.tasks.tables.columns import (
    Array,
    by_class,
    by_file,
    check_counts,
    check_lengths,
    hash_columns,
    label_names,
    to_array,
    to_columns,
)
from metalearn.tasks.tables.order import check_order_array, order_problem, order_rows
from metalearn.tasks.tables.repeats import check_varies, repeats
from metalearn.tasks.tables.rows import RowSource
from metalearn.tasks.tables.splits import BY_FILE, names_splits, split_labels, warn_if_unused
from metalearn.tasks.tables.standardise import Moments, check_scale, resolve_moments, standardise
from metalearn.types import EpisodeSpec


class Arrays(TaskComponent):
    """Your own arrays or tables: in memory, or from .npz, .npy, .csv and .parquet files.

    Without `group` the targets are classes, and a task is N of them; with it each value of that
    column is one task of regression. Classes (or groups) are split by the column `split`, by files
    `valid_path` and `test_path` beside `path`, or by `fractions` in an order drawn with
    `split_seed`. Support and query rows of a task are drawn at random, unless `order` names a
    column, such as the time. In Python `Arrays(x, y, ways=5)` takes numpy, torch, columns by name,
    a torch or Hugging Face Dataset or a mapping of splits to these; `group`, `split` and `order`
    may be arrays too. The data are then known by their hash, and `save(path)` makes a file for the
    command line.

    >>> x, y = torch.rand(200, 6), torch.arange(20).repeat_interleave(10)
    >>> source = ml.tasks.Arrays(x, y, ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 6])
    """

    default_model: ClassVar[str] = "mlp"
    split_fields: ClassVar[tuple[str, ...]] = ("split", "fractions", "split_seed")
    source: Literal["arrays"] = option("arrays", "The task source.")
    path: str | None = option(None, "File of examples; null: data in memory.", min_length=1)
    inputs: tuple[str, ...] | None = option(
        None,
        "Columns of the inputs; null: x if it exists, else all other columns.",
        min_length=1,
        fixed_by_training=True,
    )
    valid_path: str | None = option(None, "File of the validation rows.", min_length=1, later=True)
    test_path: str | None = option(None, "File of the test rows.", min_length=1, later=True)
    target: str | None = option(
        "y",
        "Column of class labels, or of values; null: x is [classes, rows of each, *X].",
        fixed_by_training=True,
    )
    group: str | None = option(None, "Column whose values are the tasks of a regression.")
    split: str | None = option(None, "Column of train, valid or test, constant per class.")
    fractions: tuple[float, float, float] = option(
        (0.64, 0.16, 0.20), "Fractions of the classes or groups for train, valid and test."
    )
    split_seed: int = option(0, "Seed of the split by fractions.", ge=0)
    ways: int = option(5, "N, classes per task; ignored in regression.", ge=1)
    shots: int = option(1, "K, support rows per class, or per group.", ge=1)
    queries: int = option(5, "Q, query rows per class, or per group.", ge=0)
    order: str | None = option(
        None,
        "Column of numbers, such as the time: the support set is the first K rows of a group (or "
        "class) in this order, and queries are drawn from the rows after them. It is also an input "
        "unless `inputs` excludes it. null: support and query rows are drawn at random.",
        min_length=1,
        later=True,
    )
    standardise: bool = option(
        False,
        "Standardise each input with its mean and standard deviation in the training split.",
        later=True,
        strict=True,
        fixed_by_training=True,
    )
    moments: Moments | None = option(
        None,
        "Means and standard deviations of inputs; null: of the training split.",
        later=True,
        fixed_by_training=True,
    )
    standardise_targets: bool = option(
        False,
        "Standardise regression targets in the same way; losses are then in units of their "
        "standard deviation, predictions in units of the data.",
        later=True,
        strict=True,
        fixed_by_training=True,
    )
    target_moments: Moments | None = option(
        None,
        "Means and standard deviations of targets; null: of the training split.",
        later=True,
        fixed_by_training=True,
    )
    data_sha256: str | None = option(None, "SHA-256 of in-memory data; set by Arrays(x, y).")
    _columns: Held | None = PrivateAttr(default=None)

    def __init__(self, x: Any = None, y: Any = None, **fields: Any) -> None:
        columns: dict[str, Array] = {}
        if isinstance(x, (str, Path)):
            if y is not None:
                text = "must be omitted if x is a path: its column `target` has the labels"
                raise ConfigError(("y", text))
            fields["path"] = str(x)
        elif x is not None:
            target = fields.setdefault("target", "y")
            group = fields.get("group")
            columns = to_columns(x, target or "y", group if isinstance(group, str) else None)
            if y is not None:
                columns[target] = to_array(y)
            for name in ("group", "split", "order"):
                if fields.get(name) is not None and not isinstance(fields[name], str):
                    if name == "order":
                        check_order_array(columns)
                    columns[name], fields[name] = to_array(fields[name]), name
            if "split" in columns and names_splits(columns["split"]):
                fields.setdefault("split", "split")
            check_lengths(columns)
            fields["data_sha256"] = hash_columns(columns)
        super().__init__(**fields)
        if columns:
            # copies, as the caller may change the arrays
            copies = {name: column.copy() for name, column in columns.items()}
            self._columns = hold(copies, str(self.data_sha256))

    @model_validator(mode="after")
    def _find(self) -> Arrays:
        """Find data of this hash that were passed in this process."""
        if self.path is None:
            self._columns = self._columns or held(self.data_sha256)
        if self.standardise_targets and not self.group:
            text = "standardise_targets is only for regression: set group, the column of tasks"
            raise ValueError(text)
        if text := order_problem(self.order, self._target, self.group):
            raise ValueError(text)
        return self

    @field_validator("fractions")
    @classmethod
    def _check_fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return check_shares(value)

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> RowSource:
        """Return the source of one split; raises ConfigError with everything that does not fit."""
        if problems := split_problem(split):
            raise ConfigError(*problems)
        columns = self._read()
        self._check_columns(columns)
        x = stack_inputs(columns, self._inputs(columns), "inputs")
        row_names = label_names(columns, self.group, self._target)
        names, labels = np.unique(row_names, return_inverse=True)
        splits, rule = self._split(columns, names, labels)
        classes = splits[split]
        counts = {str(names[n]): int((labels == n).sum()) for n in classes}
        check_counts(counts, self.shots + self.queries, None if self.group else self.ways, split)
        order = order_rows(columns, labels, classes, self.order, self.shots, split)
        y = self._values(columns) if self.group else None
        spec = self._spec(x, y, len(classes), split=split, dtype=dtype, device=device)
        rows, values = torch.as_tensor(x[order]), None if y is None else torch.as_tensor(y[order])
        training = np.flatnonzero(np.isin(labels, splits["train"]))
        x_moments, y_moments = self._moments(x, y, training)
        rows = rows if x_moments is None else standardise(rows.double(), x_moments)
        if values is not None and y_moments is not None:
            values = standardise(values.double(), y_moments)
        check_scale(split, rows, values, dtype)
        facts: dict[str, Any] = {}
        if y_moments is not None:
            facts["target_deviations"] = list(y_moments[1])
        if rows.dim() > 2 and any(columns[n].dtype == np.uint8 for n in self._inputs(columns)):
            facts["pixels"] = "bytes divided by 255"
        if split == "train":
            facts |= self._check_rows(x, y, labels, splits)
        digest = hash_columns(columns) if self.path or not self.data_sha256 else self.data_sha256
        objects = any(column.dtype == object for column in columns.values())
        return RowSource(rows, values, counts, spec, digest, facts, objects, self.order, rule)

    def _spec(self, x: Array, y: Array | None, num_classes: int, **where: Any) -> EpisodeSpec:
        return EpisodeSpec(
            kind="regression" if self.group else "classification",
            ways=1 if self.group else self.ways,
            shots=self.shots,
            queries=self.queries,
            x_shape=x.shape[1:],
            outputs=self.ways if y is None else y.shape[1],
            num_classes=0 if self.group else num_classes,
            **where,
        )

    def _check_rows(
        self, x: Array, y: Array | None, labels: Array, splits: dict[str, list[int]]
    ) -> dict[str, int]:
        """Return facts of repeated rows; raises ConfigError if all training targets are equal."""
        train, test = (np.isin(labels, splits[name]) for name in ("train", "test"))
        if y is not None:
            check_varies(y, train, self._target)
        return repeats(x, y, labels, train, test)

    def _moments(
        self, x: Array, y: Array | None, rows: Array
    ) -> tuple[Moments | None, Moments | None]:
        """Return the moments of inputs and targets; None if they are not standardised."""
        x_moments = resolve_moments(self.moments, x, rows, "moments") if self.standardise else None
        if y is None or not self.standardise_targets:
            return x_moments, None
        return x_moments, resolve_moments(self.target_moments, y, rows, "target_moments")

    def _read(self) -> dict[str, Array]:
        if self._columns is not None:
            return by_class(dict(self._columns.value), self.target, self.group)
        if self.path is None:
            text = f"in-memory data (SHA-256 {str(self.data_sha256)[:12]}...)"
            raise ConfigError(("path", f"is null, but the run used {text}: pass the data again"))
        parts = {"train": self.path, "valid": self.valid_path, "test": self.test_path}
        tables = {split: self._table(path) for split, path in parts.items() if path is not None}
        return tables["train"] if len(tables) == 1 else by_file(tables)

    def _table(self, path: str) -> dict[str, Array]:
        return by_class(read_columns(Path(path).expanduser(), "path"), self.target, self.group)

    def _check_columns(self, columns: dict[str, Array]) -> None:
        """Raise ConfigError for named columns that are missing, and for one class per task."""
        if not self.group and self.ways < 2:
            text = "must be >= 2 (got 1); regression needs `group`"
            raise ConfigError(("ways", text))
        names = (self.group, self._target, self.order, *(self.inputs or ()))
        absent = [name for name in dict.fromkeys(names) if name and name not in columns]
        if absent:
            raise ConfigError(*(("path", missing_column_text(name, columns)) for name in absent))

    def _column(self, name: str, columns: dict[str, Array]) -> str:
        if name not in columns:
            raise ConfigError(("path", missing_column_text(name, columns)))
        return name

    def _inputs(self, columns: dict[str, Array]) -> list[str]:
        """Return the names of the columns of inputs."""
        reserved = {self._target, self.group, self._split_column(columns)}
        candidates = ["x"] if "x" in columns else [name for name in columns if name not in reserved]
        if self.inputs is None:
            candidates = default_inputs(candidates, "inputs")
        if self._target in (self.inputs or ()):
            text = f"{self._target!r} is the target and cannot be an input: remove it"
            raise ConfigError(("inputs", text))
        names = [self._column(name, columns) for name in self.inputs or candidates]
        if not names:
            raise ConfigError(("inputs", "there are no columns of inputs"))
        return names

    def resolve(self, seed: int) -> Arrays:
        """Return the task with the values that later tasks must share, for use with other files.

        These are the names of its inputs, which may have another order there, and the moments that
        standardise inputs and targets."""
        update: dict[str, Any] = {}
        try:
            if self.inputs is None:
                names = tuple(self._inputs(self._read()))
                update |= {} if names == ("x",) else {"inputs": names}
            if self.changes_rows:
                update |= self._training_moments()
        except ConfigError:  # `build` raises it where rows are needed
            pass
        return self.model_copy(update=update) if update else self

    def without_implied(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return `data` without names of inputs that are just the columns of in-memory data."""
        if self.path is not None or self._columns is None or self.inputs is None:
            return data
        try:
            names = self.model_copy(update={"inputs": None})._inputs(self._read())
        except ConfigError:  # there is no default: the names were chosen
            return data
        return {**data, "inputs": None} if ["x"] != names == list(self.inputs) else data

    def after_training_on(self, trained: TaskComponent) -> Arrays:
        """Return the task with the input names and moments of training, for test rows."""
        if not isinstance(trained, Arrays):
            return self
        names = ("inputs", "moments", "target_moments")
        values = {name: getattr(trained, name) for name in names if getattr(self, name) is None}
        update = {name: value for name, value in values.items() if value is not None}
        return self.model_copy(update=update) if update else self

    def contradictions(self, trained: TaskComponent) -> list[tuple[str, str]]:
        """Also a path that the test would not read."""
        problems, before = super().contradictions(trained), trained
        if isinstance(before, Arrays) and self.path != before.path and self.test_path is not None:
            text = f"is another file, and test rows are read from test_path, {self.test_path}"
            problems += [("path", f"{text}: change that")] * (self.test_path == before.test_path)
        return problems

    @property
    def fixed_values(self) -> dict[str, Any]:
        """Classes of another column are new tasks, values of another column are not."""
        unused = set() if self.group else {"target"}
        fields = super().fixed_values.items()
        return {name: value for name, value in fields if name not in unused and value is not None}

    @property
    def input_names(self) -> tuple[str, ...] | None:
        return None if self.inputs == ("x",) else self.inputs

    @property
    def transform(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        moments = self.moments if self.standardise else None
        return None if moments is None else partial(standardise, found=moments)

    @property
    def target_moments_used(self) -> Moments | None:
        return self.target_moments if self.standardise_targets else None

    @property
    def changes_rows(self) -> bool:
        return self.standardise or self.standardise_targets

    def _training_moments(self) -> dict[str, Moments]:
        """Return the fields of moments; null ones are computed from the training split."""
        columns = self._read()
        self._check_columns(columns)
        row_names = label_names(columns, self.group, self._target)
        names, labels = np.unique(row_names, return_inverse=True)
        rows = np.isin(labels, self._split(columns, names, labels)[0]["train"])
        x = stack_inputs(columns, self._inputs(columns), "inputs")
        y = self._values(columns) if self.standardise_targets else None
        fields, pair = ("moments", "target_moments"), self._moments(x, y, np.flatnonzero(rows))
        return {name: value for name, value in zip(fields, pair) if value is not None}

    def _values(self, columns: dict[str, Array]) -> Array:
        values = numbers(columns[self._column(self._target, columns)], self._target, "target")
        if values.ndim > 2:
            text = "regression targets must be [rows] or [rows, outputs]: reshape them"
            raise ConfigError((self._target or "y", f"has shape {list(values.shape)}: {text}"))
        return values.reshape(len(values), -1)

    def _split(
        self, columns: dict[str, Array], names: Array, labels: Array
    ) -> tuple[dict[str, list[int]], str]:
        """Return the indices of the classes or groups of each split, and by what rule."""
        name = self._split_column(columns)
        if name is None:
            warn_if_unused(columns)
        column = None if name is None else (name, columns[self._column(name, columns)])
        return split_labels(column, names, labels, self.fractions, self.split_seed)

    @property
    def _target(self) -> str:
        return self.target or "y"

    def _split_column(self, columns: dict[str, Array]) -> str | None:
        """Return the column of splits; that of files has priority."""
        return BY_FILE if BY_FILE in columns else self.split

    def save(self, path: str | Path) -> Path:
        """Write the rows to an .npz file, to which `path` of a task section may point."""
        write_npz(Path(path), self._read())
        return Path(path)
