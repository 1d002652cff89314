"""Episodes from rows of numbers: classes of rows, or groups of rows with values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn import rng
from metalearn.types import Batch, Episode, EpisodeSpec, Key


class RowSource:
    """Episodes by index from rows on the device.

    rows [R, *X] class after class (or group after group), `counts` rows each, perhaps by name;
    values [R, C] in regression; `split_rule` says how classes or groups were split. Support and
    query rows are different; both sets are permuted in every episode. With `support_order`, the
    name of the column by which the rows of each class are sorted, the support set has the first K
    rows of a class, in this order, and the queries are of the rows after them.
    All random numbers of task t are a function of (key, start + t)."""

    def __init__(
        self,
        rows: Tensor,
        values: Tensor | None,
        counts: Sequence[int] | Mapping[str, int],
        spec: EpisodeSpec,
        data_sha256: str = "",
        facts: dict[str, Any] | None = None,
        has_object_columns: bool = False,
        support_order: str | None = None,
        split_rule: str = "",
    ) -> None:
        self.spec, self.data_sha256 = spec, data_sha256
        order = {} if support_order is None else {"support_order": support_order}
        self.facts = {**(facts or {}), **order}  # how the component made the rows, for result.json
        self.has_object_columns = has_object_columns  # whether any held Python objects
        self.support_order = support_order
        self._x = rows.to(spec.device, spec.dtype)
        self._y = None if values is None else values.to(spec.device, spec.dtype)
        # names of the classes or groups of the split, in the order of class_ids
        self.class_names = tuple(counts) if isinstance(counts, Mapping) else ()
        self.split_rule = split_rule
        sizes = list(counts.values() if isinstance(counts, Mapping) else counts)
        self._counts = torch.tensor(sizes, dtype=torch.int64, device=spec.device)
        self._starts = self._counts.cumsum(0) - self._counts
        self.groups = None if values is None else len(self._counts)

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """support.x [T, N*K, *X], query.x [T, N*Q, *X]; info: key [T], step [T], class_ids [T, N].

        In regression N is 1, and class_ids [T, 1] names the group."""
        spec = self.spec
        numbers = torch.arange(start, start + num_tasks, device=spec.device)
        keys = rng.fold_in(key.to(spec.device), spec.split, numbers)
        ids = self._classes(keys)
        rows = self._rows(rng.fold_in(keys, "rows"), ids)
        in_order = self.support_order is not None
        support = self._part(rng.fold_in(keys, "support"), rows[..., : spec.shots], in_order)
        query = self._part(rng.fold_in(keys, "query"), rows[..., spec.shots :])
        step = torch.zeros(num_tasks, dtype=spec.dtype, device=spec.device)
        return Episode(support, query, {"key": keys, "step": step, "class_ids": ids})

    def examples(self, key: Key, size: int) -> Batch:
        """x [B, *X] of random classes with their labels [B], or of random groups with values."""
        key = key.to(self.spec.device)
        classes = self._classes_of_examples()
        labels = classes[rng.integers(rng.fold_in(key, "class"), (size,), len(classes))]
        fraction = rng.integers(rng.fold_in(key, "row"), (size,), 1 << 31)
        rows = self._starts[labels] + ((fraction * self._counts[labels]) >> 31)
        return Batch(self._x[rows], labels if self._y is None else self._y[rows])

    def _classes_of_examples(self) -> Tensor:
        """Return the classes or groups that `examples` samples from: all."""
        return torch.arange(len(self._counts), device=self.spec.device)

    def _classes(self, keys: Tensor) -> Tensor:
        """Sample the classes of each task in the order of their labels: keys [T] -> [T, N]."""
        return rng.choice(rng.fold_in(keys, "classes"), len(self._counts), self.spec.ways)

    def _rows(self, keys: Tensor, ids: Tensor) -> Tensor:
        """Sample K + Q different rows of each class: keys [T], ids [T, N] -> [T, N, K + Q].

        The rows of a class get random numbers, and those with the smallest are selected; rows
        beyond a class's own count get the largest. With an order the first K rows come first."""
        labels = torch.arange(self.spec.ways, device=keys.device)
        width, shots = int(self._counts.max()), self.spec.shots
        priority = rng.uniform(
            rng.fold_in(keys.unsqueeze(-1), labels), (width,), dtype=torch.float64
        )
        numbers = torch.arange(width, device=keys.device)
        outside = numbers >= self._counts[ids].unsqueeze(-1)
        if self.support_order is not None:
            priority = torch.where(numbers < shots, (numbers - shots).to(priority.dtype), priority)
        order = priority.masked_fill(outside, 2.0).argsort(-1)
        return order[..., : shots + self.spec.queries] + self._starts[ids].unsqueeze(-1)

    def _part(self, keys: Tensor, rows: Tensor, in_order: bool = False) -> Batch:
        """Return the rows [T, N, R] as one permuted set per task.

        If `in_order`, only classes are permuted: the rows of each remain in their order."""
        tasks, ways, each = rows.shape
        order = rng.permutation(keys, ways * each)
        labels = order // each if each else order
        if in_order:  # row r of a class goes to the place of its label with the rank r
            order = labels.argsort(stable=True, dim=-1).argsort(-1)
        indices = rows.reshape(tasks, ways * each).gather(-1, order)
        return Batch(self._x[indices], labels if self._y is None else self._y[indices])
