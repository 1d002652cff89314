"""`functional_call` for several threads at once: each runs its own copy of a module.

torch's version puts the parameters into the module while it runs, so that two threads with one
module would see each other's parameters."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class _Copies(threading.local):
    def __init__(self) -> None:
        self.of: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


_copies = _Copies()


def functional_call(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
) -> Any:
    """`module` with `tensors` instead of its own, by name; each thread runs its own copy."""
    if torch.compiler.is_compiling():  # the graph holds no module, and cannot copy one
        return torch.func.functional_call(
            module, dict(tensors), args, kwargs, tie_weights=tie_weights
        )
    module_copy = _copies.of.get(module)
    if module_copy is None:
        # Tensors stay: a copy of one would be recorded by whatever transform or mode is active.
        memo = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        module_copy = _copies.of[module] = copy.deepcopy(module, memo)
    return torch.func.functional_call(
        module_copy, dict(tensors), args, kwargs, tie_weights=tie_weights
    )
