"""Task sources as a user writes them, and changes that make them wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import metalearn as ml
from metalearn.rng import fold_in, integers, normal, uniform
from metalearn.types import Batch, Episode, EpisodeSpec

SPLITS = ("train", "valid", "test")
METHODS = {"maml": ml.algorithms.MAML(), "fine-tune": ml.transfer.FineTune()}
QUICK: dict[str, Any] = {
    "meta_steps": 1,
    "tasks_per_step": 2,
    "examples_per_step": 4,
    "episodes": 3,
    "steps": (0, 1),
    "executor": "vmap",
    "model": ml.models.MLP(sizes=(4,)),
}
Change = Callable[[Episode], Any]


class Lines:
    """Regression on lines: 5 support and 6 query points."""

    def __init__(self, split: str = "train", **fields: Any) -> None:
        spec = EpisodeSpec("regression", 1, 5, 6, (1,), 1, 0, split=split)
        self.spec: Any = replace(spec, **fields)
        self.split = split

    def keys(self, key: Any, num_tasks: int, start: int = 0) -> Any:
        return fold_in(key, self.split, torch.arange(start, start + num_tasks))

    def tasks(self, keys: Any, task_keys: Any) -> Episode:
        line, x = (
            normal(fold_in(task_keys, "line"), (2,)),
            uniform(fold_in(task_keys, "x"), (11, 1)),
        )
        y = line[:, None, :1] * x + line[:, None, 1:]
        info = {"key": keys, "step": torch.zeros(len(keys))}
        return Episode(Batch(x[:, :5], y[:, :5]), Batch(x[:, 5:], y[:, 5:]), info)

    def sample(self, key: Any, num_tasks: int, start: int = 0) -> Any:
        keys = self.keys(key, num_tasks, start)
        return self.tasks(keys, keys)

    def examples(self, key: Any, size: int) -> Any:
        support = Lines.sample(self, fold_in(key, "examples"), size).support
        return Batch(support.x[:, 0], support.y[:, 0])


class Groups(Lines):
    """13 groups, each with one support and one query set: tasks repeat by chance."""

    groups = 13

    def sample(self, key: Any, num_tasks: int, start: int = 0) -> Episode:
        keys = self.keys(key, num_tasks, start)
        group = integers(fold_in(keys, "group"), (1,), self.groups)[:, 0]
        return self.tasks(keys, fold_in(fold_in(5, self.split), group))


class Points:
    """Classification of points: 3 ways, 2 shots, 4 queries of 10 classes."""

    def __init__(self, split: str = "train", **fields: Any) -> None:
        spec = EpisodeSpec("classification", 3, 2, 4, (4,), 3, 10, split=split)
        self.spec = replace(spec, **fields)
        self.centres = normal(fold_in(0, split), (10, 4))

    def sample(self, key: Any, num_tasks: int, start: int = 0) -> Any:
        keys = fold_in(key, torch.arange(start, start + num_tasks))
        ids = uniform(fold_in(keys, "classes"), (10,)).argsort(-1)[:, :3]
        sets = []
        for name, count in (("support", 2), ("query", 4)):
            order = uniform(fold_in(keys, name), (3 * count,)).argsort(-1)
            y = torch.arange(3).repeat(count).expand(num_tasks, -1).gather(1, order)
            noise = normal(fold_in(keys, name, "noise"), (3 * count, 4))
            sets.append(Batch(self.centres[ids.gather(1, y)] + noise, y))
        return Episode(*sets, {"key": keys, "step": torch.zeros(num_tasks), "class_ids": ids})

    def examples(self, key: Any, size: int) -> Any:
        y = integers(fold_in(key, "y"), (size,), 10)
        return Batch(self.centres[y] + normal(fold_in(key, "noise"), (size, 4)), y)


class NoExamples:
    """What a newcomer writes who reads only `spec` and `sample`."""

    def __init__(self, split: str) -> None:
        self.source = Lines(split)
        self.spec = self.source.spec

    def sample(self, key: Any, num_tasks: int, start: int = 0) -> Any:
        return self.source.sample(key, num_tasks, start)


def by_split(kind: Any = Lines, /, **fields: Any) -> dict[str, Any]:
    """Return one source for each split."""
    return {split: kind(split, **fields) for split in SPLITS}


def with_spec(change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return sources whose `spec` is changed after they are made."""
    sources = by_split()
    for source in sources.values():
        source.spec = change(source.spec)
    return sources


def changed(change: Change, kind: Any = Lines, /, **fields: Any) -> dict[str, Any]:
    """Return sources whose sampled tasks are changed."""

    class Changed(kind):  # type: ignore[misc]
        def sample(self, key: Any, num_tasks: int, start: int = 0) -> Any:
            return change(super().sample(key, num_tasks, start))

    return by_split(Changed, **fields)


def with_batches(change: Callable[[Batch], Any]) -> Change:
    """Return the change of both the support and the query set."""
    return lambda e: e._replace(support=change(e.support), query=change(e.query))


def with_info(**values: Any) -> Change:
    """Return the change of values of info; None removes one."""
    return lambda e: e._replace(
        info={name: v for name, v in {**e.info, **values}.items() if v is not None}
    )


def defined(kind: Any = Lines, **methods: Any) -> dict[str, Any]:
    """Return sources of a subclass with other methods, which get the base class as `base`."""
    return by_split(type("Own", (kind,), methods))
