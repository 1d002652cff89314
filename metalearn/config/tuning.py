"""The `tune` block of a method: ranges of its fields, checked against the fields' limits.

A field of a nested component is named by its path, `outer.lr`; a file may also nest it, as in
`tune: {outer: {lr: {min: 0.001, max: 0.1}}}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from metalearn.component import Component
from metalearn.config.sections import TuneRange
from metalearn.config.validate import Problems, validated
from metalearn.errors import did_you_mean

Kind = TypeVar("Kind", bound=Component)


def tune_ranges(
    tune: dict[str, Any], method: Any, budget: Any, place: str, problems: Problems
) -> dict[str, TuneRange]:
    """Return the ranges by field; a method or budget that is invalid is None here."""
    ranges: dict[str, TuneRange] = {}
    for key, values in _flatten_ranges(tune, method):
        where = f"{place}.tune.{key}"
        if method is not None and (text := _unknown_field(method, key)):
            problems.append((where, text))
            continue
        values = values if isinstance(values, dict) else {"values": values}
        span = validated(TuneRange, values, where, problems)
        if span is not None:
            ranges[key] = span
            problems.extend((where, text) for text in _range_problems(method, key, span))
    for key in ranges:
        if (outer := key.rpartition(".")[0]) in ranges:
            text = f"is part of {outer}, which is tuned as a whole: remove one of the two"
            problems.append((f"{place}.tune.{key}", text))
    if ranges and budget is not None and not budget.tunes:
        text = f"is 0, but {place}.tune requires tuning: set trials or flops, or remove tune"
        problems.append(("budget.trials", text))
    return ranges


def value_at(component: Component, key: str) -> Any:
    """Return a component's value of the field `inner_lr`, or `outer.lr`."""
    value: Any = component
    for part in key.split("."):
        value = getattr(value, part)
    return value


def with_values(component: Kind, values: Mapping[str, Any]) -> Kind:
    """Return the component with other values in some fields, by their paths."""
    data = component.model_dump()
    for key, value in values.items():
        *path, name = key.split(".")
        inner = data
        for part in path:
            inner = inner[part]
        inner[name] = value
    return type(component).model_validate(data)


def number_types(method: Component, key: str) -> set[type]:
    """Return which of int and float a field of a method accepts; {int}: only integers."""
    outer, _, name = key.rpartition(".")
    owner = value_at(method, outer) if outer else method
    annotation = type(owner).model_fields[name].annotation
    return {int, float} & set(get_args(annotation) or (annotation,))


def _flatten_ranges(
    tune: Mapping[Any, Any], owner: Any, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (path of a field, its entry); nested mappings of a component's fields are flattened."""
    for key, values in tune.items():
        inner = getattr(owner, str(key), None) if isinstance(owner, Component) else None
        is_range = not isinstance(values, dict) or not set(values) - set(TuneRange.model_fields)
        if isinstance(inner, Component) and not is_range:
            yield from _flatten_ranges(values, inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", values


def _unknown_field(method: Component, key: str) -> str:
    """Return why a path is not a field of the method; empty if it is one."""
    owner: Any = method
    for part in key.split("."):
        if not isinstance(owner, Component):
            return f"{key.removesuffix('.' + part)} has no fields"
        fields = type(owner).model_fields
        if part not in fields:
            name = getattr(owner, "name", method.name)  # type: ignore[attr-defined]
            return f"unknown field of {name}; {did_you_mean(part, fields)}"
        owner = getattr(owner, part)
    return ""


def _range_problems(method: Any, key: str, span: TuneRange) -> list[str]:
    """Return why the ends (or values) of a range are not legal values of the field."""
    if method is None:
        return []
    ends: tuple[Any, ...] = span.values if span.values is not None else (span.min, span.max)
    if span.values is None:
        kinds = number_types(method, key)
        if not kinds:
            return [f"{key} is not a number: use a list of `values` instead of min and max"]
        if kinds == {int} or span.distribution == "int_uniform":
            if any(end != int(end) for end in ends):
                return [f"min and max must be integers (got {span.min} and {span.max})"]
            ends = tuple(int(end) for end in ends)
    problems = []
    for value in ends:
        try:
            with_values(method, {key: value})
        except ValidationError as error:
            problems.append(f"invalid value {value!r}: {error.errors()[0]['msg']}")
    return problems
