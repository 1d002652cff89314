"""Rules on one vector of all parameters on CUDA: few kernels instead of some for each of them.

For rules that treat every number alike (`UpdateRule.elementwise`), as those of rules.py do. The
state keeps its structure; what it holds for each parameter becomes a view of one vector. Captured
graphs do without most of the joining (executors/passes/rejoin.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn.tree import add, from_named, named_leaves
from metalearn.tree import mean_over_tasks as tree_mean
from metalearn.types import UpdateRule

Named = Mapping[str, Tensor]
ALL = "all"


def joins(named: Named) -> bool:
    """Return whether to flatten parameters into one vector: on CUDA, where launches dominate."""
    first = next(iter(named.values()), None)
    if first is None or not first.is_cuda or len(named) == 1:
        return False
    return all(value.is_cuda and value.dtype == first.dtype for value in named.values())


def apply_rule(
    rule: UpdateRule, grads: Named, state: Any, params: Named, loss: Tensor
) -> tuple[dict[str, Tensor], Any]:
    """(params + the rule's updates, its next state), parameters in their order."""
    together = rule.elementwise and joins(params) and joins(grads)
    like, names = params, list(params)
    if together:
        state = map_state(state, lambda value: join(value, names))
        params, grads = join(params, names), join(grads, names)
    updates, state = rule.update(grads, state, params, loss)
    moved: dict[str, Tensor] = add(params, updates)
    if together:
        state = map_state(state, lambda value: split(value, like))
        moved = split(moved, like)
    return moved, state


def mean_over_tasks(tree: Any) -> Any:
    """The mean of every leaf, [T, ...] -> [...]."""
    named = named_leaves(tree)
    if not joins(named):
        return tree_mean(tree)
    flat = torch.cat([value.reshape(value.shape[0], -1) for value in named.values()], 1)
    like = {name: value[0] for name, value in named.items()}
    return from_named(tree, split({ALL: flat.mean(0)}, like))


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
