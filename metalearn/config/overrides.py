"""Dotted overrides of an experiment file: method.inner_lr=0.4, methods.maml.inner_lr=0.4."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from metalearn.config.file import get_label
from metalearn.config.text_fields import is_optional, is_text_field
from metalearn.errors import ConfigError, did_you_mean
from metalearn.storage.yaml import is_printable, parse_yaml


def split(text: str) -> tuple[list[str], Any]:
    """Parse `a.b=value` into (["a", "b"], value); the value is YAML."""
    path, value = _split_key(text)
    return path, _parse_value(text, value)


def _split_key(text: str) -> tuple[list[str], str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise ConfigError((text, "must have the form KEY=VALUE, such as method.inner_lr=0.4"))
    return key.split("."), value


def _parse_value(text: str, value: str) -> Any:
    try:
        return parse_yaml(value)
    except ValueError as error:
        raise ConfigError((text, f"the value cannot be read as YAML: {error}")) from error


def apply_overrides(
    data: dict[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return a changed copy, and notes: a new `name` (`source` of a task) drops the other keys.

    Values are YAML; that of a text field is used literally, unless it is quoted."""
    data, notes = copy.deepcopy(data), []
    problems: list[tuple[str, str]] = []
    parsed = []
    for text in overrides:
        try:
            parsed.append((text, *_split_key(text)))
        except ConfigError as error:
            problems.extend(error.problems)
    parsed.sort(key=_sort_key)
    for text, path, value in parsed:
        try:
            note = _set(data, path, _value(data, text, path, value))
        except ConfigError as error:
            problems.extend((text, sentence) for _, sentence in error.problems)
            continue
        if note:
            notes.append(note)
    if problems:
        raise ConfigError(*problems)
    return data, notes


def _value(data: dict[str, Any], text: str, path: list[str], value: str) -> Any:
    """Return the value of an override: the text itself for a text field, else YAML."""
    if value.startswith(("'", '"')) or not is_text_field(data, path):
        return _parse_value(text, value)
    if not is_printable(value):
        raise ConfigError((text, "the value contains a character that cannot be stored as text"))
    return None if value in ("", "null", "~") and is_optional(data, path) else value


def _sort_key(entry: tuple[str, list[str], str]) -> tuple[bool, int]:
    """Sort new tags first, outer before inner, so that they drop no override."""
    _, path, _ = entry
    return (not _is_tag(path), len(path) if _is_tag(path) else 0)


def _is_tag(path: list[str]) -> bool:
    """Return whether a path ends at the key that selects the component of a section."""
    if len(path) < 2 or path[-2] == "tune":
        return False
    return path[-1] == ("source" if path[-2] == "task" else "name")


def _set(data: dict[str, Any], path: list[str], value: Any) -> str:
    where = ".".join(path)
    if path[0] == "methods" and len(path) > 1:
        data = _find_item(data, path)
        path = path[2:]
    elif path[0] == "method" and "methods" in data:
        instead = f"methods.LABEL.{'.'.join(path[1:])}=..., labels: {', '.join(_labels(data))}"
        raise ConfigError(("", f"this file compares several methods: write {instead}"))
    dropped = _retag(data, path, value) if path == ["name"] or _is_tag(path) else []
    _put(data, path, value)
    return f"{where}={value} drops the file's {', '.join(sorted(dropped))}" if dropped else ""


def _retag(data: dict[str, Any], path: list[str], value: Any) -> list[str]:
    """Drop the keys of another component of this section; keeps the label in a comparison."""
    section: Any = data
    for part in path[:-1]:
        section = section.get(part) if isinstance(section, dict) else None
    if not isinstance(section, dict) or section.get(path[-1]) == value:
        return []
    kept_keys = ("name", "label") if len(path) == 1 else (path[-1],)
    dropped = [key for key in section if key not in kept_keys]
    for key in dropped:
        del section[key]
    return [str(key) for key in dropped]


def _labels(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    items = data.get("methods")
    rows = items if isinstance(items, list) else []
    return {get_label(item): item for item in rows if isinstance(item, dict)}


def _find_item(data: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """Return the item of `methods` for methods.LABEL.key, after storing its label."""
    if not isinstance(data.get("methods"), list):
        raise ConfigError(("", "this file has no `methods`: write method.key=value"))
    labels = _labels(data)
    if len(path) < 3 or path[1] not in labels:
        raise ConfigError(("", f"unknown label; {did_you_mean(path[1], labels)}"))
    labels[path[1]]["label"] = path[1]
    return labels[path[1]]


def _put(data: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = data.get(part)
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise ConfigError(("", f"{part} is not a mapping, so {path[-1]} cannot be set in it"))
        data[part] = inner
        data = inner
    data[path[-1]] = value


def lay_over(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Return a section with an overlay; sections inside it, such as `validate`, are merged too."""
    merged = dict(base)
    for name, value in overlay.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = lay_over(base[name], value) if both else value
    return merged


def with_overlay(
    base: dict[str, Any], overlay: dict[str, Any], tag: str, default: str
) -> dict[str, Any]:
    """Merge an overlay into a section; with another component it replaces the whole section."""
    base_name = base.get(tag, default)
    is_other_component = tag in overlay and overlay[tag] != base_name
    return dict(overlay) if is_other_component else {**base, **overlay}
