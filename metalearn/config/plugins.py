"""Components of other packages and files: registered by name, or loaded with a plug-in."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from metalearn.component import Component, MethodComponent, ModelComponent, TaskComponent
from metalearn.config.registry import METHODS, TABLES
from metalearn.errors import ConfigError, did_you_mean
from metalearn.logger import log

KINDS: dict[str, type[Component]] = {
    "tasks": TaskComponent,
    "models": ModelComponent,
    "methods": MethodComponent,
}
_modules: dict[str, ModuleType] = {}  # by the plug-in's name, as it was given


def register(kind: str, component: type[Component]) -> type[Component]:
    """Make a component of one's own known by its name; kind: tasks, models or methods.

    Returns the component, so that it serves as `functools.partial(register, "models")` on a class.
    Raises ConfigError for another kind, for what is no such component, and for the name of another
    one.
    """
    if kind not in KINDS:
        raise ConfigError(("kind", f"unknown kind {kind!r}; {did_you_mean(kind, KINDS)}"))
    wanted, tag = KINDS[kind], "source" if kind == "tasks" else "name"
    if not (isinstance(component, type) and issubclass(component, wanted)):
        text = f"{component!r} is no subclass of metalearn.component.{wanted.__name__}"
        raise ConfigError((kind, text))
    field = component.model_fields.get(tag)
    name = None if field is None else field.default
    if not isinstance(name, str) or not name:
        text = f'{component.__name__} needs a default for its field {tag}: {tag}: Literal["mine"]'
        raise ConfigError((kind, f'{text} = "mine"'))
    known = TABLES[kind].get(name)
    if known is not None and _identity(known) != _identity(component):
        text = f"{name!r} is the {tag} of {known.__module__}.{known.__qualname__}"
        raise ConfigError((kind, f"{text}: give {component.__qualname__} another"))
    TABLES[kind][name] = component
    if issubclass(component, MethodComponent):
        METHODS[name] = component
    return component


def _identity(component: type[Component]) -> tuple[str, str]:
    """A class that is defined again, as in a notebook, stays the same component."""
    return component.__module__, component.__qualname__


def load_plugins(names: Iterable[str], folder: Path | None = None) -> None:
    """Import modules or .py files, and register the components that they define.

    A file is looked for beside `folder`, then in the working directory.
    """
    load_entry_points()
    for name in names:
        if name not in _modules:
            _modules[name] = _imported(name, folder)
            _register_all(_modules[name])


def unloaded(names: Iterable[str]) -> list[str]:
    """The plug-ins that were not loaded in this process."""
    return [name for name in names if name not in _modules]


def plugins_of(components: Iterable[Any]) -> set[str]:
    """The plug-ins that define these components."""
    homes = {type(component).__module__ for component in components}
    return {name for name, module in _modules.items() if module.__name__ in homes}


@functools.cache
def load_entry_points() -> None:
    """Register the components that installed packages declare.

    The groups are metalearn.tasks, metalearn.models and metalearn.methods. What cannot be loaded is
    left out, with a warning.
    """
    for kind in KINDS:
        for entry in entry_points(group=f"metalearn.{kind}"):
            try:
                register(kind, entry.load())
            except Exception as error:
                log.warning(f"{entry.value} of the group metalearn.{kind} is left out: {error}")


def _imported(name: str, folder: Path | None) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _from_file(name, folder)
        return importlib.import_module(name)
    except ConfigError:
        raise
    except Exception as error:
        text = f"{name} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(("plugins", text)) from error


def _from_file(name: str, folder: Path | None) -> ModuleType:
    homes = [Path()] if folder is None else [folder, Path()]
    path = next((home / name for home in homes if (home / name).is_file()), None)
    if path is None:
        raise ConfigError(("plugins", f"{name} is no file, in {homes[0].resolve()}"))
    spec = importlib.util.spec_from_file_location(f"metalearn_plugin_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks the annotations up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _register_all(module: ModuleType) -> None:
    for value in list(vars(module).values()):
        if not isinstance(value, type) or value.__module__ != module.__name__:
            continue
        for kind, wanted in KINDS.items():
            field = "source" if kind == "tasks" else "name"
            if issubclass(value, wanted) and field in value.model_fields:
                named = isinstance(value.model_fields[field].default, str)
                if named and not getattr(value, "__abstractmethods__", None):
                    register(kind, value)
