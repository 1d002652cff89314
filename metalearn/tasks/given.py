"""A user's task sources as a component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import PrivateAttr, model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError
from metalearn.in_memory import Held, hash_of, held, hold, name_of
from metalearn.labels import check_targets
from metalearn.padding import zero_padding
from metalearn.tasks.images import SPLITS
from metalearn.types import Batch, TaskSource


class Given(TaskComponent):
    """User-supplied task sources: one per split, a function of the split, or one for all splits.

    `Given({"train": a, "valid": b, "test": c})`. A stored run holds their name and a hash of their
    first tasks: to use the run in another process, give the same sources again.

    >>> sinusoids = ml.tasks.Sinusoid(shots=5).build()
    >>> source = ml.tasks.Given(sinusoids).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 1])
    """

    source: Literal["task_sources"] = option("task_sources", "The task source.")
    object: str = option("", "Name of the source or function.")
    sha256: str = option("", "SHA-256 of its first tasks; set by Given(sources).")
    _held: Held | None = PrivateAttr(default=None)

    def __init__(self, sources: Any = None, **fields: Any) -> None:
        entry: Held | None = None
        if sources is not None:
            by_split = {split: _source(sources, split) for split in SPLITS}
            sha256 = hash_of([_first_tasks(source) for source in by_split.values()])
            entry = hold(by_split, sha256)
            named_object = sources if callable(sources) else by_split["train"]
            fields |= {"object": name_of(named_object), "sha256": sha256}
        super().__init__(**fields)
        if entry is not None:
            self._held = entry

    @model_validator(mode="after")
    def _find(self) -> Given:
        self._held = self._held or held(self.sha256 or None)
        return self

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TaskSource:
        """Return the source of a split; raises ConfigError if it is missing or of another dtype."""
        if self._held is None:
            text = (
                f"is {self.object or 'a task source'}, passed from Python: pass the same one again"
            )
            raise ConfigError(("source", f"{text}, as metalearn.tasks.Given(sources)"))
        source: TaskSource = self._held.value[split]
        if source.spec.dtype != dtype:
            dtypes = (source.spec.dtype, dtype)
            actual, required = (str(value).removeprefix("torch.") for value in dtypes)
            text = f"has dtype {actual}, but the run needs {required}: run={{'dtype': '{actual}'}}"
            raise ConfigError(("source", text))
        return source


def _source(sources: Any, split: str) -> TaskSource:
    if isinstance(sources, Mapping):
        if split not in sources:
            raise ConfigError(("sources", f"has no {split!r}: pass {', '.join(SPLITS)}"))
        source = sources[split]
    else:
        source = sources if hasattr(sources, "sample") else sources(split)
    if not hasattr(source, "sample") or not hasattr(source, "spec"):
        text = f"{type(source).__name__} of the split {split} is not a task source: it needs spec,"
        raise ConfigError(("sources", f"{text} sample and examples"))
    return source  # type: ignore[no-any-return]


def _first_tasks(source: TaskSource) -> list[Any]:
    episodes = source.sample(rng.fold_in(0, "given"), 2)
    problems = [
        (f"sources.{source.spec.split}", f"{name}{text}")
        for name, batch in (("support", episodes.support), ("query", episodes.query))
        for text in _problems(batch, source)
    ]
    if "key" not in episodes.info:
        problems.append((f"sources.{source.spec.split}", "info has no key [T], one per task"))
    if problems:
        raise ConfigError(*problems)
    check_targets(episodes, source.spec)
    parts = [leaf for part in (episodes.support, episodes.query) for leaf in (part.x, part.y)]
    return [repr(source.spec.ways), source.spec.split, *parts]


def _problems(batch: Batch, source: TaskSource) -> list[str]:
    """Return where two tasks differ from the spec of the source."""
    x, y, spec = batch.x, batch.y, source.spec
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        kinds = f"{type(x).__name__} and {type(y).__name__}"
        return [f" has x and y as {kinds}: use tensors, such as torch.as_tensor"]
    problems = []
    if tuple(x.shape[2:]) != tuple(spec.x_shape) or len(x) != 2:
        shape = ", ".join(["T", "B", *map(str, spec.x_shape)])
        problems.append(f".x has shape {list(x.shape)} for T = 2 tasks: the spec says [{shape}]")
    elif x.shape[:2] != y.shape[:2]:
        problems.append(f".y has shape {list(y.shape)}, and x has {list(x.shape)}")
    if x.is_floating_point() and x.dtype != spec.dtype:
        problems.append(f".x is {x.dtype}, and spec.dtype is {spec.dtype}")
    weight = batch.weight
    if weight is not None and weight.shape != x.shape[:2]:
        problems.append(f".weight has shape {list(weight.shape)}, and x has {list(x.shape)}")
    elif not zero_padding(Batch(x, x, weight)).x.isfinite().all():  # padding may hold anything
        problems.append(".x is not finite")
    if x.requires_grad or y.requires_grad:
        problems.append(" requires a gradient: use x.detach()")
    return problems


def as_tasks(task: Any) -> Any:
    """Return a component for task sources; anything else is returned unchanged."""
    if isinstance(task, TaskComponent):
        return task
    sources = isinstance(task, Mapping) or hasattr(task, "sample") or callable(task)
    return Given(task) if sources and not isinstance(task, type) else task
