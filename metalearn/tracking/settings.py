"""`run.track`: one section a sink, made from the table; sinks of plug-ins have theirs, too."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, create_model
from pydantic import model_validator as validator

from metalearn.component import Component, option
from metalearn.tracking import SINKS
from metalearn.tracking.sink import SinkOptions


class _Sections(Component):
    """A section for each sink of the table; what plug-ins add to the table later is accepted."""

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
                problems += _under(key, error)
        try:
            made = handler(values)
        except ValidationError as error:
            problems = [*error.errors(include_url=False), *problems]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return made


def _under(key: str, error: ValidationError) -> list[Any]:
    """The problems of a section, each place with its key in front."""
    return [{**one, "loc": (key, *one["loc"])} for one in error.errors(include_url=False)]


def options_of(track: Component, name: str) -> SinkOptions:
    """The options of a sink: its section, or the defaults of one that a plug-in added."""
    found = getattr(track, name, None)
    return SINKS[name]() if found is None else found


_fields: dict[str, Any] = {
    name: (kind, option(kind(), kind.sentence())) for name, kind in SINKS.items()
}
Track: Any = create_model(
    "Track",
    __base__=_Sections,
    __doc__="Loggers of a run, in addition to metrics.jsonl.",
    **_fields,
)
