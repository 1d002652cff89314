"""What every engine offers, and how other people's packages are brought in."""

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
    """No waiting: a step on the CPU has ended when it returns."""


@dataclass(frozen=True)
class Engine:
    """One way of making the meta-step of one problem, ready to be called again and again."""

    step: Callable[[], None]  # the timed unit: sample, meta-gradient, meta-update
    # what `step` computes on the way, at the problem's start: mean over T
    gradient: Callable[[Episode], Params] | None
    wait: Callable[[], None] = no_wait  # until everything that was started has ended
    form: str = ""  # which of several ways of using the package this is
    per: int = 1  # seconds of a step are divided by it: the episodes of one call of a sampler


def copy_grad(leaf: Tensor) -> Tensor:
    """A copy of the .grad of a leaf; zeros where nothing has reached it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach().clone()


def package(name: str) -> Any:
    """learn2learn, higher, torchopt or jax.

    LeftOut, with the way to get it, where it is missing."""
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
