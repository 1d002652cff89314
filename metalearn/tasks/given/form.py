"""What a task source must have: attributes, their signatures, and the fields of its spec."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from metalearn.component import TaskComponent
from metalearn.errors import ConfigError
from metalearn.types import EpisodeSpec, Objective, TaskSource
from metalearn.variable_tasks import VariableSource

KINDS = ("classification", "regression")
NEEDED = {
    "spec": "spec, an EpisodeSpec: spec = EpisodeSpec(kind, ways, shots, queries, x_shape, "
    "outputs, num_classes, split)",
    "sample": "sample(key, num_tasks, start=0) -> Episode, which returns the tasks start to "
    "start + num_tasks - 1, with a leading axis of tasks on every tensor",
    "examples": "examples(key, size) -> Batch, which returns `size` examples labelled over all "
    "classes of the split, or in regression one example of each of `size` new tasks",
}
CALLS = {  # how the package calls them
    "sample": ((None, 2), (None, 2, 0)),
    "examples": ((None, 2),),
}
Rule = tuple[Callable[[Any], bool], str]  # of a field: (is it valid?, what it must be)


def form_problems(source: Any, split: str | None = None) -> list[str]:
    """Return a sentence for each attribute of a task source that is missing or has another form.

    With `split`, also if its spec is labelled with another split. Nothing is sampled."""
    if isinstance(source, VariableSource):
        source = source.source
    name = getattr(source, "__name__", type(source).__name__)
    if isinstance(source, type):
        return [f"{name} is a class: pass an object of it, such as {name}()"]
    if isinstance(source, TaskComponent):
        built = f"{name}(...).build(split='train')"
        return [f"{name} is a component: pass what its build returns for the split, {built}"]
    if not any(hasattr(source, attribute) for attribute in NEEDED):
        name = "None" if source is None else name
        return [f"{name} is not a task source: it has no {', no '.join(NEEDED)}"]
    problems = []
    for attribute, needed in NEEDED.items():
        if not hasattr(source, attribute):
            problems.append(f"{name} has no {attribute}: a task source needs {needed}")
        elif attribute != "spec":
            problems += _call_problems(getattr(source, attribute), attribute, name)
    return problems + (spec_problems(source.spec, split) if hasattr(source, "spec") else [])


def build_checked(
    component: TaskComponent, split: str, device: str, dtype: torch.dtype, seed: int = 0
) -> TaskSource:
    """Build the source of a split; raises ConfigError if it has not the form of a task source."""
    source = component.build(split=split, seed=seed, device=device, dtype=dtype)
    label = split if component.splits_are_labelled else None
    if problems := form_problems(source, label):
        raise ConfigError(*(("source", text) for text in problems))
    return source


def _call_problems(function: Any, attribute: str, name: str) -> list[str]:
    """Return why a method of a source cannot be called as the package calls it; else empty."""
    if not callable(function):
        kind = type(function).__name__
        return [f"{name}.{attribute} is of type {kind}: it must be a method, {NEEDED[attribute]}"]
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function without one, such as one written in C
        return []
    for arguments in CALLS[attribute]:
        try:
            signature.bind(*arguments)
        except TypeError:
            taken = str(signature).partition(" ->")[0]
            return [f"{name}.{attribute} takes {taken}: it must be {NEEDED[attribute]}"]
    return []


def spec_problems(spec: Any, split: str | None = None) -> list[str]:
    """Return a sentence for each field of a spec that is invalid, alone or with another one."""
    if not isinstance(spec, EpisodeSpec):
        kind = "method" if callable(spec) else type(spec).__name__
        return [f"spec is a {kind}: it must be an attribute of type EpisodeSpec (metalearn.types)"]
    problems = [
        f"spec.{name} is {getattr(spec, name)!r}: it must be {text}"
        for name, (is_valid, text) in RULES.items()
        if not is_valid(getattr(spec, name))
    ]
    if split is not None and spec.split != split and isinstance(spec.split, str):
        label = f"spec.split is {spec.split!r}, but this is the source of the split {split!r}"
        problems.append(f"{label}: pass split={split!r} to its EpisodeSpec")
    return problems or _contradictions(spec)


def _contradictions(spec: EpisodeSpec) -> list[str]:
    ways, problems = spec.ways, []
    if not spec.classification:
        if ways != 1:
            text = "it must be 1 in regression, and shots the number of support examples"
            problems.append(f"spec.ways is {ways}: {text}")
        return problems
    if ways == 1:  # dense tasks: every example has several labels
        return problems
    if spec.outputs < ways:
        text = f"it must be {ways} for tasks of {ways} ways, whose labels are 0 .. {ways - 1}"
        problems.append(f"spec.outputs is {spec.outputs}: {text}")
    if spec.num_classes < ways:
        text = f"it must be the number of classes of the split, at least {ways} for {ways} ways"
        problems.append(f"spec.num_classes is {spec.num_classes}: {text}")
    return problems


def _at_least(lowest: int) -> Rule:
    return lambda value: type(value) is int and value >= lowest, f"an int >= {lowest}"


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(size) is int and size >= 1 for size in value)


def _is_device(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(torch.device(value).type)
    except RuntimeError:
        return False


RULES: dict[str, Rule] = {
    "kind": (lambda value: value in KINDS, " or ".join(map(repr, KINDS))),
    "ways": _at_least(1),
    "shots": _at_least(1),
    "queries": _at_least(0),
    "x_shape": (_is_shape, "the shape of one x, a tuple of ints, such as (1,) or (3, 84, 84)"),
    "outputs": _at_least(1),
    "num_classes": _at_least(0),
    "split": (lambda value: isinstance(value, str), "a name, such as 'train'"),
    "dtype": (
        lambda value: value in (torch.float32, torch.float64),
        "torch.float32 or torch.float64",
    ),
    "device": (_is_device, "the name of a device, such as 'cpu'"),
    "loss": (
        lambda value: value is None or isinstance(value, str) or callable(value),
        "None, the name of a loss, or a function (predictions, y) -> loss of each example",
    ),
    "objective": (
        lambda value: value is None or isinstance(value, Objective),
        "None or an Objective (metalearn.types)",
    ),
    "padded": (lambda value: isinstance(value, bool), "True or False"),
}
