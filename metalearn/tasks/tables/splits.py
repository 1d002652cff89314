"""Splits of the classes or groups of a table: by a column, by fractions, or by files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.logger import warn_once
from metalearn.storage.columns import as_texts

Array = npt.NDArray[Any]
BY_FILE = "split by file"  # the column that files of one split each make
HELD_OUT = "a tenth of those of training is held out for validation, drawn with split_seed"
SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}


def split_labels(
    column: tuple[str, Array] | None,
    names: Array,
    labels: Array,
    fractions: Sequence[float],
    seed: int,
) -> tuple[dict[str, list[int]], str]:
    """Return the indices of the classes or groups of each split, and by what rule.

    column: name and values of the column of splits; None: by fractions."""
    if column is None:
        shares = ", ".join(f"{share:g}" for share in fractions)
        rule = (
            f"by fractions {shares} (train, valid, test) in an order drawn with split_seed {seed}"
        )
        return split_by_fractions(len(names), fractions, seed), rule
    name, values = column
    splits = split_by_column(values, names, labels)
    rule = "by file" if name == BY_FILE else f"by the column {name}"
    if splits["valid"] or len(splits["train"]) < 2:
        return splits, rule
    return hold_out(splits, seed), f"{rule}; {HELD_OUT} {seed}"


def split_by_fractions(classes: int, fractions: Sequence[float], seed: int) -> dict[str, list[int]]:
    """Return the indices of the classes or groups of each split, in an order drawn by a seed."""
    order = rng.permutation(rng.fold_in(seed, "arrays"), classes).tolist()
    ends = [round(classes * share) for share in np.cumsum([0, *fractions])]
    parts = (order[a:b] for a, b in pairwise(ends))
    names = ("train", "valid", "test")
    return {split: sorted(part) for split, part in zip(names, parts, strict=True)}


def hold_out(chosen: dict[str, list[int]], seed: int) -> dict[str, list[int]]:
    """Hold out a tenth of the training classes or groups for validation, by a split seed."""
    train = chosen["train"]
    if len(train) < 2:
        return chosen
    order = rng.permutation(rng.fold_in(seed, "arrays"), len(train)).tolist()
    validation = {train[k] for k in order[: -(-len(train) // 10)]}
    training = [k for k in train if k not in validation]
    return {**chosen, "train": training, "valid": sorted(validation)}


def names_splits(column: Array) -> bool:
    """Return whether all values of a column are names of splits."""
    if column.ndim != 1 or column.dtype.kind not in "OUS":
        return False
    return all(_lower(text) in SPLITS for text in np.unique(as_texts(column, "split")))


def _lower(text: str) -> str:
    return text.strip().lower()


def split_by_column(values: Array, names: Array, labels: Array) -> dict[str, list[int]]:
    """Return the indices of the classes or groups of each split that a column names."""
    column = np.array([SPLITS.get(_lower(text), text) for text in as_texts(values, "split")])
    splits = ("train", "valid", "test")
    unknown = sorted(set(column) - set(splits))
    mixed = [str(n) for k, n in enumerate(names) if len(set(column[labels == k])) > 1]
    if unknown or mixed:
        text = f"holds {str(unknown[0])!r}" if unknown else f"splits {mixed[0]!r} itself"
        raise ConfigError(("split", f"{text}: one of {', '.join(splits)} for each class"))
    split_of = [column[labels == k][0] for k in range(len(names))]
    return {split: [k for k, name in enumerate(split_of) if name == split] for split in splits}


def warn_if_unused(columns: Mapping[str, Array]) -> None:
    """Warn of a column `split` that names splits in a table that is split by fractions."""
    if "split" in columns and names_splits(columns["split"]):
        text = "task: the column 'split' names splits and is not used, as `split` is null:"
        warn_once(f"{text} set split: split, or remove the column")
