"""Experiment files from Python: a path, the name of a shipped one, or a mapping."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.component import Component
from metalearn.config.experiment import Plan, load, parse
from metalearn.config.file import File
from metalearn.config.overrides import apply_overrides
from metalearn.config.plugins import load_entry_points, load_plugins
from metalearn.errors import ConfigError


def is_file(source: Any) -> bool:
    """Return whether it is an experiment file, as opposed to a method or to methods by label."""
    if isinstance(source, (str, Path)):
        return True
    if not isinstance(source, Mapping):
        return False
    return any(
        key in File.model_fields and not isinstance(value, (Component, type))
        for key, value in source.items()
    )


def read_plan(source: Any, overrides: Sequence[str] = (), *, comparison: bool) -> Plan:
    """Return the plan of a file; its plug-ins are imported, as by the command line.

    Raises ConfigError if it has several methods and `comparison` is false, or one and it is
    true."""
    plan = (
        load(str(source), overrides)
        if isinstance(source, (str, Path))
        else _parse_mapping(source, overrides)
    )
    if comparison and not plan.comparison:
        raise ConfigError((plan.file, "has a single `method`: use ml.train"))
    if plan.comparison and not comparison:
        raise ConfigError((plan.file, "lists several `methods`: use ml.compare"))
    return plan


def _parse_mapping(mapping: Mapping[str, Any], overrides: Sequence[str]) -> Plan:
    data = copy.deepcopy(dict(mapping))
    load_plugins(data.get("plugins") or ())
    load_entry_points()
    data, notes = apply_overrides(data, overrides)
    return parse(data, notes=tuple(notes), require_method=True)


def reject_sections(source: Any, *others: Any) -> None:
    """Raise ConfigError if sections are passed together with a file that has them."""
    if any(one is not None for one in others):
        text = "is a file, which contains task, model and options: change them with overrides=[...]"
        name = str(source) if isinstance(source, (str, Path)) else "the mapping"
        raise ConfigError((name, text))
