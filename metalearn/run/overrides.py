"""Dotted overrides of an experiment file: method.inner_lr=0.4, methods.maml.inner_lr=0.4."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from metalearn.errors import ConfigError, did_you_mean

TAGS = {"task": "source", "model": "name", "method": "name"}


def split(text: str) -> tuple[list[str], Any]:
    """`a.b=value` -> (["a", "b"], value); the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise ConfigError((text, "an override looks like method.inner_lr=0.4"))
    try:
        return key.split("."), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError((text, f"the value cannot be read as YAML: {' '.join(str(error).split())}")) from error


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A changed copy and what to say; a new `name` (a task's `source`) drops the section's other keys of the file."""
    data, notes = copy.deepcopy(data), []
    problems: list[tuple[str, str]] = []
    parsed = []
    for text in overrides:
        try:
            parsed.append((text, *split(text)))
        except ConfigError as error:
            problems.extend(error.problems)
    parsed.sort(key=lambda entry: 0 if _is_tag(entry[1]) else 1)  # a new tag first, so that it drops no override
    for text, path, value in parsed:
        try:
            note = _set(data, path, value)
        except ConfigError as error:
            problems.extend((text, sentence) for _, sentence in error.problems)
            continue
        if note:
            notes.append(note)
    if problems:
        raise ConfigError(*problems)
    return data, notes


def _is_tag(path: list[str]) -> bool:
    if path[0] == "methods":
        return len(path) == 3 and path[2] == "name"
    return len(path) == 2 and TAGS.get(path[0]) == path[1]


def _set(data: dict[str, Any], path: list[str], value: Any) -> str:
    if path[0] == "methods":
        return _set_in_methods(data, path, value)
    if path[0] == "method" and "methods" in data:
        labels = ", ".join(
            str(item.get("label", item.get("name"))) for item in data["methods"] if isinstance(item, dict)
        )
        raise ConfigError(
            ("", f"this file compares several methods: write methods.LABEL.{'.'.join(path[1:])}=..., labels: {labels}")
        )
    if _is_tag(path):
        section = data.get(path[0]) or {}
        if isinstance(section, dict) and section.get(path[1]) != value:
            dropped = sorted(str(key) for key in section if key != path[1])
            data[path[0]] = {path[1]: value}
            return f"{path[0]}.{path[1]}={value} drops the file's {', '.join(dropped)}" if dropped else ""
    _put(data, path, value)
    return ""


def _set_in_methods(data: dict[str, Any], path: list[str], value: Any) -> str:
    items = data.get("methods")
    if not isinstance(items, list):
        raise ConfigError(("", "this file has no `methods`: write method.key=value"))
    labels = {str(item.get("label", item.get("name"))): item for item in items if isinstance(item, dict)}
    if len(path) < 3 or path[1] not in labels:
        raise ConfigError(("", f"no method has that label; {did_you_mean(path[1] if len(path) > 1 else '', labels)}"))
    item = labels[path[1]]
    if path[2:] == ["name"] and item.get("name") != value:
        dropped = sorted(str(key) for key in item if key not in ("name", "label"))
        item.setdefault("label", path[1])
        for key in dropped:
            del item[key]
        item["name"] = value
        return f"methods.{path[1]}.name={value} drops the file's {', '.join(dropped)}" if dropped else ""
    _put(item, path[2:], value)
    return ""


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
