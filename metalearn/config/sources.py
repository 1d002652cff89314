"""Task sources of a stored run: built at first use, with a spec read from the run's record.

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
FUNCTION = "function"  # in the record of a source whose loss has no name

# In records whose hash is of the values in all columns. Before, that of a column of objects was of
# their addresses.
HASH_VERSION = "data_hash"


class LazySource:
    """A task source that is built at its first use.

    With a record its `spec`, `data_sha256` and `facts` are known without building it; otherwise
    reading them builds it. Raises ConfigError if the data have another form than the record."""

    spec: EpisodeSpec
    data_sha256: str
    facts: dict[str, Any]
    _record: Mapping[str, Any]

    def __init__(
        self,
        build: Callable[[], TaskSource],
        record: Mapping[str, Any] | None,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self._build, self._built = build, list[TaskSource]()
        if record is not None:
            self.spec = spec_from_record(record, device, dtype)
            self.data_sha256 = str(record.get("data_sha256", ""))
            self.facts = dict(record.get("facts", {}))
            self._record = record

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        return self.built().sample(*args, **kwargs)

    def examples(self, *args: Any, **kwargs: Any) -> Any:
        return self.built().examples(*args, **kwargs)

    def built(self) -> TaskSource:
        """Return the source itself, built at the first call."""
        if not self._built:
            source = self._build()
            recorded_spec = self.__dict__.get("spec")
            changed_fields = [
                n
                for n in FIELDS
                if recorded_spec and getattr(source.spec, n) != getattr(recorded_spec, n)
            ]
            if changed_fields:
                changes = ", ".join(
                    f"{n} {getattr(recorded_spec, n)} -> {getattr(source.spec, n)}"
                    for n in changed_fields
                )
                text = f"has other data than the run was trained with ({changes})"
                raise ConfigError(
                    ("task", f"{text}: use metalearn evaluate RUN to test on other data")
                )
            if recorded_spec and (why := changed_data(self._record, source)):
                warn_once(f"task: the run was made with {why}")
            self._built.append(source)
        return self._built[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_build", "_built", "_record"):
            raise AttributeError(name)
        return getattr(self.built(), name)


def changed_data(record: Mapping[str, Any], source: TaskSource) -> str:
    """Describe how a source's data differ from those of its record; empty if they are the same."""
    before, now = record.get("data_sha256"), getattr(source, "data_sha256", "")
    if not before or not now or before == now:
        return ""
    if HASH_VERSION not in record and getattr(source, "has_object_columns", False):
        return ""  # the recorded hash is one of addresses
    return f"data of SHA-256 {str(before)[:12]}, but the current data have {now[:12]}"


def make_record(source: TaskSource) -> dict[str, Any] | None:
    """Return the form of a source's tasks as plain data; None for an objective (a function)."""
    spec = source.spec
    if spec.objective is not None:
        return None
    return {
        **{name: getattr(spec, name) for name in FIELDS},
        "x_shape": list(spec.x_shape),
        "data_sha256": getattr(source, "data_sha256", ""),
        HASH_VERSION: 2,
        "padded": spec.padded,
        "loss": FUNCTION if callable(spec.loss) else spec.loss,
        "facts": dict(getattr(source, "facts", {})),
    }


def spec_from_record(record: Mapping[str, Any], device: str, dtype: torch.dtype) -> EpisodeSpec:
    """Return the spec of a record that `make_record` wrote."""
    values = {name: record[name] for name in FIELDS}
    values["x_shape"] = tuple(values["x_shape"])
    loss = record.get("loss")
    values |= {"padded": record.get("padded", False), "loss": None if loss == FUNCTION else loss}
    return EpisodeSpec(**values, device=device, dtype=dtype)
