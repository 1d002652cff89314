"""Tasks of several sources in one run, and the test on a source that training has not seen."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PrivateAttr, ValidationError, field_validator, model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError, did_you_mean
from metalearn.tasks.given import as_tasks
from metalearn.tasks.given.form import build_checked
from metalearn.tasks.images import SPLITS, split_problem
from metalearn.tasks.store import sha256_of_text
from metalearn.types import Batch, Episode, EpisodeSpec, Key, TaskSource

SAME = ("kind", "ways", "shots", "queries", "x_shape", "outputs", "loss")
TRANSFORMED = (
    "standardise: rows passed to a trained run have no source, so a mixture cannot standardise "
    "them: set it to false, and standardise the rows in advance"
)


class Mixture(TaskComponent):
    """Each task is sampled from one of several sources, chosen uniformly.

    `sources` are task sections, each with its own fields and perhaps a `label`; `ways`, `shots` and
    `queries` here hold for all of them. Their tasks must have one shape. With `hold_out` (a label)
    training and validation leave that source out and test tasks come from it alone: a run for each
    label is the leave-one-source-out evaluation, which `metalearn sweep` makes of a grid over
    task.hold_out. Without it test tasks come from all, and result.json has `by_source`.

    >>> sources = [{"source": "glyphs"}, {"source": "omniglot"}]
    >>> source = ml.tasks.Mixture(sources=sources, ways=5, shots=1, queries=5).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 1, 28, 28])
    """

    source: Literal["mixture"] = option("mixture", "The task source.")
    sources: tuple[dict[str, Any], ...] = option(
        ..., "Task sections to sample from, by label.", min_length=1
    )
    hold_out: str | None = option(None, "Label of the source of test tasks, unseen in training.")
    ways: int | None = option(None, "N of all sources; null: as set in each source.", ge=1)
    shots: int | None = option(None, "K of all sources; null: as set in each source.", ge=1)
    queries: int | None = option(None, "Q of all sources; null: as set in each source.", ge=0)
    _components: dict[str, TaskComponent] = PrivateAttr(default_factory=dict)

    def __init__(self, sources: Sequence[Any] = (), **fields: Any) -> None:
        items = _as_components(sources)
        sections = [
            item.model_dump() if isinstance(item, TaskComponent) else item for item in items
        ]
        super().__init__(**{"sources": sections, **fields})
        named = zip(self.labels, items, strict=True)
        self._components = {name: item for name, item in named if isinstance(item, TaskComponent)}

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, sources: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        problems = []
        for number, section in enumerate(sources):
            try:
                transforms = _component(section).changes_rows
            except (ConfigError, ValidationError) as error:
                problems.append(f"sources.{number}: {_sentences(error)}")
            else:
                problems += [f"sources.{number}: {TRANSFORMED}"] * transforms
        if problems:
            raise ValueError("; ".join(problems))
        return sources

    @model_validator(mode="after")
    def _check_hold_out(self) -> Mixture:
        if self.hold_out is not None and self.hold_out not in self.labels:
            raise ValueError(f"hold_out: {did_you_mean(self.hold_out, self.labels)}")
        if self.hold_out is not None and len(self.labels) < 2:
            raise ValueError("hold_out leaves no source for training: use at least 2 sources")
        return self

    @property
    def labels(self) -> list[str]:
        """Name of each source: its `label`, else its source, numbered if two are the same."""
        labels: list[str] = []
        for section in self.sources:
            name = str(section.get("label") or section.get("source"))
            numbered = (f"{name}-{number}" for number in itertools.count(2))
            labels.append(next(x for x in itertools.chain([name], numbered) if x not in labels))
        return labels

    @property
    def trains_on_validation(self) -> bool:
        return any(_component(section).trains_on_validation for section in self.sources)

    @property
    def splits_are_labelled(self) -> bool:
        return all(_component(section).splits_are_labelled for section in self.sources)

    @property
    def loss_problems(self) -> list[tuple[str, str]]:
        return [
            (f"sources.{number}.{place}", text)
            for number, section in enumerate(self.sources)
            for place, text in _component(section).loss_problems
        ]

    def resolve(self, seed: int) -> Mixture:
        """The task with explicit split seeds, for a resolved config."""
        sections = []
        for section in self.sources:
            component: Any = _component(section)
            component = component.resolve(seed) if hasattr(component, "resolve") else component
            label = {"label": section["label"]} if section.get("label") else {}
            sections.append({**component.model_dump(mode="json"), **label})
        return self.model_copy(update={"sources": tuple(sections)})

    def without_implied(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return `data` without the implied values of all sources."""
        pairs = zip(self.sources, data["sources"], strict=True)
        sources = [_component(section).without_implied(values) for section, values in pairs]
        return {**data, "sources": sources}

    def contradictions(self, trained: TaskComponent) -> list[tuple[str, str]]:
        """Return the contradictions of the sources that both have, by label."""
        if not isinstance(trained, Mixture):
            return []
        before = dict(zip(trained.labels, trained.sources, strict=True))
        return [
            (f"sources.{number}.{name}", text)
            for number, (label, section) in enumerate(zip(self.labels, self.sources, strict=True))
            if label in before
            for name, text in _component(section).contradictions(_component(before[label]))
        ]

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> MixtureSource:
        """Return the source of one split; raises ConfigError with the problems of all sources."""
        if problems := split_problem(split):
            raise ConfigError(*problems)
        hold_out = self.hold_out
        used_labels = [
            n for n in self.labels if hold_out is None or (n == hold_out) == (split == "test")
        ]
        sources: dict[str, TaskSource] = {}
        for number, (label, section) in enumerate(zip(self.labels, self.sources, strict=True)):
            if label not in used_labels:
                continue
            place = f"sources.{number}"
            try:
                component = self._configure(label, section)
                if split == "test" and component.num_test_tasks is not None:
                    text = f"has {component.num_test_tasks} test tasks, which a mixture would draw"
                    problems.append((place, f"{text} several times: test on it alone"))
                sources[label] = build_checked(component, split, device, dtype, seed)
                problems.extend((place, text) for text in self._misfits(component, sources[label]))
            except ConfigError as error:
                problems.extend(error.under(place).problems)
            except ValidationError as error:  # of sizes that a source of the user does not take
                problems.append((place, _sentences(error)))
        if problems:
            raise ConfigError(*problems)
        return MixtureSource(sources)

    def _configure(self, label: str, section: dict[str, Any]) -> TaskComponent:
        """Return the component of a source with the sizes of the mixture that it has fields of."""
        component = self._components.get(label) or _component(section)
        fields = type(component).model_fields
        update = {name: value for name, value in self._sizes.items() if name in fields}
        if label in self._components:
            component = component.model_copy(update=update)
            ranges = component.ranges.items()
            component._ranges = {name: ends for name, ends in ranges if name not in update}
            return component
        return _component({**section, **update})

    @property
    def _sizes(self) -> dict[str, int]:
        """The sizes that hold for all sources."""
        sizes = {name: getattr(self, name) for name in ("ways", "shots", "queries")}
        return {name: value for name, value in sizes.items() if value is not None}

    def _misfits(self, component: TaskComponent, source: TaskSource) -> list[str]:
        """Return why the tasks of a source have not the sizes that hold for all sources."""
        return [
            f"its tasks have {name} {actual}, and the mixture sets {name} {value} for all sources, "
            f"but {component.source} has no field {name}: omit {name} of the mixture, or pass "
            f"a source whose spec has {name}={value}"
            for name, value in self._sizes.items()
            if name not in type(component).model_fields
            and (actual := getattr(source.spec, name)) != value
        ]


def _as_components(sources: Sequence[Any]) -> list[Any]:
    """Return components for task sources of the user; sections of a file are unchanged."""
    items, problems = list[Any](), list[tuple[str, str]]()
    for number, source in enumerate(sources):
        is_section = isinstance(source, Mapping) and not set(source) & set(SPLITS)
        try:
            items.append(source if is_section else as_tasks(source))
        except ConfigError as error:
            problems.extend(error.under(f"sources.{number}").problems)
    if problems:
        raise ConfigError(*problems)
    return items


class MixtureSource:
    """Tasks of several sources of one shape, by label."""

    def __init__(self, sources: dict[str, TaskSource]) -> None:
        self.names, self._sources = list(sources), list(sources.values())
        specs = [source.spec for source in self._sources]
        for name in SAME:
            by_label = {label: getattr(item, name) for label, item in zip(self.names, specs)}
            if len({str(value) for value in by_label.values()}) > 1:
                listed = ", ".join(f"{label} {value}" for label, value in by_label.items())
                text = f"all sources must have tasks of one shape, but {name} differs: {listed}"
                raise ConfigError(("sources", text))
        if len(specs) > 1 and any(spec.objective is not None for spec in specs):
            text = "test functions are learned one by one: a mixture would take the first for all"
            raise ConfigError(("sources", text))
        total = sum(spec.num_classes for spec in specs)
        padded = any(spec.padded for spec in specs)
        self.spec: EpisodeSpec = dataclasses.replace(specs[0], num_classes=total, padded=padded)
        ends = torch.tensor([spec.num_classes for spec in specs]).cumsum(0)
        self._first = [0, *ends[:-1].tolist()]  # of the classes of each source among all
        hashes = [str(getattr(item, "data_sha256", "")) for item in self._sources]
        self.data_sha256 = sha256_of_text(" ".join(hashes)) if any(hashes) else ""
        counts: list[Any] = [getattr(item, "groups", None) for item in self._sources]
        self.groups: int | None = None if None in counts else sum(counts)
        sets: list[Any] = [getattr(x, "class_sets", x.spec.class_sets) for x in self._sources]
        self.class_sets: int | None = None if None in sets else sum(sets)
        self.has_object_columns = any(
            getattr(item, "has_object_columns", False) for item in self._sources
        )
        self.support_order = _support_order(sources)
        order = {"support_order": self.support_order} if self.support_order else {}
        self.facts: dict[str, Any] = {"sources": ", ".join(self.names), **order}

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """Leaves as the sources'; info: key, step, `source` [T], class_ids if all have them."""
        numbers = torch.arange(start, start + num_tasks, device=key.device)
        keys = rng.fold_in(rng.fold_in(key, "mixture"), numbers)
        source_index = rng.integers(keys, (1,), len(self._sources)).squeeze(-1)
        episodes = [source.sample(key, num_tasks, start) for source in self._sources]
        support = _pick_batches([episode.support for episode in episodes], source_index)
        query = _pick_batches([episode.query for episode in episodes], source_index)
        infos = [dict(episode.info) for episode in episodes]
        for info, first in zip(infos, self._first, strict=True):
            if "class_ids" in info:
                info["class_ids"] = info["class_ids"] + first
        common = [name for name in infos[0] if all(name in info for info in infos)]
        merged_info = {name: _pick([info[name] for info in infos], source_index) for name in common}
        return Episode(support, query, {**merged_info, "source": source_index.to(support.x.device)})

    def on_cpu(self) -> MixtureSource:
        """Return the source of the same tasks on the CPU, if all sources support it."""
        if not all(hasattr(source, "on_cpu") for source in self._sources):
            return self
        sources = [source.on_cpu() for source in self._sources]  # type: ignore[attr-defined]
        return MixtureSource(dict(zip(self.names, sources, strict=True)))

    def examples(self, key: Key, size: int) -> Batch:
        """Return examples of all sources, each equally likely, labelled over all classes."""
        source_index = rng.integers(rng.fold_in(key, "mixture"), (size,), len(self._sources))
        batches = [source.examples(key, size) for source in self._sources]
        if self.spec.classification:
            batches = [b._replace(y=b.y + f) for b, f in zip(batches, self._first, strict=True)]
        return _pick_batches(batches, source_index)


def _support_order(sources: Mapping[str, TaskSource]) -> str | None:
    """Return the column that orders the rows of all sources, or those of some with their names."""
    orders = {name: getattr(source, "support_order", None) for name, source in sources.items()}
    if len(set(orders.values())) == 1:
        return next(iter(orders.values()))
    return ", ".join(f"{order} ({name})" for name, order in orders.items() if order)


def _pick_batches(batches: Sequence[Batch], source_index: Tensor) -> Batch:
    """Row t of batch source_index[t]; weights of 1 where only some batches have weights."""
    weights = [batch.weight for batch in batches]
    if all(weight is None for weight in weights):
        weight = None
    else:
        ones = [torch.ones(b.x.shape[:2], dtype=b.x.dtype, device=b.x.device) for b in batches]
        filled = [unit if w is None else w for w, unit in zip(weights, ones, strict=True)]
        weight = _pick(filled, source_index)
    return Batch(
        _pick([b.x for b in batches], source_index),
        _pick([b.y for b in batches], source_index),
        weight,
    )


def _pick(values: Sequence[Tensor], source_index: Tensor) -> Tensor:
    """values J x [T, ...], source_index [T] -> [T, ...]."""
    result = values[0]
    for number, value in enumerate(values[1:], 1):
        mask = (source_index == number).to(result.device).view(-1, *[1] * (result.dim() - 1))
        result = torch.where(mask, value, result)
    return result


def _component(section: dict[str, Any]) -> TaskComponent:
    """Return the component of a task section; raises ConfigError for an unknown source."""
    name, kinds = str(section.get("source")), _kinds()
    kinds.pop("mixture")
    if name not in kinds:
        raise ConfigError(("source", f"{name!r} is not a source; {did_you_mean(name, kinds)}"))
    fields = {key: value for key, value in section.items() if key != "label"}
    if fields.get("ways") is None:
        fields.pop("ways", None)
    return kinds[name](**fields)


def _kinds(base: Any = TaskComponent) -> dict[str, type[TaskComponent]]:
    """Task components by the name of their source: the table of sources would import this file."""
    by_name: dict[str, type[TaskComponent]] = {}
    for kind in base.__subclasses__():
        name = kind.model_fields["source"].default
        by_name |= {name: kind} if isinstance(name, str) else {}
        by_name |= _kinds(kind)
    return by_name


def _sentences(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problems = [(".".join(map(str, entry["loc"])), entry["msg"]) for entry in error.errors()]
        return "; ".join(f"{path}: {text}" for path, text in problems)
    return str(error)
