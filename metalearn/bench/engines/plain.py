"""The models in plain torch, with our names, and the reference gradient of all engines."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metalearn.bench.engines.plain_resnet import TwelveLayers
from metalearn.bench.problem import Problem
from metalearn.bench.workloads import Workload
from metalearn.types import Episode, Params


class Perceptron(nn.Module):
    """1-40-40-1 with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(1, 40), nn.Linear(40, 40)))
        self.head = nn.Linear(40, 1)

    def features(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


class FourBlocks(nn.Module):
    """Conv4 of torch's own layers.

    Convolution, batch norm with the current batch, ReLU, 2 x 2 max-pooling or strides."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        strided, filters = work.downsample == "stride", work.filters
        widths = (work.x_shape[0], *[filters] * 4)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2 if strided else 1, padding=1)
            for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(filters, track_running_stats=False) if work.norm else nn.Identity()
            for _ in range(4)
        )
        side = work.x_shape[1]
        for _ in range(4):
            side = (side + 1) // 2 if strided else side // 2
        self.pool = nn.Identity() if strided else nn.MaxPool2d(2)
        self.flatten = work.flatten
        self.head = nn.Linear(filters * side * side if work.flatten else filters, work.outputs)

    def features(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = self.pool(F.relu(norm(conv(x))))
        return x.flatten(1) if self.flatten else x.mean((-2, -1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


def module(problem: Problem) -> nn.Module:
    """Return the workload's model in plain torch with the problem's initial parameters."""
    work = problem.workload
    model: nn.Module = Perceptron() if work.model == "mlp" else FourBlocks(work)
    model = TwelveLayers(work) if work.model == "resnet12" else model
    model.load_state_dict(problem.start)
    model.to(problem.device)
    return model


def criterion(work: Workload, predictions: Tensor, y: Tensor) -> Tensor:
    """Return mean squared error or mean cross-entropy: [B, C], [B] or [B, C] -> []."""
    loss: Tensor = (
        F.mse_loss(predictions, y) if work.regression else F.cross_entropy(predictions, y)
    )
    return loss


def each_task(episodes: Episode) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Iterate over tasks: support x, support y, query x, query y."""
    return zip(episodes.support.x, episodes.support.y, episodes.query.x, episodes.query.y)


def prototype_logits(
    model: nn.Module, params: Params, sx: Tensor, sy: Tensor, qx: Tensor, ways: int
) -> Tensor:
    """Return -|f(q) - mean of f(s) of a class|^2: [M, N].

    Support and query are separate batches."""
    body = _Body(model)
    body_params = {f"model.{name}": value for name, value in params.items()}
    z, q = functional_call(body, body_params, (sx,)), functional_call(body, body_params, (qx,))
    centres = torch.stack([z[sy == way].mean(0) for way in range(ways)])
    logits: Tensor = -(q.unsqueeze(1) - centres).square().sum(-1)
    return logits


class _Body(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model.features(x)  # type: ignore[operator]
        return out


def reference(problem: Problem, episodes: Episode) -> Params:
    """Return the meta-gradient in float64, mean over T.

    It runs torch.autograd.grad on plain layers, one task after another."""
    work = problem.workload
    model = module(problem).double()
    start = {
        name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()
    }
    total = {name: torch.zeros_like(value) for name, value in start.items()}
    for task in each_task(episodes):
        sx, sy, qx, qy = (part.double() if part.is_floating_point() else part for part in task)
        params = dict(start)
        for _ in range(work.inner_steps):
            loss = criterion(work, functional_call(model, params, (sx,)), sy)
            trainable = [
                name for name in params if work.family != "anil" or name.startswith("head.")
            ]
            grads = torch.autograd.grad(
                loss, [params[name] for name in trainable], create_graph=not work.first_order
            )
            for name, grad in zip(trainable, grads):
                params[name] = params[name] - work.inner_lr * grad
        if work.family == "proto_net":
            predictions = prototype_logits(model, params, sx, sy, qx, work.ways)
        else:
            predictions = functional_call(model, params, (qx,))
        grads = torch.autograd.grad(
            criterion(work, predictions, qy), list(start.values()), allow_unused=True
        )
        for name, grad in zip(start, grads):
            total[name] += 0 if grad is None else grad
    return {name: value / work.tasks for name, value in total.items()}
