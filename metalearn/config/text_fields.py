"""Which dotted keys of an experiment file are text fields, whose overrides are used literally.

A key belongs to the component that its section's tag selects, so this needs the file's data, after
the overrides that change tags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from metalearn.component import Component, OneOf
from metalearn.config.file import (
    DEFAULT_METHOD,
    DEFAULT_TASK,
    OVERLAYS,
    SECTIONS,
    File,
    Row,
    get_label,
)
from metalearn.config.registry import METHODS, TABLES

Kinds = list[type[Component]]


def is_text_field(data: dict[str, Any], path: list[str]) -> bool:
    """Return whether the key accepts only text (or null)."""
    return _accepted_types(data, path) in ({str}, {str, NoneType})


def is_optional(data: dict[str, Any], path: list[str]) -> bool:
    """Return whether the key accepts null."""
    return NoneType in _accepted_types(data, path)


def _accepted_types(data: dict[str, Any], path: list[str]) -> set[Any]:
    """Return the types that a key accepts; empty for an unknown key."""
    kinds, keys = _owners(data, path)
    for key in keys[:-1]:
        fields = [kind.model_fields[key] for kind in kinds if key in kind.model_fields]
        field_types = [kind for field in fields for kind in _field_types(field)]
        kinds = [
            kind for kind in field_types if isinstance(kind, type) and issubclass(kind, Component)
        ]
    fields = [kind.model_fields[keys[-1]] for kind in kinds if keys[-1] in kind.model_fields]
    types = {kind for field in fields for kind in _field_types(field)}
    return {str if kind is Path else kind for kind in types}


def _field_types(field: FieldInfo) -> Iterator[Any]:
    """Yield the types that a field accepts, including those that plug-ins added to a table."""
    yield from _union_members(field.annotation)
    for choice in field.metadata:
        if isinstance(choice, OneOf):
            yield from choice.table.values()


def _union_members(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union; a Literal or a generic such as list[str] is one member."""
    if isinstance(annotation, OneOf):
        yield from annotation.table.values()
        return
    if get_origin(annotation) in (None, Literal, list, tuple, dict):
        yield annotation
        return
    for part in get_args(annotation):
        yield from _union_members(part)


def _owners(data: dict[str, Any], path: list[str]) -> tuple[Kinds, list[str]]:
    """Return (the components that may have the key, the key within them)."""
    head, rest = path[0], path[1:]
    if head == "methods" and len(rest) > 1:
        items = data.get("methods")
        for item in items if isinstance(items, list) else []:
            if isinstance(item, dict) and get_label(item) == rest[0]:
                if rest[1] in OVERLAYS and len(rest) > 2:
                    return _owners({**data, **item}, rest[1:])
                return _method(item, rest[1:])
        return [], rest
    if not rest:
        return [File], path
    if head == "method":
        return _method(_section(data, "method"), rest)
    if head == "task":
        return _tagged_component("tasks", [_section(data, "task")], "source", DEFAULT_TASK), rest
    if head == "model":
        return _tagged_component("models", [_section(data, "model")], "name", ""), rest
    if path[:2] == ["evaluate", "task"] and len(path) > 2:
        sections = [_section(data, "evaluate", "task"), _section(data, "task")]
        return _tagged_component("tasks", sections, "source", DEFAULT_TASK), path[2:]
    return ([SECTIONS[head]] if head in SECTIONS else []), rest


def _method(item: dict[str, Any], rest: list[str]) -> tuple[Kinds, list[str]]:
    """Return the entry of a method and its component, or the component that it contains."""
    kinds = _tagged_component("methods", [item], "name", DEFAULT_METHOD)
    kind = METHODS.get(str(item.get("name", DEFAULT_METHOD)))
    default = None if kind is None else kind.contains_by_default
    if default is not None and rest[0] == "contains" and len(rest) > 1:
        return _tagged_component("methods", [_section(item, "contains")], "name", default), rest[1:]
    return [Row, *kinds], rest


def _tagged_component(table: str, sections: list[dict[str, Any]], tag: str, default: str) -> Kinds:
    name = next((str(values[tag]) for values in sections if tag in values), default)
    kind = TABLES[table].get(name)
    return [] if kind is None else [kind]


def _section(data: Any, *path: str) -> dict[str, Any]:
    """Return a section of the file; empty if it is missing."""
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}
