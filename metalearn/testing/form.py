"""The contract of every component: frozen, equal after JSON, a description of each field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from metalearn.component import Component


def refuses(call: Callable[[], Any], word: str) -> None:
    """Assert that a call raises a ValueError whose text has `word` in it."""
    try:
        call()
    except ValueError as error:
        assert word in str(error), f"the error must name {word!r}, and is: {error}"
        return
    raise AssertionError(f"a ValueError that names {word!r} must be raised, and none is")


def check_form(component: type[Component], options: Mapping[str, Any], tag: str = "name") -> None:
    """Assert: frozen, equal after JSON, every field described, unknown fields rejected."""
    instance = component(**options)
    restored = component.model_validate(json.loads(json.dumps(instance.model_dump(mode="json"))))
    assert restored == instance and hash(restored) == hash(instance), (
        f"the component must be equal after a JSON round trip, and {instance!r} becomes "
        f"{restored!r}"
    )
    field = next(iter(component.model_fields))
    refuses(lambda: setattr(instance, field, getattr(instance, field)), "frozen")
    unknown: dict[str, Any] = {**options, "not_a_field": 1}
    refuses(lambda: component(**unknown), "not_a_field")
    name = component.model_fields[tag].default
    assert isinstance(name, str) and getattr(instance, tag) == name, (
        f"the field {tag!r} must have the component's name as its default, and has {name!r}, "
        f"where an instance has {getattr(instance, tag)!r}"
    )
    assert component.sentence().endswith("."), (
        f"the docstring must begin with a sentence that ends with a full stop, and begins with "
        f"{component.sentence()!r}"
    )
    undescribed = [name for name, info in component.model_fields.items() if not info.description]
    assert not undescribed, (
        f"every field must have a description (metalearn.option), and {undescribed} have none"
    )
    acts = {name: component.acts_of(name) for name in component.model_fields}
    assert set(acts.values()) <= {"train", "adapt", "both"}, (
        f"every field must act at 'train', 'adapt' or 'both', and they act at {acts}"
    )
