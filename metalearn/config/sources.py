"""Task sources of a stored run: built when they are used, their form known from the record.

A run records the form of its tasks in environment.json, so that it can be opened without its
data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from metalearn.errors import ConfigError
from metalearn.logger import warn_once
from metalearn.types import EpisodeSpec, TaskSource

FIELDS = ("kind", "ways", "shots", "queries", "x_shape", "outputs", "num_classes", "split")


class LazySource:
    """A task source that is built at its first use.

    With a record its `spec`, `data_sha256` and `facts` are known before; without, asking for them
    builds it. Raises ConfigError where the data have another form than the record says."""

    spec: EpisodeSpec
    data_sha256: str
    facts: dict[str, Any]

    def __init__(
        self,
        build: Callable[[], TaskSource],
        record: Mapping[str, Any] | None,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self._build, self._built = build, list[TaskSource]()
        if record is not None:
            self.spec = spec_of(record, device, dtype)
            self.data_sha256 = str(record.get("data_sha256", ""))
            self.facts = dict(record.get("facts", {}))

    def sample(self, *args: Any, **named: Any) -> Any:
        return self.built().sample(*args, **named)

    def examples(self, *args: Any, **named: Any) -> Any:
        return self.built().examples(*args, **named)

    def built(self) -> TaskSource:
        """The source itself."""
        if not self._built:
            made = self._build()
            known = self.__dict__.get("spec")
            wrong = [n for n in FIELDS if known and getattr(made.spec, n) != getattr(known, n)]
            if wrong:
                changes = ", ".join(
                    f"{n} {getattr(known, n)} -> {getattr(made.spec, n)}" for n in wrong
                )
                text = f"has other data than the run was trained with ({changes})"
                raise ConfigError(
                    ("task", f"{text}: use metalearn evaluate RUN to test on other data")
                )
            if known and (why := changed_data({"data_sha256": self.data_sha256}, made)):
                warn_once(f"task: the run was made with {why}")
            self._built.append(made)
        return self._built[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_build", "_built"):
            raise AttributeError(name)
        return getattr(self.built(), name)


def changed_data(record: Mapping[str, Any], source: TaskSource) -> str:
    """What the data of a source are beside those of its record; empty where they are the same."""
    before, now = record.get("data_sha256"), getattr(source, "data_sha256", "")
    if not before or not now or before == now:
        return ""
    return f"data of SHA-256 {str(before)[:12]}, but the current data have {now[:12]}"


def record_of(source: TaskSource) -> dict[str, Any] | None:
    """The form of a source's tasks as plain data; None for an objective, which is a function."""
    spec = source.spec
    if spec.objective is not None:
        return None
    return {
        **{name: getattr(spec, name) for name in FIELDS},
        "x_shape": list(spec.x_shape),
        "data_sha256": getattr(source, "data_sha256", ""),
        "facts": dict(getattr(source, "facts", {})),
    }


def spec_of(record: Mapping[str, Any], device: str, dtype: torch.dtype) -> EpisodeSpec:
    """The spec that `record_of` wrote."""
    values = {name: record[name] for name in FIELDS}
    values["x_shape"] = tuple(values["x_shape"])
    return EpisodeSpec(**values, device=device, dtype=dtype)
