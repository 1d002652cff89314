"""From the values of one section to a component, or to every problem in them as a sentence."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from metalearn.component import Component
from metalearn.errors import no_truth, sentences, truth_for_number

C = TypeVar("C", bound=Component)
Problems = list[tuple[str, str]]  # (place in the file, sentence)


def validated(kind: type[C], values: dict[Any, Any], place: str, problems: Problems) -> C | None:
    """The component, or None with its problems added, those of cross-field rules included."""
    wrong = [key for key, value in values.items() if truth_for_number(kind, str(key), value)]
    if wrong:
        problems.extend((_join(place, key), no_truth(values[key])) for key in wrong)
        validated(kind, {k: v for k, v in values.items() if k not in wrong}, place, problems)
        return None
    tagged = _with_tags(kind, values)
    try:
        return kind.model_validate(tagged)
    except ValidationError as error:
        problems.extend((_join(place, *at), text) for at, text in sentences(kind, error, tagged))
        return None


def partly_validated(kind: type[C], values: dict[Any, Any], place: str, problems: Problems) -> C:
    """The component with defaults in the place of what is wrong, whose problems are added."""
    found: Problems = []
    made = validated(kind, values, place, found)
    problems.extend(found)
    if made is not None:
        return made
    bad = {where.removeprefix(place).removeprefix(".").partition(".")[0] for where, _ in found}
    known = set(kind.model_fields) - bad  # a key may hold dots: what is unknown goes by itself
    fine = {k: v for k, v in values.items() if k in known}
    return kind.model_validate(fine)


def _join(*parts: Any) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _with_tags(kind: type[Component], values: dict[str, Any]) -> dict[str, Any]:
    """A missing `name` of a nested component comes from the field's default."""
    filled = dict(values)
    for key, value in values.items():
        info = kind.model_fields.get(str(key))
        default = getattr(info, "default", None)
        if isinstance(value, dict) and isinstance(default, Component) and hasattr(default, "name"):
            filled[key] = {"name": default.name, **value}
    return filled
