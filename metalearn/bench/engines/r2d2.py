"""R2-D2 as a workload, and the same in plain torch, one task after another.

None of the peers has a ridge regression head (learn2learn's MetaOptNet solves a support vector
machine), so that plain torch is what one would write with any of them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.algorithms import R2D2
from metalearn.bench.engines.engine import Engine, copy_grad
from metalearn.bench.engines.plain import FourBlocks, criterion, each_task
from metalearn.bench.engines.torch_loop import make_engine
from metalearn.bench.problem import Problem
from metalearn.rng import fold_in
from metalearn.tree import named_leaves
from metalearn.types import Episode, Method, Params


class R2D2Problem(Problem):
    """The workload r2d2_5w1s."""

    @cached_property
    def method(self) -> Method:
        return R2D2().build(self.learner, self.source.spec)

    @cached_property
    def start(self) -> Params:
        """The initial meta-parameters of every engine, with dotted names."""
        return named_leaves(self.method.init(fold_in(0, "bench", "init")).meta)


class Ridge(nn.Module):
    """Features, the logarithm of the ridge and the scale, named as in our meta."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.params = FourBlocks(problem.workload)
        self.log_ridge, self.scale = (nn.Parameter(torch.zeros(())) for _ in range(2))
        self.load_state_dict(problem.start)

    def forward(self, sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
        """Return logits [M, N] of the queries (equations 6 and 7)."""
        z, q = self.params.features(sx), self.params.features(qx)
        y = F.one_hot(sy, self.params.head.out_features).to(z.dtype)
        ridge = self.log_ridge.exp() * torch.eye(len(z), dtype=z.dtype, device=z.device)
        logits: Tensor = self.scale * q @ (z.T @ torch.linalg.solve(z @ z.T + ridge, y))
        return logits


def add_gradients(problem: Problem, network: Ridge, episodes: Episode) -> None:
    """Add the gradient of the mean query loss over the tasks to .grad."""
    for sx, sy, qx, qy in each_task(episodes):
        sx, qx = (x.to(network.scale.dtype) for x in (sx, qx))
        loss = criterion(problem.workload, network(sx, sy, qx), qy)
        (loss / problem.workload.tasks).backward()


def reference(problem: Problem, episodes: Episode) -> Params:
    """Return the meta-gradient in float64."""
    network = Ridge(problem).double()
    add_gradients(problem, network, episodes)
    return {name: copy_grad(value) for name, value in network.named_parameters()}


def engine(problem: Problem) -> Engine:
    """Return plain torch: autograd and torch's Adam."""
    network = Ridge(problem).to(problem.device)
    return make_engine(
        problem, network, lambda episodes: add_gradients(problem, network, episodes), "autograd"
    )
