"""learn2learn and higher as modules, imported on first use; their absence is a ConfigError."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from metalearn.errors import ConfigError

PARTS = ("nn", "optim", "data", "algorithms")  # of learn2learn, those that need torch alone
BESIDE = "requests, scipy and tqdm"  # what these parts import besides torch and numpy


@functools.cache
def higher() -> ModuleType:
    """higher (Grefenstette et al. 2019, arXiv:1910.01727); ConfigError without it."""
    if importlib.util.find_spec("higher") is None:
        raise ConfigError(("", "higher is not installed: run `make setup`, or pip install higher"))
    return importlib.import_module("higher")


@functools.cache
def learn2learn() -> ModuleType:
    """learn2learn (Arnold et al. 2020, arXiv:2008.12284), as far as it needs torch alone.

    ConfigError without it.

    A learn2learn that is imported already is taken as it is. Otherwise its own `__init__`, which
    imports gym and torchvision, prints a notice and takes seconds, is not run: the package is put
    together from its parts, and `vision`, `gym` and `text` are imported lazily, with what they
    need."""
    loaded = sys.modules.get("learn2learn")
    if loaded is not None:
        return loaded
    found = importlib.util.find_spec("learn2learn")
    if found is None:
        text = "learn2learn is not installed: run `make setup`, which builds it with a C compiler"
        raise ConfigError(("", text))
    # with its path and spec, but nothing of it has run
    package = importlib.util.module_from_spec(found)
    sys.modules["learn2learn"] = package
    try:
        utils = importlib.import_module("learn2learn.utils")
        vars(package).update(
            {name: value for name, value in vars(utils).items() if not name.startswith("_")}
        )
        for part in PARTS:
            setattr(package, part, importlib.import_module(f"learn2learn.{part}"))
    except Exception as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == "learn2learn"]:
            del sys.modules[name]
        why = f"{type(error).__name__}: {error}"
        text = f"learn2learn is installed but cannot be imported ({why}); it needs {BESIDE}"
        raise ConfigError(("", text)) from error
    package.__getattr__ = _part  # type: ignore[method-assign]
    return package


def _part(name: str) -> Any:
    """A part of learn2learn that was left out, imported now; AttributeError where there is none of
    that name."""
    try:
        return importlib.import_module(f"learn2learn.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"learn2learn.{name}":
            raise  # gym or torchvision is missing: say so
        raise AttributeError(f"module 'learn2learn' has no attribute {name!r}") from None
