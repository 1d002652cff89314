"""A user's task sources as a component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import PrivateAttr, model_validator

from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError, did_you_mean
from metalearn.in_memory import Held, hash_of, held, hold, name_of
from metalearn.tasks.given.form import form_problems
from metalearn.tasks.given.sampled import first_tasks, loss_problems, sampling_problems
from metalearn.tasks.images import SPLITS, split_problem
from metalearn.types import Episode, EpisodeSpec, TaskSource

Problems = list[tuple[str, str]]  # (place, sentence)


class Given(TaskComponent):
    """User-supplied task sources: one per split, a function of the split, or one for all splits.

    `Given({"train": a, "valid": b, "test": c})`. Each has `spec`, `sample` and `examples`, of which
    a few tasks are sampled to compare them with the spec; raises ConfigError with all problems. A
    stored run holds their name and a hash of their first tasks: to use the run in another process,
    give the same sources again.

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
            by_split = _checked(sources)
            first = {split: first_tasks(source) for split, source in by_split.items()}
            sha256 = hash_of([_hashed(by_split[split].spec, first[split]) for split in SPLITS])
            entry = hold(by_split, sha256, replace=True)
            entry.made["loss"] = _merged(
                {split: loss_problems(first[split], by_split[split].spec) for split in SPLITS}
            )
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
        if problems := split_problem(split):
            raise ConfigError(*problems)
        source: TaskSource = self._held.value[split]
        if problems := _misfits(source.spec, device, dtype):
            raise ConfigError(*problems)
        return source

    @property
    def splits_are_labelled(self) -> bool:
        """False for one source for all splits, whose spec says one of them."""
        sources = self._held.value.values() if self._held else ()
        return len({id(source) for source in sources}) > 1

    @property
    def loss_problems(self) -> Problems:
        return list(self._held.made.get("loss", ())) if self._held else []


def _misfits(spec: EpisodeSpec, device: str, dtype: torch.dtype) -> Problems:
    """Return how the tasks of a source differ from those that a run needs."""
    problems = []
    if spec.dtype != dtype:
        actual, required = (str(value).removeprefix("torch.") for value in (spec.dtype, dtype))
        text = f"has dtype {actual}, but the run needs {required}: run={{'dtype': '{actual}'}}"
        problems.append(("source", text))
    actual, required = (torch.device(name).type for name in (spec.device, device))
    if actual != required:
        text = f"is on {actual}, but the run uses {required}: pass device={actual!r}, or a source"
        problems.append(("source", f"{text} on {required}"))
    return problems


def _sources_by_split(sources: Any) -> tuple[dict[str, Any], Problems, Exception | None]:
    """Return (sources by split, problems, the exception that a function of the split raised)."""
    if isinstance(sources, Mapping):
        absent = [name for name in SPLITS if name not in sources]
        problems = [("sources", f"has no {name!r}: pass {', '.join(SPLITS)}") for name in absent]
        for name in sources:
            if name not in SPLITS:
                text = f"has {name!r}, which is not a split; {did_you_mean(str(name), SPLITS)}"
                problems.append(("sources", text))
        return {name: sources[name] for name in SPLITS if name in sources}, problems, None
    if _is_one_source(sources):
        return dict.fromkeys(SPLITS, sources), [], None
    by_split: dict[str, Any] = {}
    for split in SPLITS:
        try:
            by_split[split] = sources(split)
        except Exception as error:
            text = f"{name_of(sources)}({split!r}) raises {type(error).__name__}: {error}"
            hint = "a function passed as task sources returns the source of a split"
            return by_split, [("sources", f"{text}; {hint}")], error
    return by_split, [], None


def _is_one_source(sources: Any) -> bool:
    """Return whether it is one source for all splits, not a mapping or a function of the split."""
    is_mapping = isinstance(sources, Mapping)
    return not is_mapping and (hasattr(sources, "sample") or not callable(sources))


def _checked(sources: Any) -> dict[str, TaskSource]:
    """Return the source of each split; raises ConfigError with every problem of all of them."""
    by_split, problems, cause = _sources_by_split(sources)
    is_one, texts = _is_one_source(sources), dict[str, list[str]]()
    for split, source in list(by_split.items())[: 1 if is_one else None]:
        texts[split] = form_problems(source, None if is_one else split)
        if not texts[split]:
            texts[split], error = sampling_problems(source, trains=split == "train")
            cause = cause or error
    if problems := problems + _merged(texts):
        raise ConfigError(*problems) from cause
    return by_split


def _merged(texts: Mapping[str, list[str]]) -> Problems:
    """Return the problems of all splits, with one place for a sentence that several have."""
    splits: dict[str, list[str]] = {}
    for split, sentences in texts.items():
        for text in sentences:
            splits.setdefault(text, []).append(split)
    return [(f"sources.{', '.join(names)}", text) for text, names in splits.items()]


def _hashed(spec: EpisodeSpec, episodes: Episode) -> list[Any]:
    """Return what the hash of a source is made of."""
    parts = [leaf for part in (episodes.support, episodes.query) for leaf in (part.x, part.y)]
    return [repr(spec.ways), spec.split, *parts]


def as_tasks(task: Any) -> Any:
    """Return a component for task sources; anything else is returned unchanged."""
    if isinstance(task, TaskComponent):
        return task
    if isinstance(task, type):
        return Given(task) if hasattr(task, "sample") else task
    is_source = any(hasattr(task, name) for name in ("sample", "examples"))
    sources = isinstance(task, Mapping) or is_source or callable(task)
    return Given(task) if sources else task
