"""The outer rule on one vector of all parameters: few kernels instead of some for each of them.

For rules that treat every number alike, as all of rules.py do. The state keeps its structure; what
it holds for each parameter becomes a view of one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Named = Mapping[str, Tensor]
ALL = "all"


def join(named: Named, names: list[str]) -> dict[str, Tensor]:
    """Tensors by name -> {ALL: [n]}, in the order of `names`."""
    return {ALL: torch.cat([named[name].reshape(-1) for name in names])}


def split(joined: Named, like: Named) -> dict[str, Tensor]:
    """The inverse of `join`: views shaped as the tensors of `like`, in their order."""
    pieces = joined[ALL].split([value.numel() for value in like.values()])
    return {name: piece.view(like[name].shape) for name, piece in zip(like, pieces, strict=True)}


def map_state(state: Mapping[str, Any], function: Callable[[Named], Named]) -> dict[str, Any]:
    """A rule's state with `function` on what it holds for each parameter."""
    return {
        name: function(value) if isinstance(value, Mapping) else value
        for name, value in state.items()
    }
