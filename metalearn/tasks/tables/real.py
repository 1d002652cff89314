"""The five tables that scikit-learn ships, as groups of few-shot tasks."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.tasks import store
from metalearn.tasks.images import SplitTask
from metalearn.tasks.tables.rows import RowSource
from metalearn.types import Episode, EpisodeSpec, Key

Name = Literal["wine", "breast_cancer", "iris", "digits", "diabetes"]
NAMES: tuple[Name, ...] = ("wine", "breast_cancer", "iris", "digits", "diabetes")
SHARES = {"train": (0, 1 / 3), "valid": (1 / 3, 2 / 3), "test": (2 / 3, 1)}  # of a class's rows
WIDTH = 64  # columns of digits, the widest


class RealTables(SplitTask):
    """Random support and query rows of the five tables bundled with scikit-learn.

    A task is one table, each as likely, with its classes under permuted labels: wine (3 classes, 13
    columns), breast_cancer (2, 30), iris (3, 4), digits (10, 64) and diabetes (2, 10: progression
    above its median, or not). Columns are as they are, padded with zeros to 64; of a table with
    more classes than `ways`, `ways` are drawn, and of one with fewer the others have weight 0.
    result.json has the scores of each table under `by_source`. Splits share classes, not rows: a
    third of the rows of each class is in each, 16 at least. Rows that repeat are left out. Raises
    ConfigError, DataError.

    >>> source = ml.tasks.RealTables(tables=("wine", "iris"), ways=3, shots=5).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 15, 64])
    """

    default_model: ClassVar[str] = "standardised"
    source: Literal["real_tables"] = option("real_tables", "The task source.")
    tables: tuple[Name, ...] = option(NAMES, "Tables from which tasks are sampled.", min_length=1)
    ways: int = option(10, "N, classes per task, including padding.", ge=2, le=20)
    shots: int = option(10, "K, support rows per class.", ge=1)
    queries: int = option(6, "Q, query rows per class.", ge=0)

    def source_of(self, **where: Any) -> RealTableSource:
        split = where["split"]
        rows, counts, table_of_class, digest = _pool(split)
        numbers = [NAMES.index(name) for name in dict.fromkeys(self.tables)]
        least = min(count for count, number in zip(counts, table_of_class) if number in numbers)
        if self.shots + self.queries > least:
            text = f"{self.shots} shots + {self.queries} queries are more than the {least}"
            text = f"{text} rows that the smallest class has in the split {split}"
            raise ConfigError(("shots", f"{text}: use fewer"))
        padded = min(table_of_class.count(number) for number in numbers) < self.ways
        spec = self.spec_of((WIDTH,), len(counts), padded=padded, **where)
        return RealTableSource(rows, counts, spec, digest, table_of_class, numbers)


class RealTableSource(RowSource):
    """Tasks of the tables with `numbers`; class c belongs to the table of[c].

    Classes beyond those of a task's table are of others, with weight 0."""

    def __init__(
        self,
        rows: Tensor,
        counts: list[int],
        spec: EpisodeSpec,
        data_sha256: str,
        table_of_class: list[int],
        numbers: list[int],
    ) -> None:
        super().__init__(rows, None, counts, spec, data_sha256)
        self.names = [NAMES[number] for number in numbers]
        sizes = [min(table_of_class.count(number), spec.ways) for number in numbers]
        self.class_sets = sum(
            math.comb(table_of_class.count(number), size) for number, size in zip(numbers, sizes)
        )
        self.chance = sum(1 / size for size in sizes) / len(sizes)
        self._table_of_class = torch.tensor(table_of_class, device=spec.device)
        self._numbers = torch.tensor(numbers, device=spec.device)

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """support.x [T, N*K, 64], query.x [T, N*Q, 64], weights where tables have fewer classes.

        info: as of rows, and `source` [T], the table by its index in `names`."""
        episode = super().sample(key, num_tasks, start)
        source = self._table(episode.info["key"])
        info = {**episode.info, "source": source}
        if not self.spec.padded:
            return episode._replace(info=info)
        is_own = self._table_of_class[info["class_ids"]] == self._numbers[source].unsqueeze(
            -1
        )  # [T, N]
        support, query = (
            batch._replace(weight=is_own.gather(1, batch.y).to(self.spec.dtype))
            for batch in (episode.support, episode.query)
        )
        return Episode(support, query, info)

    def _classes(self, keys: Tensor) -> Tensor:
        priority = rng.uniform(
            rng.fold_in(keys, "classes"), (len(self._table_of_class),), dtype=torch.float64
        )
        is_other = self._table_of_class != self._numbers[self._table(keys)].unsqueeze(-1)
        return (priority + is_other).argsort(-1)[:, : self.spec.ways]

    def _classes_of_examples(self) -> Tensor:
        return torch.isin(self._table_of_class, self._numbers).nonzero().squeeze(-1)

    def _rows(self, keys: Tensor, ids: Tensor) -> Tensor:
        """As of rows; a class of another table, which is padding, may have too few of its own."""
        return super()._rows(keys, ids).clamp(max=len(self._x) - 1)

    def _table(self, keys: Tensor) -> Tensor:
        """Sample the table of each task: [T] -> [T], indices into `names`."""
        return rng.integers(rng.fold_in(keys, "table"), (1,), len(self.names)).squeeze(-1)


def _pool(split: str) -> tuple[Tensor, list[int], list[int], str]:
    """Return (rows [R, 64] class after class, rows of each class, its table, hash) of a split."""
    parts, counts, table_of_class, tables = [], [], [], []
    for number, name in enumerate(NAMES):
        x, y = _table(name)
        tables += [x, y]
        for label in np.unique(y):
            rows = np.unique(x[y == label], axis=0)
            order = rng.permutation(rng.fold_in(0, "tables", name, int(label)), len(rows)).numpy()
            low, high = (round(share * len(rows)) for share in SHARES[split])
            split_rows = rows[order[low:high]]
            parts.append(np.pad(split_rows, ((0, 0), (0, WIDTH - x.shape[1]))))
            counts.append(high - low)
            table_of_class.append(number)
    return (
        torch.from_numpy(np.concatenate(parts)),
        counts,
        table_of_class,
        store.sha256_of_arrays(*tables),
    )


def _table(name: str) -> tuple[Any, Any]:
    """Return (x [R, F] float64, y [R] int64) of a table that comes with scikit-learn."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    x, y = np.asarray(data.data, dtype=np.float64), np.asarray(data.target)
    above = y > np.median(y) if data.get("target_names") is None else y
    return x, np.asarray(above, dtype=np.int64)
