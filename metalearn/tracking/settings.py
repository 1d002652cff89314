"""`run.track`: one section per sink of the table, including sinks of plug-ins."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, create_model
from pydantic import model_validator as validator

from metalearn.component import Component, option
from metalearn.tracking import SINKS
from metalearn.tracking.sink import SinkOptions


class _Sections(Component):
    """A section for each sink of the table; sinks that plug-ins add later are accepted."""

    model_config = ConfigDict(extra="allow")

    @validator(mode="wrap")
    @classmethod
    def _read_added(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        problems: list[Any] = []
        values = {key: value for key, value in data.items() if key in cls.model_fields}
        for key in [key for key in data if key not in values]:
            if key not in SINKS:
                problems.append({"type": "extra_forbidden", "loc": (key,), "input": data[key]})
                continue
            try:
                values[key] = SINKS[key].model_validate(data[key])
            except ValidationError as error:
                problems += _with_prefix(key, error)
        try:
            sections = handler(values)
        except ValidationError as error:
            problems = [*error.errors(include_url=False), *problems]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return sections


def _with_prefix(key: str, error: ValidationError) -> list[Any]:
    """Return the problems of a section, each location prefixed with its key."""
    return [
        {**problem, "loc": (key, *problem["loc"])} for problem in error.errors(include_url=False)
    ]


def sink_options(track: Component, name: str) -> SinkOptions:
    """Return the options of a sink: its section, or the defaults if a plug-in added it."""
    section = getattr(track, name, None)
    return SINKS[name]() if section is None else section


_fields: dict[str, Any] = {
    name: (kind, option(kind(), kind.sentence())) for name, kind in SINKS.items()
}
Track: Any = create_model(
    "Track",
    __base__=_Sections,
    __doc__="Loggers of a run, in addition to metrics.jsonl.",
    **_fields,
)
