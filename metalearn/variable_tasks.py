"""Tasks of variable numbers of classes and shots, in batches of one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.types import Batch, Episode, EpisodeSpec, Key, TaskSource

Range = tuple[int, int]
# Numbers, computed at import: a step that hashes a name cannot be compiled.
WAYS, SHOTS = (int(rng.fold_in(0, "variable", name)) for name in ("ways", "shots"))


class VariableSource:
    """Tasks of a source with fewer classes and shots, the rest of their examples as padding.

    The source samples tasks of N classes and K shots. Each task uses n ~ U{ways} of the classes,
    those with the labels 0 .. n - 1, and of each class k ~ U{shots} support examples, sampled
    separately for every class (unequal shots). The others get weight 0 (`Batch.weight`); all
    queries of the n classes are used. In regression k is sampled once per task. info has `ways` [T]
    and `shots` [T, N].
    """

    def __init__(self, source: TaskSource, ranges: dict[str, Range]) -> None:
        self._source, self.ranges = source, ranges
        self.spec: EpisodeSpec = dataclasses.replace(source.spec, padded=True)
        self.data_sha256 = getattr(source, "data_sha256", "")
        self.has_object_columns = getattr(source, "has_object_columns", False)
        self.facts: dict[str, Any] = getattr(source, "facts", {})
        self.groups: int | None = getattr(source, "groups", None)
        self.class_names: tuple[str, ...] = getattr(source, "class_names", ())
        self.split_rule: str = getattr(source, "split_rule", "")

    @property
    def chance(self) -> float:
        """Accuracy of a guess: the mean of 1/n."""
        low, high = self.ranges.get("ways", (self.spec.ways, self.spec.ways))
        return sum(1 / n for n in range(low, high + 1)) / (high - low + 1)

    @property
    def source(self) -> TaskSource:
        """The source of the tasks before padding."""
        return self._source

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """Sample tasks of the source, with weights [T, N*K] and [T, N*Q]."""
        support, query, info = self._source.sample(key, num_tasks, start)
        keys, spec = info["key"], self.spec
        ways = sample_ways(keys, self.ranges.get("ways", (spec.ways, spec.ways)))  # [T]
        low, high = self.ranges.get("shots", (spec.shots, spec.shots))
        shots = low + rng.integers(rng.fold_in(keys, SHOTS), (spec.ways,), high - low + 1)  # [T, N]
        support_labels, query_labels = self._labels(support), self._labels(query)
        support_mask = support_labels < ways.unsqueeze(-1)
        support_mask = support_mask & (
            _rank(support_labels, spec.ways) < shots.gather(-1, support_labels)
        )
        query_mask = query_labels < ways.unsqueeze(-1)
        return Episode(
            _masked(support, support_mask.to(spec.dtype)),
            _masked(query, query_mask.to(spec.dtype)),
            {**info, "ways": ways, "shots": shots},
        )

    def examples(self, key: Key, size: int) -> Batch:
        return self._source.examples(key, size)

    def on_cpu(self) -> VariableSource:
        """Return the same tasks, sampled on the CPU if the source can do so."""
        inner: TaskSource = getattr(self._source, "on_cpu", lambda: self._source)()
        return VariableSource(inner, self.ranges)

    def _labels(self, batch: Batch) -> Tensor:
        """[T, B] int64; zeros in regression."""
        if self.spec.classification:
            return batch.y
        return torch.zeros(batch.x.shape[:2], dtype=torch.int64, device=batch.x.device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_source":
            raise AttributeError(name)
        return getattr(self._source, name)


def _masked(batch: Batch, mask: Tensor) -> Batch:
    """The batch with padding by `mask` [T, B] in addition to that of its source."""
    return batch._replace(weight=mask if batch.weight is None else mask * batch.weight)


def sample_ways(keys: Key, ends: Range) -> Tensor:
    """Sample the number of classes of each task from its key: [T] -> [T]."""
    return ends[0] + rng.integers(rng.fold_in(keys, WAYS), (1,), ends[1] - ends[0] + 1).squeeze(-1)


def _rank(labels: Tensor, ways: int) -> Tensor:
    """Return how many examples of its class precede each example: [T, B] -> [T, B]."""
    same = labels.unsqueeze(-1) == torch.arange(ways, device=labels.device)
    before = same.to(torch.int64).cumsum(1) - 1
    return before.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def read_ranges(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Range]]:
    """Return (the fields with the upper end of each range, the ranges) of `ways` and `shots`.

    Raises ValueError if a range is not [low, high] with 1 <= low <= high, or has one class."""
    ranges: dict[str, Range] = {}
    for name in ("ways", "shots"):
        value = data.get(name)
        if not isinstance(value, list | tuple):
            continue
        is_range = all(type(end) is int for end in value) and len(value) == 2
        if not is_range or not (2 if name == "ways" else 1) <= value[0] <= value[1]:
            least = "2" if name == "ways" else "1"
            text = f"{name} is a number or a range [low, high], {least} <= low <= high"
            raise ValueError(f"{text} (got {list(value)})")
        ranges[name] = (value[0], value[1])
    return {**data, **{name: high for name, (_, high) in ranges.items()}}, ranges


def with_ranges(build: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `build` of a task component: with ranges its source samples variable tasks."""

    def build_variable(self: Any, *args: Any, **kwargs: Any) -> Any:
        source = build(self, *args, **kwargs)
        if not self.ranges or isinstance(source, VariableSource):
            return source
        if source.spec.objective is not None:
            text = "must be a number (got a range): a test function has a fixed number of residuals"
            raise ConfigError(*((name, text) for name in self.ranges))
        return VariableSource(source, dict(self.ranges))

    build_variable.__doc__, build_variable.__wrapped__ = build.__doc__, build  # type: ignore[attr-defined]
    return build_variable
