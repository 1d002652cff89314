"""Which dotted keys of an experiment file are text fields: their overrides are taken as they stand.

A key belongs to the component that its section's tag chooses, so this needs the file's data,
after the overrides that change tags."""

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
    label_of,
)
from metalearn.config.registry import METHODS, TABLES

Kinds = list[type[Component]]


def is_text_field(data: dict[str, Any], path: list[str]) -> bool:
    """Whether the key takes text (or null) and nothing else."""
    return _leaves(data, path) in ({str}, {str, NoneType})


def is_optional(data: dict[str, Any], path: list[str]) -> bool:
    """Whether the key takes null."""
    return NoneType in _leaves(data, path)


def _leaves(data: dict[str, Any], path: list[str]) -> set[Any]:
    """The types that a key takes; empty for an unknown one."""
    kinds, rest = _owners(data, path)
    for key in rest[:-1]:
        fields = [kind.model_fields[key] for kind in kinds if key in kind.model_fields]
        inside = [one for field in fields for one in _types_of(field)]
        kinds = [one for one in inside if isinstance(one, type) and issubclass(one, Component)]
    fields = [kind.model_fields[rest[-1]] for kind in kinds if rest[-1] in kind.model_fields]
    found = {one for field in fields for one in _types_of(field)}
    return {str if one is Path else one for one in found}


def _types_of(field: FieldInfo) -> Iterator[Any]:
    """The types that a field takes, those that plug-ins added to a table included."""
    yield from _types(field.annotation)
    for choice in field.metadata:
        if isinstance(choice, OneOf):
            yield from choice.table.values()


def _types(annotation: Any) -> Iterator[Any]:
    """The types of a union; a Literal or a generic such as list[str] stands for itself."""
    if isinstance(annotation, OneOf):
        yield from annotation.table.values()
        return
    if get_origin(annotation) in (None, Literal, list, tuple, dict):
        yield annotation
        return
    for part in get_args(annotation):
        yield from _types(part)


def _owners(data: dict[str, Any], path: list[str]) -> tuple[Kinds, list[str]]:
    """(the components that may have the key, the key in them)."""
    head, rest = path[0], path[1:]
    if head == "methods" and len(rest) > 1:
        items = data.get("methods")
        for item in items if isinstance(items, list) else []:
            if isinstance(item, dict) and label_of(item) == rest[0]:
                if rest[1] in OVERLAYS and len(rest) > 2:
                    return _owners({**data, **item}, rest[1:])
                return _method(item, rest[1:])
        return [], rest
    if not rest:
        return [File], path
    if head == "method":
        return _method(_section(data, "method"), rest)
    if head == "task":
        return _tagged("tasks", [_section(data, "task")], "source", DEFAULT_TASK), rest
    if head == "model":
        return _tagged("models", [_section(data, "model")], "name", ""), rest
    if path[:2] == ["evaluate", "task"] and len(path) > 2:
        sections = [_section(data, "evaluate", "task"), _section(data, "task")]
        return _tagged("tasks", sections, "source", DEFAULT_TASK), path[2:]
    return ([SECTIONS[head]] if head in SECTIONS else []), rest


def _method(item: dict[str, Any], rest: list[str]) -> tuple[Kinds, list[str]]:
    """The entry of a method and its component, or the one that it contains."""
    kinds = _tagged("methods", [item], "name", DEFAULT_METHOD)
    kind = METHODS.get(str(item.get("name", DEFAULT_METHOD)))
    default = None if kind is None else kind.contains_by_default
    if default is not None and rest[0] == "contains" and len(rest) > 1:
        return _tagged("methods", [_section(item, "contains")], "name", default), rest[1:]
    return [Row, *kinds], rest


def _tagged(table: str, sections: list[dict[str, Any]], tag: str, default: str) -> Kinds:
    name = next((str(values[tag]) for values in sections if tag in values), default)
    kind = TABLES[table].get(name)
    return [] if kind is None else [kind]


def _section(data: Any, *path: str) -> dict[str, Any]:
    """A section of the file; empty where there is none."""
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}
