"""The common part of torch peers: a module, Adam, and gradients in .grad."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from metalearn.bench.engines.engine import Engine, copy_grad
from metalearn.bench.problem import OUTER_LR, Problem, synchronise
from metalearn.types import Episode, Params


def make_engine(
    problem: Problem,
    model: nn.Module,
    backward: Callable[[Episode], None],
    form: str = "",
    fused: bool = False,
) -> Engine:
    """Return an engine of Adam and `backward`.

    `backward` adds the meta-gradient of a batch to the .grad of the model's parameters."""
    adam = torch.optim.Adam(model.parameters(), lr=OUTER_LR, fused=fused)
    number = 0

    def learn(episodes: Episode) -> None:
        adam.zero_grad()
        backward(episodes)
        adam.step()

    def step() -> None:
        nonlocal number
        number += 1
        learn(problem.draw(number))

    def gradient(episodes: Episode) -> Params:
        model.load_state_dict(problem.start)
        learn(episodes)
        return {name: copy_grad(value) for name, value in model.named_parameters()}

    return Engine(step, gradient, lambda: synchronise(problem.device), form)
