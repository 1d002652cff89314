"""The interface of engines, and the import of other packages."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn import interop
from metalearn.errors import ConfigError
from metalearn.types import Episode, Params


class LeftOut(Exception):
    """Why an engine is skipped on a workload, as a sentence for the log."""


def no_wait() -> None:
    """Do nothing: a step on the CPU has ended when it returns."""


@dataclass(frozen=True)
class Engine:
    """One implementation of the meta-step of a problem, which can be called repeatedly."""

    step: Callable[[], None]  # the timed unit: sample, meta-gradient, meta-update
    # the meta-gradient of `step` at the problem's initialization: mean over T
    gradient: Callable[[Episode], Params] | None
    wait: Callable[[], None] = no_wait  # waits until all work that was started has ended
    form: str = ""  # name of this use of the package, if there are several
    per: int = 1  # episodes per call of a sampler; seconds of a step are divided by it


def copy_grad(leaf: Tensor) -> Tensor:
    """Return a copy of the .grad of a leaf; zeros if it is None."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach().clone()


def package(name: str) -> Any:
    """Import learn2learn, higher, torchopt or jax.

    Raises LeftOut, with the way to install it, if it is missing."""
    try:
        if name in ("learn2learn", "higher"):
            return getattr(interop, name)()
        if importlib.util.find_spec(name) is None:
            raise LeftOut(f"{name} is not installed: pip install -e '.[peers]'")
        return importlib.import_module(name)
    except ConfigError as error:
        raise LeftOut("; ".join(text for _, text in error.problems)) from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        message = f"{name} is there but cannot be imported: {type(error).__name__}: {error}"
        raise LeftOut(message) from error
