"""learn2learn's Taskset as a TaskSource, and a TaskSource in the form of a Taskset."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.tree import stack
from metalearn.types import Batch, Episode, EpisodeSpec, Key, TaskSource

RANGE = 1 << 62  # numbers of episodes that an endless SourceTaskset draws from


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """A context in which the global CPU generators are seeded by `key`.

    Those of Python, numpy and torch; as before outside."""
    number = int(key) & ((1 << 64) - 1)
    held = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        random.seed(number)
        np.random.seed(number & 0xFFFFFFFF)
        torch.default_generator.manual_seed(number)
        yield
    finally:
        random.setstate(held[0])
        np.random.set_state(held[1])
        torch.random.set_rng_state(held[2])


class TasksetSource:
    """Episodes from learn2learn's Taskset: `shots` of each class support, the rest query.

    Tasks are drawn by learn2learn's own transforms, from Python's global `random`, seeded for each
    episode from its key: episode t depends on (key, start + t) alone, and the generators are
    afterwards as they were. The same holds for augmentations that draw from numpy or from torch on
    the CPU; those that draw on a GPU keep it not. A Taskset of `num_tasks` tasks stays one: an
    episode is one of them, and task i is a function of i, not of what was drawn before, so tasks
    that the Taskset itself holds in its cache are not looked at. Labels are given in an order drawn
    from the key (RemapLabels is neither needed nor in the way). Values are taken as the Taskset
    gives them, cast to `dtype`. Raises ConfigError where a task is not N classes of equally many
    examples, or labels are no whole numbers."""

    data_sha256 = ""

    def __init__(
        self,
        taskset: Any,
        shots: int,
        split: str = "train",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._taskset = taskset
        self._classes = _classes_of(taskset)
        self._places = {label: place for place, label in enumerate(self._classes)}
        _check_sizes(taskset, self._classes)
        x, rows, _ = self._draw(rng.fold_in(0, "probe"))
        ways, each = rows.shape
        if not 1 <= shots <= each:
            text = f"is {shots}, but a task of this Taskset has {each} examples per class"
            raise ConfigError(("shots", text))
        self.spec = EpisodeSpec(
            kind="classification",
            ways=ways,
            shots=shots,
            queries=each - shots,
            x_shape=tuple(x.shape[1:]),
            outputs=ways,
            num_classes=len(self._classes),
            split=split,
            dtype=dtype,
            device=device,
        )

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """An episode batch: support x [T, N*K, *X], query x [T, N*Q, *X], y [T, .] int64.

        info: key, step [T], class_ids [T, N]."""
        keys = rng.fold_in(key.cpu(), torch.arange(start, start + num_tasks))
        episodes: Episode = stack([self._episode(one) for one in keys])
        return episodes

    def examples(self, key: Key, size: int) -> Batch:
        """Examples of the data set, classes equally likely: x [B, *X], y [B] int64."""
        key, dataset = key.cpu(), self._taskset.dataset
        y = rng.integers(rng.fold_in(key, "class"), (size,), len(self._classes))
        fraction = rng.uniform(rng.fold_in(key, "example"), (size,), dtype=torch.float64)
        rows = []
        for place, part in zip(y.tolist(), fraction.tolist(), strict=True):
            own = dataset.labels_to_indices[self._classes[place]]
            rows.append(own[int(part * len(own))])
        with seeded(rng.fold_in(key, "data")):
            x = self._taskset.task_collate([dataset[row] for row in rows])[0]
        return Batch(x.to(self.spec.device, self.spec.dtype), y.to(self.spec.device))

    def _draw(self, key: Key) -> tuple[Tensor, Tensor, Tensor]:
        """One task: x [N*(K+Q), *X], the rows of each class in it [N, K+Q], the class of each row
        [N*(K+Q)]."""
        taskset = self._taskset
        of_task = rng.fold_in(key, "task")
        if taskset.num_tasks > 0:
            place = int(rng.integers(of_task, (1,), taskset.num_tasks))
            of_task = rng.fold_in(0, "taskset", place)
        try:
            with seeded(of_task):
                description = taskset.sample_task_description()
        except ValueError as error:  # of random.sample, in learn2learn's transforms
            text = "no task can be sampled: too few classes, or too few examples of a class"
            raise ConfigError(("taskset", f"{text} ({error})")) from error
        with seeded(rng.fold_in(key, "data")):
            x, y = taskset.get_task(description)
        whole = isinstance(y, Tensor) and not y.is_floating_point()
        if not whole or y.shape != (len(description),):
            text = "a task must be (x, y) with one integer label per example"
            raise ConfigError(("taskset", text))
        labels, counts = y.unique(return_counts=True)
        if len(labels) < 2 or len(set(counts.tolist())) != 1:
            text = "a task must have equally many examples of 2 or more classes"
            raise ConfigError(("taskset", f"{text}, not {counts.tolist()}"))
        rows = y.argsort(stable=True).reshape(len(labels), -1)
        label_of = taskset.dataset.indices_to_labels
        classes = [self._places[label_of[one.index]] for one in description]
        return x, rows, torch.tensor(classes)

    def _episode(self, key: Key) -> Episode:
        x, rows, classes = self._draw(key)
        spec, (ways, each) = self.spec, rows.shape
        shape = (ways, each, *x.shape[1:])
        first = (spec.ways, spec.shots + spec.queries, *spec.x_shape)
        if shape != first:
            text = f"[ways, examples a class, *X] was {[*first]}, here {[*shape]}"
            raise ConfigError(("taskset", f"its tasks must have one shape; {text}"))
        rows = rows[rng.permutation(rng.fold_in(key, "labels"), ways)]
        order = rng.permutation(rng.fold_in(key, "examples", torch.arange(ways)), each)
        rows = rows.gather(1, order)
        support = self._part(x, rows[:, : spec.shots], rng.fold_in(key, "support"))
        query = self._part(x, rows[:, spec.shots :], rng.fold_in(key, "query"))
        step = torch.zeros((), dtype=spec.dtype, device=spec.device)
        info = {
            "key": key.to(spec.device),
            "step": step,
            "class_ids": classes[rows[:, 0]].to(spec.device),
        }
        return Episode(support, query, info)

    def _part(self, x: Tensor, rows: Tensor, key: Key) -> Batch:
        """Examples at rows [N, R], labelled by their place along N, in an order drawn from the
        key."""
        order = rng.permutation(key, rows.numel())
        labels = order // rows.shape[1] if rows.numel() else order
        picked = x[rows.flatten()[order]]
        return Batch(picked.to(self.spec.device, self.spec.dtype), labels.to(self.spec.device))


def _classes_of(taskset: Any) -> list[int]:
    """The labels that tasks are drawn from: the data set's, but for those that a transform filters
    out."""
    needed = ("dataset", "num_tasks", "task_transforms", "task_collate")
    if not all(hasattr(taskset, name) for name in needed):
        text = f"must be a learn2learn.data.Taskset, not a {type(taskset).__name__}"
        raise ConfigError(("taskset", text))
    labels = list(taskset.dataset.labels)
    for transform in _transforms(taskset):
        chosen = getattr(transform, "filter_labels", getattr(transform, "labels", None))
        labels = labels if chosen is None else [label for label in labels if label in set(chosen)]
    if not all(isinstance(label, int) for label in labels):
        why = "learn2learn samples from a set of them, whose order differs between processes"
        raise ConfigError(("taskset", f"labels must be integers (got {labels[0]!r}): {why}"))
    return labels


def _transforms(taskset: Any) -> list[Any]:
    return [] if callable(taskset.task_transforms) else list(taskset.task_transforms)


def _check_sizes(taskset: Any, classes: list[int]) -> None:
    """ConfigError where a class has fewer examples than a task draws, unless with replacement."""
    transforms = _transforms(taskset)
    each = max((getattr(one, "k", 0) for one in transforms), default=0)
    if any(getattr(one, "replacement", False) for one in transforms):
        return
    counts = {label: len(taskset.dataset.labels_to_indices[label]) for label in classes}
    small = ", ".join(f"{label} ({count})" for label, count in counts.items() if count < each)
    if small:
        text = f"a task samples {each} examples per class, but some classes have fewer: {small}"
        raise ConfigError(
            ("taskset", f"{text}; sample fewer, or remove these classes with FilterLabels")
        )


class SourceTaskset:
    """A TaskSource in the form of learn2learn's Taskset: task i is (x, y) of episode i of `key`.

    x [N*(K+Q), *X] holds the support set and then the queries, so learn2learn's `partition_task(x,
    y, shots=K)` finds the same support set. `num_tasks` -1 is endless; `sample` draws i from
    Python's global `random`, as a Taskset does."""

    def __init__(self, source: TaskSource, key: Key, num_tasks: int = -1) -> None:
        if num_tasks != -1 and num_tasks < 1:
            text = f"must be -1 (infinite) or positive (got {num_tasks})"
            raise ConfigError(("num_tasks", text))
        self.source, self.key, self.num_tasks = source, key, num_tasks

    def __len__(self) -> int:
        """1 for an endless one, as a Taskset says."""
        return max(1, self.num_tasks)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Task `number`, always the same; IndexError beyond the last."""
        if number < 0 or (self.num_tasks > 0 and number >= self.num_tasks):
            raise IndexError(f"task {number} of {self.num_tasks}")
        support, query, _ = self.source.sample(self.key, 1, start=number)
        return torch.cat([support.x[0], query.x[0]]), torch.cat([support.y[0], query.y[0]])

    def sample(self) -> tuple[Tensor, Tensor]:
        """(x, y) of a random task."""
        return self[random.randrange(self.num_tasks if self.num_tasks > 0 else RANGE)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        number = 0
        while self.num_tasks < 0 or number < self.num_tasks:
            yield self[number]
            number += 1
