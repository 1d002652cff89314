"""Which graphs the compiler's cache holds: code that lies there is loaded in a second, other code
takes many to make.

A mark is an empty file beside the cache, named by a hash of all that the code depends on, made when
a graph has been compiled. Inside `only_ready()` compiling anything else raises NotReady, so that
the price of asking is a trace."""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from metalearn.machine import cpu_name

_asking: contextvars.ContextVar[bool] = contextvars.ContextVar("asking", default=False)


class NotReady(Exception):
    """A graph that the compiler's cache does not hold, where only those were wanted."""


@contextlib.contextmanager
def only_ready() -> Iterator[None]:
    """Within: NotReady where something would have to be compiled anew."""
    token = _asking.set(True)
    try:
        yield
    finally:
        _asking.reset(token)


def asking() -> bool:
    """Whether only what is ready may be compiled now."""
    return _asking.get()


@contextlib.contextmanager
def noted(
    cache: Path, graph: GraphModule, tensors: Sequence[Tensor], options: dict[str, Any]
) -> Iterator[None]:
    """Around the compilation of `graph` for inputs like `tensors`: marks it, once it is through, as
    held by `cache`.
    """
    mark = _mark(cache, graph, tensors, options)
    if asking() and not mark.exists():
        raise NotReady(f"{mark.name} is not marked in {mark.parent}")
    yield
    with contextlib.suppress(
        OSError
    ):  # a cache that cannot be written to keeps nothing, and says nothing
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(
    cache: Path, graph: GraphModule, tensors: Sequence[Tensor], options: dict[str, Any]
) -> Path:
    kinds = [
        (tuple(value.shape), value.stride(), str(value.dtype), str(value.device))
        for value in tensors
    ]
    facts = [graph.code, kinds, options, torch.__version__, torch.get_num_threads(), cpu_name()]
    return cache / "ready" / hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
