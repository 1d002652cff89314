"""Validate the values of one section as a component, with every problem as a sentence."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from metalearn.component import Component
from metalearn.errors import no_truth, sentences, truth_for_number

C = TypeVar("C", bound=Component)
Problems = list[tuple[str, str]]  # (place in the file, sentence)


def validated(kind: type[C], values: dict[Any, Any], place: str, problems: Problems) -> C | None:
    """Return the component, or None with its problems added, including cross-field rules."""
    invalid = [key for key, value in values.items() if truth_for_number(kind, str(key), value)]
    if invalid:
        problems.extend((_join(place, key), no_truth(values[key])) for key in invalid)
        validated(kind, {k: v for k, v in values.items() if k not in invalid}, place, problems)
        return None
    tagged = _with_tags(kind, values)
    try:
        return kind.model_validate(tagged)
    except ValidationError as error:
        problems.extend(
            (_join(place, *keys), text) for keys, text in sentences(kind, error, tagged)
        )
        return None


def partly_validated(kind: type[C], values: dict[Any, Any], place: str, problems: Problems) -> C:
    """Return the component with defaults instead of invalid values, whose problems are added."""
    new_problems: Problems = []
    component = validated(kind, values, place, new_problems)
    problems.extend(new_problems)
    if component is not None:
        return component
    invalid_keys = {
        where.removeprefix(place).removeprefix(".").partition(".")[0] for where, _ in new_problems
    }
    # Keys may contain dots; unknown keys are not fields and are dropped with the invalid ones.
    valid_keys = set(kind.model_fields) - invalid_keys
    valid = {k: v for k, v in values.items() if k in valid_keys}
    return kind.model_validate(valid)


def _join(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _with_tags(kind: type[Component], values: dict[str, Any]) -> dict[str, Any]:
    """Add missing `name` keys of nested components, from the defaults of their fields."""
    filled = dict(values)
    for key, value in values.items():
        info = kind.model_fields.get(str(key))
        default = getattr(info, "default", None)
        if isinstance(value, dict) and isinstance(default, Component) and hasattr(default, "name"):
            filled[key] = {"name": default.name, **value}
    return filled
