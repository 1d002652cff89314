"""Components of other packages and files: registered by name, or loaded with a plug-in."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from metalearn.component import (
    Component,
    MethodComponent,
    ModelComponent,
    RuleComponent,
    TaskComponent,
)
from metalearn.config.registry import METHODS, REPORT, TABLES
from metalearn.errors import ConfigError, did_you_mean
from metalearn.logger import log
from metalearn.nas.searchers.search import SearcherComponent
from metalearn.tracking.sink import SinkOptions

KINDS: dict[str, type[Component]] = {
    "tasks": TaskComponent,
    "models": ModelComponent,
    "methods": MethodComponent,
    "rules": RuleComponent,
    "searchers": SearcherComponent,
    "trackers": SinkOptions,
}
REPORT_KIND = "report"  # sections of the report: what metalearn.report.section returns
_modules: dict[str, ModuleType] = {}  # by the plug-in's name, as it was given


def register(kind: str, component: Any) -> Any:
    """Make a component of one's own known by its name.

    kind: tasks, models, methods, rules, searchers, trackers, or report for a section of the page.

    Returns the component, so that it serves as `functools.partial(register, "models")` on a class.
    Raises ConfigError for another kind, for what is no such component, and for the name of another
    one.
    """
    if kind == REPORT_KIND:
        return _register_section(component)
    if kind not in KINDS:
        valid = did_you_mean(kind, [*KINDS, REPORT_KIND])
        raise ConfigError(("kind", f"unknown kind {kind!r}; {valid}"))
    wanted, tag = KINDS[kind], tag_of(kind)
    if not (isinstance(component, type) and issubclass(component, wanted)):
        text = f"{component!r} is no subclass of {wanted.__module__}.{wanted.__name__}"
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


def tag_of(kind: str) -> str:
    """The field that holds a component's registered name."""
    return "source" if kind == "tasks" else "name"


def _register_section(section: Any) -> Any:
    title = getattr(section, "title", None)
    if not isinstance(title, str) or not callable(getattr(section, "data", None)):
        text = f'{section!r} is no section: decorate a function with @metalearn.section("...")'
        raise ConfigError((REPORT_KIND, text))
    REPORT[title] = section
    return section


def _identity(component: type[Component]) -> tuple[str, str]:
    """A class that is defined again, as in a notebook, stays the same component."""
    return component.__module__, component.__qualname__


def load_plugins(names: Iterable[str], folder: Path | None = None) -> None:
    """Import modules or .py files, and register the components that they define.

    A file is looked for beside `folder`, then in the working directory. Raises ConfigError with
    every plug-in that cannot be loaded.
    """
    load_entry_points()
    problems: list[tuple[str, str]] = []
    for name in dict.fromkeys(names):
        if name not in _modules:
            before = _registered()
            try:
                module = _imported(name, folder)
                _register_all(module)
            except ConfigError as error:
                problems += error.problems
                continue
            _modules[name] = module
            if _registered() == before and not _defines(module):
                log.warning(f"plug-in {name} defines no component and registers none")
    if problems:
        raise ConfigError(*problems)


def _registered() -> set[int]:
    """What the tables hold, by identity."""
    tables = [*(TABLES[kind] for kind in KINDS), REPORT]
    return {id(component) for table in tables for component in table.values()}


def _defines(module: ModuleType) -> bool:
    """Whether a component of the tables is defined in the module, as where it was known before."""
    known = (component.__module__ for kind in KINDS for component in TABLES[kind].values())
    return any(_is_inside(home, module.__name__) for home in known)


def unloaded(names: Iterable[str]) -> list[str]:
    """The plug-ins that were not loaded in this process."""
    return [name for name in names if name not in _modules]


def loaded(*, absolute: bool = False) -> list[str]:
    """The plug-ins of this process, for the processes that it starts.

    Files by their whole path where `absolute`.
    """
    files = {name: str(Path(name).resolve()) for name in _modules if name.endswith(".py")}
    return [files.get(name, name) if absolute else name for name in _modules]


def as_options(names: Iterable[str]) -> list[str]:
    """`--plugin NAME` for each, as a command takes them."""
    return [word for name in names for word in ("--plugin", name)]


def plugins_of(components: Iterable[Any]) -> set[str]:
    """The plug-ins that define these components, or components that they contain."""
    homes = {type(one).__module__ for component in components for one in _parts(component)}
    return {
        name
        for name, module in _modules.items()
        if any(_is_inside(home, module.__name__) for home in homes)
    }


def _parts(component: Any) -> Iterator[Component]:
    """A component and those in its fields."""
    if isinstance(component, Component):
        yield component
        for _, value in component:
            yield from _parts(value)


def _is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@functools.cache
def load_entry_points() -> None:
    """Register the components and report sections that installed packages declare.

    The groups are metalearn.tasks, metalearn.models, and so on. What cannot be loaded is left out,
    with a warning. Packages count as plug-ins: a config names them beside their components.
    """
    for kind in (*KINDS, REPORT_KIND):
        for entry in entry_points(group=f"metalearn.{kind}"):
            try:
                register(kind, entry.load())
            except Exception as error:
                log.warning(f"{entry.value} of the group metalearn.{kind} is left out: {error}")
                continue
            package = entry.module.partition(".")[0]
            _modules.setdefault(package, sys.modules[package])


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
        raise ConfigError(
            ("plugins", f"no file {name} in {' or '.join(str(home.resolve()) for home in homes)}")
        )
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
        if not isinstance(value, type) or not _is_inside(value.__module__, module.__name__):
            continue
        for kind, wanted in KINDS.items():
            field = tag_of(kind)
            if issubclass(value, wanted) and field in value.model_fields:
                named = isinstance(value.model_fields[field].default, str)
                if named and not getattr(value, "__abstractmethods__", None):
                    register(kind, value)
