"""The only inner loop of the project."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from metalearn.tree import add, detach, trainable
from metalearn.types import Batch, Params, Path, UpdateRule

Loss = Callable[[Params, Batch, int], Tensor]  # -> []


def adapt(
    loss: Loss,
    params: Params,
    rule: UpdateRule,
    batch: Batch | Callable[[int], Batch],
    steps: int,
    *,
    state: Any = None,
    keep: Collection[int] | None = None,
    first_order: bool = False,
) -> Path:
    """Learn one task by `steps` steps of `rule`: phi_{s+1} = phi_s + rule(grad loss(phi_s, batch, s)).

    `batch` is the support set, or a function of the step that gives a minibatch. `keep` names the points to hold
    (default all S+1; 0 is the start). `first_order` treats every gradient as a constant for whoever differentiates
    through the path. Running statistics (names "stats.") are passed along unmoved.
    losses [S] are taken before each step.
    """
    if steps < 0:
        raise ValueError(f"steps: {steps} is negative")
    moving, frozen = trainable(params)
    state = rule.init(moving) if state is None else state
    points: list[Params] = []
    losses: list[Tensor] = []
    for step in range(steps + 1):
        if keep is None or step in keep:
            points.append({**moving, **frozen})
        if step == steps:
            break
        data = batch if isinstance(batch, Batch) else batch(step)
        grads, value = _gradient(loss, moving, frozen, data, step)
        updates, state = rule.update(detach(grads) if first_order else grads, state, moving, value)
        moving = add(moving, updates)
        losses.append(value)
    like = next(iter(params.values()))
    return Path(points, state, torch.stack(losses) if losses else like.new_zeros(0))


def _gradient(loss: Loss, moving: Params, frozen: Params, data: Batch, step: int) -> tuple[Params, Tensor]:
    def at(inner: Params) -> Tensor:
        return loss({**inner, **frozen}, data, step)

    return torch.func.grad_and_value(at)(moving)
