"""Tasks of several sources in one run, and the test on a source that training has not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import PrivateAttr, ValidationError, field_validator, model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError, did_you_mean
from metalearn.tasks.images import split_problem
from metalearn.tasks.store import sha256_of_text
from metalearn.types import Batch, Episode, EpisodeSpec, Key, TaskSource

SAME = ("kind", "ways", "shots", "queries", "x_shape", "outputs")
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
    _given: dict[str, TaskComponent] = PrivateAttr(default_factory=dict)

    def __init__(self, sources: Sequence[Any] = (), **fields: Any) -> None:
        given = [one for one in sources if isinstance(one, TaskComponent)]
        plain = [one.model_dump() if isinstance(one, TaskComponent) else one for one in sources]
        super().__init__(**{"sources": plain, **fields})
        if len(given) == len(sources):
            self._given = dict(zip(self.labels, given, strict=True))

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
        """A name for each source: its `label`, else its source, numbered where two are alike."""
        found: list[str] = []
        for section in self.sources:
            name = str(section.get("label") or section.get("source"))
            same = sum(one == name or one.startswith(f"{name}-") for one in found)
            found.append(f"{name}-{same + 1}" if same else name)
        return found

    @property
    def trains_on_validation(self) -> bool:
        return any(_component(section).trains_on_validation for section in self.sources)

    def resolve(self, seed: int) -> Mixture:
        """The task with explicit split seeds, for a resolved config."""
        sections = []
        for section in self.sources:
            made: Any = _component(section)
            made = made.resolve(seed) if hasattr(made, "resolve") else made
            label = {"label": section["label"]} if section.get("label") else {}
            sections.append({**made.model_dump(mode="json"), **label})
        return self.model_copy(update={"sources": tuple(sections)})

    def contradictions(self, trained: TaskComponent) -> list[tuple[str, str]]:
        """Those of the sources that both have, by label."""
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
        """The source of one split; ConfigError with what is wrong with any of its sources."""
        if problems := split_problem(split):
            raise ConfigError(*problems)
        held = self.hold_out
        used = [n for n in self.labels if held is None or (n == held) == (split == "test")]
        sources: dict[str, TaskSource] = {}
        for number, (label, section) in enumerate(zip(self.labels, self.sources, strict=True)):
            if label not in used:
                continue
            try:
                made = self._of(label, section)
                sources[label] = made.build(split=split, seed=seed, device=device, dtype=dtype)
            except ConfigError as error:
                problems.extend(error.under(f"sources.{number}").problems)
        if problems:
            raise ConfigError(*problems)
        return MixtureSource(sources)

    def _of(self, label: str, section: dict[str, Any]) -> TaskComponent:
        own = {n: getattr(self, n) for n in ("ways", "shots", "queries")}
        own = {name: value for name, value in own.items() if value is not None}
        if label in self._given:
            fields = type(self._given[label]).model_fields
            update = {name: value for name, value in own.items() if name in fields}
            return self._given[label].model_copy(update=update)
        return _component({**section, **own})


class MixtureSource:
    """Tasks of several sources of one shape, by label."""

    def __init__(self, sources: dict[str, TaskSource]) -> None:
        self.names, self._sources = list(sources), list(sources.values())
        specs = [source.spec for source in self._sources]
        for name in SAME:
            found = {label: getattr(one, name) for label, one in zip(self.names, specs)}
            if len({str(value) for value in found.values()}) > 1:
                listed = ", ".join(f"{label} {value}" for label, value in found.items())
                text = f"all sources must have tasks of one shape, but {name} differs: {listed}"
                raise ConfigError(("sources", text))
        total = sum(spec.num_classes for spec in specs)
        padded = any(spec.padded for spec in specs)
        self.spec: EpisodeSpec = dataclasses.replace(specs[0], num_classes=total, padded=padded)
        ends = torch.tensor([spec.num_classes for spec in specs]).cumsum(0)
        self._first = [0, *ends[:-1].tolist()]  # of the classes of each source among all
        hashes = [str(getattr(one, "data_sha256", "")) for one in self._sources]
        self.data_sha256 = sha256_of_text(" ".join(hashes)) if any(hashes) else ""
        self.facts: dict[str, Any] = {"sources": ", ".join(self.names)}

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """Leaves as the sources'; info: key, step, `source` [T], class_ids where all have them."""
        numbers = torch.arange(start, start + num_tasks, device=key.device)
        keys = rng.fold_in(rng.fold_in(key, "mixture"), numbers)
        of = rng.integers(keys, (1,), len(self._sources)).squeeze(-1)
        drawn = [source.sample(key, num_tasks, start) for source in self._sources]
        support = _chosen([one.support for one in drawn], of)
        query = _chosen([one.query for one in drawn], of)
        infos = [dict(one.info) for one in drawn]
        for info, first in zip(infos, self._first, strict=True):
            if "class_ids" in info:
                info["class_ids"] = info["class_ids"] + first
        common = [name for name in infos[0] if all(name in info for info in infos)]
        found = {name: _pick([info[name] for info in infos], of) for name in common}
        return Episode(support, query, {**found, "source": of.to(support.x.device)})

    def on_cpu(self) -> MixtureSource:
        """The same tasks, drawn on the CPU where all sources can be."""
        if not all(hasattr(one, "on_cpu") for one in self._sources):
            return self
        made = [one.on_cpu() for one in self._sources]  # type: ignore[attr-defined]
        return MixtureSource(dict(zip(self.names, made, strict=True)))

    def examples(self, key: Key, size: int) -> Batch:
        """Examples of all sources, each as likely, labelled over the classes of all."""
        of = rng.integers(rng.fold_in(key, "mixture"), (size,), len(self._sources))
        drawn = [source.examples(key, size) for source in self._sources]
        if self.spec.classification:
            drawn = [b._replace(y=b.y + f) for b, f in zip(drawn, self._first, strict=True)]
        return _chosen(drawn, of)


def _chosen(batches: Sequence[Batch], of: Tensor) -> Batch:
    """Row t of the batch with number of[t]; weights of 1 where only some batches have weights."""
    weights = [batch.weight for batch in batches]
    if all(weight is None for weight in weights):
        weight = None
    else:
        ones = [torch.ones(b.x.shape[:2], dtype=b.x.dtype, device=b.x.device) for b in batches]
        whole = [one if w is None else w for w, one in zip(weights, ones, strict=True)]
        weight = _pick(whole, of)
    return Batch(_pick([b.x for b in batches], of), _pick([b.y for b in batches], of), weight)


def _pick(values: Sequence[Tensor], of: Tensor) -> Tensor:
    """values J x [T, ...], of [T] -> [T, ...]."""
    found = values[0]
    for number, other in enumerate(values[1:], 1):
        mine = (of == number).to(found.device).view(-1, *[1] * (found.dim() - 1))
        found = torch.where(mine, other, found)
    return found


def _component(section: dict[str, Any]) -> TaskComponent:
    """The component of a task section; ConfigError for an unknown source."""
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
    found: dict[str, type[TaskComponent]] = {}
    for kind in base.__subclasses__():
        name = kind.model_fields["source"].default
        found |= {name: kind} if isinstance(name, str) else {}
        found |= _kinds(kind)
    return found


def _sentences(error: Exception) -> str:
    if isinstance(error, ValidationError):
        found = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        return "; ".join(f"{place}: {text}" for place, text in found)
    return str(error)
