"""Components of other packages and files: registered by name, or loaded with a plug-in."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
from metalearn.config.registry import REPORT, TABLES
from metalearn.errors import ConfigError, did_you_mean
from metalearn.learned_optimizers.estimators.estimator import EstimatorComponent
from metalearn.learned_optimizers.horizons import HorizonComponent
from metalearn.learned_optimizers.rules.learned_rule import LearnedRuleComponent
from metalearn.logger import log
from metalearn.losses import FUNCTIONS, LOSSES
from metalearn.nas.searchers.search import SearcherComponent
from metalearn.nas.spaces.space import SpaceComponent
from metalearn.tracking.sink import SinkOptions

KINDS: dict[str, type[Component]] = {
    "tasks": TaskComponent,
    "models": ModelComponent,
    "methods": MethodComponent,
    "rules": RuleComponent,
    "learned_rules": LearnedRuleComponent,
    "estimators": EstimatorComponent,
    "horizons": HorizonComponent,
    "spaces": SpaceComponent,
    "searchers": SearcherComponent,
    "trackers": SinkOptions,
}
LOSS_KIND = "losses"  # functions (predictions, y)
REPORT_KIND = "report"  # sections of the report: what metalearn.report.section returns
ALL_KINDS = (*KINDS, LOSS_KIND, REPORT_KIND)
Problems = list[tuple[str, str]]
_modules: dict[str, ModuleType] = {}  # by the plug-in's name, as the user wrote it
_collections: list[Problems] = []  # of the plug-ins that are being imported, innermost last


def register(kind: str, component: Any) -> Any:
    """Register a custom component under its name.

    kind: tasks, models, methods, rules, learned_rules, estimators, horizons, spaces, searchers,
    trackers; losses for a function (predictions, y), under its name; or report for a section of
    the report.

    Returns the component, so that `functools.partial(register, "models")` is a class decorator.
    Raises ConfigError for an unknown kind, an object of the wrong type, or the name of another
    component; while a plug-in is imported, these errors are collected and raised at its end.

    >>> def absolute(predictions, y):
    ...     return (predictions - y).abs()
    >>> ml.register("losses", absolute) is absolute
    True
    """
    try:
        return _register(kind, component)
    except ConfigError as error:
        if not _collections:
            raise
        _collections[-1].extend(error.problems)
        return component


def _register(kind: str, component: Any) -> Any:
    if kind == REPORT_KIND:
        return _register_section(component)
    if kind == LOSS_KIND:
        return _register_loss(component)
    if kind not in KINDS:
        raise ConfigError(("kind", f"unknown kind {kind!r}; {did_you_mean(kind, ALL_KINDS)}"))
    base_class, tag = KINDS[kind], tag_field(kind)
    if not (isinstance(component, type) and issubclass(component, base_class)):
        text = f"{component!r} is not a subclass of {base_class.__module__}.{base_class.__name__}"
        raise ConfigError((kind, text))
    field = component.model_fields.get(tag)
    name = None if field is None else field.default
    if not isinstance(name, str) or not name:
        text = f'{component.__name__} needs a default for its field {tag}: {tag}: Literal["mine"]'
        raise ConfigError((kind, f'{text} = "mine"'))
    _check_name_is_free(kind, name, tag, TABLES[kind].get(name), component)
    TABLES[kind][name] = component
    return component


def tag_field(kind: str) -> str:
    """Return the field that holds a component's registered name."""
    return "source" if kind == "tasks" else "name"


def _register_section(section: Any) -> Any:
    title, data = getattr(section, "title", None), getattr(section, "data", None)
    if not isinstance(title, str) or not callable(data):
        text = f'{section!r} is not a section: decorate a function with @metalearn.section("...")'
        raise ConfigError((REPORT_KIND, text))
    registered = REPORT.get(title)
    _check_name_is_free(
        REPORT_KIND, title, "question", None if registered is None else registered.data, data
    )
    REPORT[title] = section
    return section


def _register_loss(function: Any) -> Any:
    name = getattr(function, "__name__", "")
    if not callable(function) or isinstance(function, type) or not name.isidentifier():
        text = f"{function!r} is not a named function (predictions, y)"
        raise ConfigError((LOSS_KIND, text))
    registered = {**FUNCTIONS, **LOSSES}.get(name)
    _check_name_is_free(LOSS_KIND, name, "name", registered, function)
    FUNCTIONS[name] = function
    return function


def _check_name_is_free(kind: str, name: str, tag: str, registered: Any, new: Any) -> None:
    """Raise ConfigError if a name belongs to another component.

    A component that is defined again, as in a notebook, counts as the same one."""

    def qualified_name(component: Any) -> tuple[str, str]:
        return component.__module__, component.__qualname__

    if registered is None or qualified_name(registered) == qualified_name(new):
        return
    text = f"{name!r} is the {tag} of {registered.__module__}.{registered.__qualname__}"
    raise ConfigError((kind, f"{text}: choose another one for {new.__qualname__}"))


def load_plugins(names: Iterable[str], folder: Path | None = None) -> None:
    """Import modules or .py files, and register the components that they define.

    A file is looked up in `folder`, then in the working directory. Raises ConfigError with every
    problem of every plug-in; a plug-in with problems registers nothing."""
    load_entry_points()
    problems: Problems = []
    for name in dict.fromkeys(names):
        if name not in _modules:
            problems += _load(name, folder)
    if problems:
        raise ConfigError(*problems)


def _load(name: str, folder: Path | None) -> Problems:
    """Import one plug-in; returns its problems."""
    tables = _tables()
    before = [dict(table) for table in tables]
    module = None
    with _collect_problems() as problems:
        try:
            module = _import_plugin(name, folder)
            _register_all(module)
        except ConfigError as error:
            problems += error.problems
    if module is not None and not problems and tables == before and not _defines(module):
        text = f"{name} neither defines nor registers a component: a class needs a default for its"
        text += ' field `name`, name: Literal["mine"] = "mine"; a loss needs metalearn.register'
        problems.append(("plugins", text))
    if not problems:
        assert module is not None
        _modules[name] = module
        return []
    if module is not None:
        sys.modules.pop(module.__name__, None)  # so that it is imported again next time
    for table, values in zip(tables, before, strict=True):
        table.clear()
        table.update(values)
    return [
        (place, text) if place == "plugins" else ("plugins", f"{name}: {place}: {text}")
        for place, text in dict.fromkeys(problems)
    ]


@contextmanager
def _collect_problems() -> Iterator[Problems]:
    """Context manager that collects the errors of `register` instead of raising them."""
    _collections.append([])
    try:
        yield _collections[-1]
    finally:
        _collections.pop()


def _tables() -> list[dict[str, Any]]:
    return [*(TABLES[kind] for kind in KINDS), FUNCTIONS, REPORT]


def _defines(module: ModuleType) -> bool:
    """Return whether a component of the tables is defined in the module, also if from before."""
    components = [component for table in _tables() for component in table.values()]
    # The component of a section of the report is its function, `data`.
    modules = {getattr(component, "data", component).__module__ for component in components}
    return any(_is_inside(name, module.__name__) for name in modules)


def unloaded(names: Iterable[str]) -> list[str]:
    """Return the plug-ins that were not loaded in this process."""
    return [name for name in names if name not in _modules]


def loaded() -> list[str]:
    """Return the plug-ins of this process, for processes that it starts; files by full path."""
    files = {name: str(module.__file__) for name, module in _modules.items()}
    names = (files[name] if name.endswith(".py") else name for name in _modules)
    return list(dict.fromkeys(names))


def as_options(names: Iterable[str]) -> list[str]:
    """Return the command-line options `--plugin NAME` of these plug-ins."""
    return [word for name in names for word in ("--plugin", name)]


def plugins_of(components: Iterable[Any], named: Iterable[str] = ()) -> set[str]:
    """Return `named` and the plug-ins that define these components, losses, or their parts."""
    modules = {part.__module__ for component in components for part in _parts(component)}
    plugins = set(named)
    module_names = {_modules[name].__name__ for name in plugins if name in _modules}
    for name, module in _modules.items():
        is_used = any(_is_inside(part_module, module.__name__) for part_module in modules)
        if is_used and module.__name__ not in module_names:
            module_names.add(module.__name__)
            plugins.add(name)
    return plugins


def _parts(component: Any) -> Iterator[Any]:
    """Yield a component and the components in its fields, or a function."""
    if isinstance(component, Component):
        yield component
        for _, value in component:
            yield from _parts(value)
    elif callable(component):
        yield component


def _is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@functools.cache
def load_entry_points() -> None:
    """Register the components and report sections that installed packages declare.

    The groups are metalearn.tasks, metalearn.models, and so on. Entries that cannot be loaded are
    skipped with a warning. Packages count as plug-ins: a config lists those of its components."""
    declared = entry_points()  # reads the metadata of every installed package
    for kind in ALL_KINDS:
        for entry in declared.select(group=f"metalearn.{kind}"):
            try:
                register(kind, entry.load())
            except (Exception, SystemExit) as error:
                log.warning(f"{entry.value} of the group metalearn.{kind} is skipped: {error}")
                continue
            package = entry.module.partition(".")[0]
            _modules.setdefault(package, sys.modules[package])


def _import_plugin(name: str, folder: Path | None) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _import_file(name, folder)
        return importlib.import_module(name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        text = f"{name} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(("plugins", text)) from error


def _import_file(name: str, folder: Path | None) -> ModuleType:
    folders = [Path()] if folder is None else [folder, Path()]
    path = next((parent / name for parent in folders if (parent / name).is_file()), None)
    if path is None:
        folder_names = " or ".join(str(parent.resolve()) for parent in folders)
        raise ConfigError(("plugins", f"no file {name} in {folder_names}"))
    path = path.resolve()
    name = f"metalearn_plugin_{path.stem}"
    existing = sys.modules.get(name)
    if existing is not None and existing.__file__ != str(path):  # another file of this name
        name += f"_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        existing = sys.modules.get(name)
    if existing is not None:
        return existing
    spec = importlib.util.spec_from_file_location(name, path)
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
        for kind, base_class in KINDS.items():
            field = tag_field(kind)
            if issubclass(value, base_class) and field in value.model_fields:
                has_name = isinstance(value.model_fields[field].default, str)
                if has_name and not getattr(value, "__abstractmethods__", None):
                    register(kind, value)
