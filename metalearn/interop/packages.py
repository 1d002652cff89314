"""learn2learn and higher as modules, imported on first use; ConfigError if they are missing."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from metalearn.errors import ConfigError

SUBMODULES = ("nn", "optim", "data", "algorithms")  # of learn2learn, those that need only torch
REQUIREMENTS = "requests, scipy and tqdm"  # imported by these submodules besides torch and numpy


@functools.cache
def higher() -> ModuleType:
    """Import higher (Grefenstette et al. 2019, arXiv:1910.01727).

    Raises ConfigError if it is not installed."""
    if importlib.util.find_spec("higher") is None:
        raise ConfigError(("", "higher is not installed: run `make setup`, or pip install higher"))
    return importlib.import_module("higher")


@functools.cache
def learn2learn() -> ModuleType:
    """Import the parts of learn2learn (Arnold et al. 2020, arXiv:2008.12284) that need only torch.

    Raises ConfigError if it is not installed.

    A learn2learn that is already imported is returned as it is. Otherwise its own `__init__`, which
    imports gym and torchvision, prints a notice and takes seconds, is not run: the package is
    assembled from its submodules, and `vision`, `gym` and `text` are imported lazily, with their
    dependencies."""
    loaded = sys.modules.get("learn2learn")
    if loaded is not None:
        return loaded
    spec = importlib.util.find_spec("learn2learn")
    if spec is None:
        text = "learn2learn is not installed: run `make setup`, which builds it with a C compiler"
        raise ConfigError(("", text))
    # The module has its path and spec, but none of its code has run.
    package = importlib.util.module_from_spec(spec)
    sys.modules["learn2learn"] = package
    try:
        utils = importlib.import_module("learn2learn.utils")
        vars(package).update(
            {name: value for name, value in vars(utils).items() if not name.startswith("_")}
        )
        for submodule in SUBMODULES:
            setattr(package, submodule, importlib.import_module(f"learn2learn.{submodule}"))
    except Exception as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == "learn2learn"]:
            del sys.modules[name]
        reason = f"{type(error).__name__}: {error}"
        text = (
            f"learn2learn is installed but cannot be imported ({reason}); it needs {REQUIREMENTS}"
        )
        raise ConfigError(("", text)) from error
    package.__getattr__ = _import_submodule  # type: ignore[method-assign]
    return package


def _import_submodule(name: str) -> Any:
    """Import a submodule of learn2learn on first use; raises AttributeError if there is none of
    that name."""
    try:
        return importlib.import_module(f"learn2learn.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"learn2learn.{name}":
            raise  # gym or torchvision is missing
        raise AttributeError(f"module 'learn2learn' has no attribute {name!r}") from None
