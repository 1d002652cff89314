"""Packages that can be called as functions: `ml.compare(...)` as well as `metalearn.compare`."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that can be called, which calls one of its functions."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, name = str(vars(self)["CALLS"]).partition(":")
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


def make_callable(package: str) -> None:
    """Let a call of the package call its `CALLS`, "module:function"."""
    sys.modules[package].__class__ = CallableModule
