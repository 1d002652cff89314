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

RANGE = 1 << 62  # number of episodes that an infinite SourceTaskset samples from


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Context manager that seeds the global CPU generators of Python, numpy and torch by `key`.

    Their states are restored at the end."""
    seed = int(key) & ((1 << 64) - 1)
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


class TasksetSource:
    """Episodes from learn2learn's Taskset: `shots` of each class support, the rest query.

    Tasks are sampled by learn2learn's own transforms, from Python's global `random`, seeded for
    each episode from its key: episode t depends only on (key, start + t), and the states of the
    generators are restored. The same holds for augmentations that sample from numpy or from torch
    on the CPU, but not for those that sample on a GPU. With a Taskset of `num_tasks` tasks, each
    episode is one of them, and task i is a function of i, not of earlier samples, so the cache of
    the Taskset is not used. Labels are assigned in an order sampled from the key (RemapLabels is
    not needed, but allowed). Values are those of the Taskset, cast to `dtype`. Raises
    ConfigError if a task is not N classes of equally many examples, or labels are not integers."""

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
        self._classes = _list_classes(taskset)
        self._class_indices = {label: index for index, label in enumerate(self._classes)}
        _check_sizes(taskset, self._classes)
        x, rows, _ = self._sample_task(rng.fold_in(0, "probe"))
        ways, per_class = rows.shape
        if not 1 <= shots <= per_class:
            text = f"is {shots}, but a task of this Taskset has {per_class} examples per class"
            raise ConfigError(("shots", text))
        self.spec = EpisodeSpec(
            kind="classification",
            ways=ways,
            shots=shots,
            queries=per_class - shots,
            x_shape=tuple(x.shape[1:]),
            outputs=ways,
            num_classes=len(self._classes),
            split=split,
            dtype=dtype,
            device=device,
        )

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """Sample an episode batch: support x [T, N*K, *X], query x [T, N*Q, *X], y [T, .] int64.

        info: key, step [T], class_ids [T, N]."""
        keys = rng.fold_in(key.cpu(), torch.arange(start, start + num_tasks))
        episodes: Episode = stack([self._build_episode(task_key) for task_key in keys])
        return episodes

    def examples(self, key: Key, size: int) -> Batch:
        """Sample examples of the data set, classes equally likely: x [B, *X], y [B] int64."""
        key, dataset = key.cpu(), self._taskset.dataset
        y = rng.integers(rng.fold_in(key, "class"), (size,), len(self._classes))
        fraction = rng.uniform(rng.fold_in(key, "example"), (size,), dtype=torch.float64)
        rows = []
        for class_index, position in zip(y.tolist(), fraction.tolist(), strict=True):
            class_rows = dataset.labels_to_indices[self._classes[class_index]]
            rows.append(class_rows[int(position * len(class_rows))])
        with seeded(rng.fold_in(key, "data")):
            x = self._taskset.task_collate([dataset[row] for row in rows])[0]
        return Batch(x.to(self.spec.device, self.spec.dtype), y.to(self.spec.device))

    def _sample_task(self, key: Key) -> tuple[Tensor, Tensor, Tensor]:
        """Sample one task: x [N*(K+Q), *X], the rows of each class in it [N, K+Q], the class of
        each row [N*(K+Q)]."""
        taskset = self._taskset
        task_key = rng.fold_in(key, "task")
        if taskset.num_tasks > 0:
            index = int(rng.integers(task_key, (1,), taskset.num_tasks))
            task_key = rng.fold_in(0, "taskset", index)
        try:
            with seeded(task_key):
                description = taskset.sample_task_description()
        except ValueError as error:  # of random.sample, in learn2learn's transforms
            text = "no task can be sampled: too few classes, or too few examples of a class"
            raise ConfigError(("taskset", f"{text} ({error})")) from error
        with seeded(rng.fold_in(key, "data")):
            x, y = taskset.get_task(description)
        is_integer = isinstance(y, Tensor) and not y.is_floating_point()
        if not is_integer or y.shape != (len(description),):
            text = "a task must be (x, y) with one integer label per example"
            raise ConfigError(("taskset", text))
        labels, counts = y.unique(return_counts=True)
        if len(labels) < 2 or len(set(counts.tolist())) != 1:
            text = "a task must have equally many examples of 2 or more classes"
            raise ConfigError(("taskset", f"{text}, not {counts.tolist()}"))
        rows = y.argsort(stable=True).reshape(len(labels), -1)
        label_by_row = taskset.dataset.indices_to_labels
        classes = [self._class_indices[label_by_row[item.index]] for item in description]
        return x, rows, torch.tensor(classes)

    def _build_episode(self, key: Key) -> Episode:
        x, rows, classes = self._sample_task(key)
        spec, (ways, per_class) = self.spec, rows.shape
        shape = (ways, per_class, *x.shape[1:])
        expected = (spec.ways, spec.shots + spec.queries, *spec.x_shape)
        if shape != expected:
            text = f"[ways, examples a class, *X] was {[*expected]}, here {[*shape]}"
            raise ConfigError(("taskset", f"its tasks must have one shape; {text}"))
        rows = rows[rng.permutation(rng.fold_in(key, "labels"), ways)]
        order = rng.permutation(rng.fold_in(key, "examples", torch.arange(ways)), per_class)
        rows = rows.gather(1, order)
        support = self._build_batch(x, rows[:, : spec.shots], rng.fold_in(key, "support"))
        query = self._build_batch(x, rows[:, spec.shots :], rng.fold_in(key, "query"))
        step = torch.zeros((), dtype=spec.dtype, device=spec.device)
        info = {
            "key": key.to(spec.device),
            "step": step,
            "class_ids": classes[rows[:, 0]].to(spec.device),
        }
        return Episode(support, query, info)

    def _build_batch(self, x: Tensor, rows: Tensor, key: Key) -> Batch:
        """Return the examples at rows [N, R], labelled by their index along N, in an order sampled
        from the key."""
        order = rng.permutation(key, rows.numel())
        labels = order // rows.shape[1] if rows.numel() else order
        selected = x[rows.flatten()[order]]
        return Batch(selected.to(self.spec.device, self.spec.dtype), labels.to(self.spec.device))


def _list_classes(taskset: Any) -> list[int]:
    """Return the labels that tasks are sampled from: those of the data set, except those that a
    transform filters out."""
    attributes = ("dataset", "num_tasks", "task_transforms", "task_collate")
    if not all(hasattr(taskset, name) for name in attributes):
        text = f"must be a learn2learn.data.Taskset, not a {type(taskset).__name__}"
        raise ConfigError(("taskset", text))
    labels = list(taskset.dataset.labels)
    for transform in _transforms(taskset):
        chosen = getattr(transform, "filter_labels", getattr(transform, "labels", None))
        labels = labels if chosen is None else [label for label in labels if label in set(chosen)]
    if not all(isinstance(label, int) for label in labels):
        reason = "learn2learn samples from a set of them, whose order differs between processes"
        raise ConfigError(("taskset", f"labels must be integers (got {labels[0]!r}): {reason}"))
    return labels


def _transforms(taskset: Any) -> list[Any]:
    return [] if callable(taskset.task_transforms) else list(taskset.task_transforms)


def _check_sizes(taskset: Any, classes: list[int]) -> None:
    """Raise ConfigError if a class has fewer examples than a task samples without replacement."""
    transforms = _transforms(taskset)
    per_class = max((getattr(transform, "k", 0) for transform in transforms), default=0)
    if any(getattr(transform, "replacement", False) for transform in transforms):
        return
    counts = {label: len(taskset.dataset.labels_to_indices[label]) for label in classes}
    small = ", ".join(f"{label} ({count})" for label, count in counts.items() if count < per_class)
    if small:
        text = (
            f"a task samples {per_class} examples per class, but some classes have fewer: {small}"
        )
        raise ConfigError(
            ("taskset", f"{text}; sample fewer, or remove these classes with FilterLabels")
        )


class SourceTaskset:
    """A TaskSource in the form of learn2learn's Taskset: task i is (x, y) of episode i of `key`.

    x [N*(K+Q), *X] contains the support set and then the queries, so learn2learn's
    `partition_task(x, y, shots=K)` returns the same support set. `num_tasks` -1 is infinite;
    `sample` samples i from Python's global `random`, as a Taskset does."""

    def __init__(self, source: TaskSource, key: Key, num_tasks: int = -1) -> None:
        if num_tasks != -1 and num_tasks < 1:
            text = f"must be -1 (infinite) or positive (got {num_tasks})"
            raise ConfigError(("num_tasks", text))
        if source.spec.padded:
            text = "has tasks of several sizes, and a Taskset has no place for what is padding"
            raise ConfigError(("source", f"{text}: use one number of ways and shots"))
        self.source, self.key, self.num_tasks = source, key, num_tasks

    def __len__(self) -> int:
        """Return `num_tasks`, or 1 if it is infinite, as a Taskset does."""
        return max(1, self.num_tasks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return task `index`, always the same; raises IndexError beyond the last."""
        if index < 0 or (self.num_tasks > 0 and index >= self.num_tasks):
            raise IndexError(f"task {index} of {self.num_tasks}")
        support, query, _ = self.source.sample(self.key, 1, start=index)
        return torch.cat([support.x[0], query.x[0]]), torch.cat([support.y[0], query.y[0]])

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return (x, y) of a random task."""
        return self[random.randrange(self.num_tasks if self.num_tasks > 0 else RANGE)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        index = 0
        while self.num_tasks < 0 or index < self.num_tasks:
            yield self[index]
            index += 1
