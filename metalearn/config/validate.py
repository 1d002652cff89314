"""From the values of one section to a component, or to every problem in them as a sentence."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from metalearn.component import Component
from metalearn.config.registry import TABLES
from metalearn.errors import did_you_mean

C = TypeVar("C", bound=Component)
Problems = list[tuple[str, str]]  # (place in the file, sentence)


def validated(kind: type[C], values: dict[Any, Any], place: str, problems: Problems) -> C | None:
    """The component, or None with its problems added, those of cross-field rules included."""
    wrong = [key for key, value in values.items() if _truth_for_number(kind, str(key), value)]
    if wrong:
        problems.extend(
            (_join(place, key), f"must not be true or false (got {values[key]!r})") for key in wrong
        )
        validated(kind, {k: v for k, v in values.items() if k not in wrong}, place, problems)
        return None
    try:
        return kind.model_validate(_with_tags(kind, values))
    except ValidationError as error:
        found = error.errors()
        problems.extend(_explain(kind, problem, place) for problem in found)
        bad = {str(problem["loc"][0]) for problem in found if problem["loc"]}
        problems.extend(_cross(kind, {k: v for k, v in values.items() if k not in bad}, bad, place))
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


def _truth_for_number(kind: type[Component], key: str, value: Any) -> bool:
    """Whether a true or false stands where a field takes none: pydantic would read 1 or 0."""
    info = kind.model_fields.get(key)
    given = value if isinstance(value, list) else [value]
    takes = info is None or "bool" in str(info.annotation) or "Any" in str(info.annotation)
    return not takes and any(isinstance(one, bool) for one in given)


def _cross(kind: type[Component], values: dict[str, Any], bad: set[str], place: str) -> Problems:
    """The cross-field rules, which pydantic skips where a field is wrong, but for those about a
    wrong field."""
    try:
        kind.model_validate(_with_tags(kind, values))
    except ValidationError as error:
        rules = [problem for problem in error.errors() if not problem["loc"]] if bad else []
        return [
            _explain(kind, p, place) for p in rules if not any(name in p["msg"] for name in bad)
        ]
    return []


def _with_tags(kind: type[Component], values: dict[str, Any]) -> dict[str, Any]:
    """A missing `name` of a nested component comes from the field's default."""
    filled = dict(values)
    for key, value in values.items():
        info = kind.model_fields.get(str(key))
        default = getattr(info, "default", None)
        if isinstance(value, dict) and isinstance(default, Component) and hasattr(default, "name"):
            filled[key] = {"name": default.name, **value}
    return filled


def _explain(kind: type[Component], problem: Any, place: str) -> tuple[str, str]:
    loc = [str(part) for part in problem["loc"]]
    fields = kind.model_fields
    # A union's tag stands in pydantic's path after its field; it is no key of the file.
    if len(loc) > 2 and loc[0] in fields and _kind_of(loc[1]):
        del loc[1]
    where = _join(place, *loc)
    got = problem.get("input")
    if problem["type"] == "extra_forbidden":
        valid = fields if len(loc) == 1 else _nested_fields(kind, problem["loc"])
        return where, f"unknown key; {did_you_mean(loc[-1], valid)}"
    if problem["type"] == "dict_type":
        return where, f"must be a mapping (got {got!r})"
    if problem["type"] in ("tuple_type", "list_type") and not isinstance(got, dict):
        return where, f"must be a list, such as [{got}]"
    text = problem["msg"].removeprefix("Value error, ")
    teaches = isinstance(got, dict) or problem["type"] == "value_error"
    return where, text if teaches else f"{text} (got {got!r})"


def _nested_fields(kind: type[Component], loc: tuple[Any, ...]) -> list[str]:
    default = getattr(kind.model_fields.get(str(loc[0])), "default", None)
    for part in loc[1:-1]:
        tagged = _kind_of(str(part))
        if tagged and not isinstance(getattr(default, str(part), None), Component):
            return list(tagged.model_fields)
        default = getattr(default, str(part), default)
    return list(type(default).model_fields) if isinstance(default, Component) else []


def _kind_of(tag: str) -> type[Component] | None:
    """The component that a field's tag chooses: a rule, a space or a searcher."""
    tables = ("rules", "learned_rules", "estimators", "horizons", "spaces", "searchers")
    return next((TABLES[table][tag] for table in tables if tag in TABLES[table]), None)
