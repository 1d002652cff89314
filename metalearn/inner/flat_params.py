"""Apply an update rule to parameters, on CUDA as one vector: few kernels instead of some for each.

One vector is for rules that treat every number in the same way (`UpdateRule.elementwise`), as
those of rules.py do. The state keeps its structure; what it holds for each parameter becomes a view
of one vector. Captured graphs skip most of the concatenations (executors/passes/rejoin.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn.tree import add, from_named, mean_over_tasks, named_leaves
from metalearn.types import UpdateRule

Named = Mapping[str, Tensor]
ALL = "all"


def should_flatten(named: Named) -> bool:
    """Return whether to flatten parameters into one vector: on CUDA, where launches dominate."""
    first = next(iter(named.values()), None)
    if first is None or not first.is_cuda or len(named) == 1:
        return False
    return all(value.is_cuda and value.dtype == first.dtype for value in named.values())


def apply_rule(
    rule: UpdateRule, grads: Named, state: Any, params: Named, loss: Tensor
) -> tuple[dict[str, Tensor], Any]:
    """(params + the updates of the rule, its next state); parameters keep their order."""
    flat = rule.elementwise and should_flatten(params) and should_flatten(grads)
    like, names = params, list(params)
    if flat:
        state = map_state(state, lambda value: flatten_params(value, names))
        params, grads = flatten_params(params, names), flatten_params(grads, names)
    updates, state = rule.update(grads, state, params, loss)
    new_params: dict[str, Tensor] = add(params, updates)
    if flat:
        state = map_state(state, lambda value: unflatten_params(value, like))
        new_params = unflatten_params(new_params, like)
    return new_params, state


def mean_grads(grads: Any) -> Any:
    """The mean over tasks of every leaf, [T, ...] -> [...]."""
    named = named_leaves(grads)
    if not should_flatten(named):
        return mean_over_tasks(grads)
    flat = torch.cat([value.reshape(value.shape[0], -1) for value in named.values()], 1)
    like = {name: value[0] for name, value in named.items()}
    return from_named(grads, unflatten_params({ALL: flat.mean(0)}, like))


def flatten_params(named: Named, names: list[str]) -> dict[str, Tensor]:
    """Tensors by name -> {ALL: [n]}, in the order of `names`."""
    return {ALL: torch.cat([named[name].reshape(-1) for name in names])}


def unflatten_params(flat: Named, like: Named) -> dict[str, Tensor]:
    """The inverse of `flatten_params`: views shaped as the tensors of `like`, in their order."""
    parts = flat[ALL].split([value.numel() for value in like.values()])
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}


def map_state(state: Mapping[str, Any], function: Callable[[Named], Named]) -> dict[str, Any]:
    """A rule's state with `function` on what it holds for each parameter."""
    return {
        name: function(value) if isinstance(value, Mapping) else value
        for name, value in state.items()
    }
