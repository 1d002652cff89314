"""The `tune` block of a method: ranges of its fields, checked against the fields' limits."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import ValidationError

from metalearn.config.sections import TuneRange
from metalearn.config.validate import Problems, validated
from metalearn.errors import did_you_mean


def tune_ranges(
    tune: dict[str, Any], method: Any, budget: Any, place: str, problems: Problems
) -> dict[str, TuneRange]:
    """The ranges by field; a method or budget that is None has problems of its own already."""
    ranges: dict[str, TuneRange] = {}
    for key, values in tune.items():
        where = f"{place}.tune.{key}"
        fields = None if method is None else type(method).model_fields
        if fields is not None and str(key) not in fields:
            text = f"no such field of {method.name}; {did_you_mean(str(key), fields)}"
            problems.append((where, text))
            continue
        values = values if isinstance(values, dict) else {"values": values}
        span = validated(TuneRange, values, where, problems)
        if span is not None:
            ranges[str(key)] = span
            problems.extend((where, text) for text in _illegal(method, str(key), span))
    if ranges and budget is not None and budget.trials == 0:
        text = f"is 0, but {place}.tune asks for tuning: give trials, or remove tune"
        problems.append(("budget.trials", text))
    return ranges


def _illegal(method: Any, key: str, span: TuneRange) -> list[str]:
    """Why both ends (or every value) of a range are not legal values of the field."""
    if method is None:
        return []
    ends: tuple[Any, ...] = span.values if span.values is not None else (span.min, span.max)
    if span.values is None:
        kinds = numbers_of(method, key)
        if not kinds:
            return [f"{key} is no number: give a list of `values` instead of min and max"]
        if kinds == {int} or span.distribution == "int_uniform":
            if any(end != int(end) for end in ends):
                return [f"min {span.min} and max {span.max} should be whole numbers"]
            ends = tuple(int(end) for end in ends)
    found = []
    for value in ends:
        try:
            type(method).model_validate({**method.model_dump(mode="json"), key: value})
        except ValidationError as error:
            found.append(f"{value!r} is no legal value: {error.errors()[0]['msg']}")
    return found


def numbers_of(method: Any, key: str) -> set[type]:
    """Which of int and float a field of a method takes; {int}: whole numbers alone."""
    annotation = type(method).model_fields[key].annotation
    return {int, float} & set(get_args(annotation) or (annotation,))
