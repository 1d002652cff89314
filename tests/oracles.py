"""Other people's meta-gradients, and plain loops of `torch.autograd.grad`, to compare ours with.

learn2learn and higher are imported when a test asks for them; where they are missing it is skipped
with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import interop
from metalearn.errors import ConfigError
from metalearn.tree import tree_map
from metalearn.types import Episode, Params

Forward = Callable[[Params, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def learn2learn() -> Any:
    return _or_skip(interop.learn2learn)


def _or_skip(package: Callable[[], Any]) -> Any:
    try:
        return package()
    except ConfigError as error:
        pytest.skip(str(error))


class Network(nn.Module):
    """The perceptron once more, in torch alone, with the names of ours."""

    def __init__(self, params: Params, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        shapes = {name: value.shape for name, value in params.items() if name.endswith("weight")}
        body = [shape for name, shape in shapes.items() if name.startswith("layers.")]
        self.layers = nn.ModuleList(nn.Linear(shape[1], shape[0]) for shape in body)
        self.head = nn.Linear(shapes["head.weight"][1], shapes["head.weight"][0])
        self.activation = activation
        self.double().load_state_dict(params)

    def features(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out

    def grads(self) -> Params:
        """What `backward` left, by name."""
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in self.named_parameters()
        }


def task(episodes: Episode, index: int) -> Episode:
    one: Episode = tree_map(lambda leaf: leaf[index], episodes)
    return one


def query_loss(
    forward: Forward,
    loss: Loss,
    start: Params,
    episode: Episode,
    steps: int,
    lr: float,
    first_order: bool = False,
) -> Tensor:
    """The loss on the query set after written-out gradient steps that keep their graph."""
    now = dict(start)
    for _ in range(steps):
        value = loss(forward(now, episode.support.x), episode.support.y)
        grads = torch.autograd.grad(value, list(now.values()), create_graph=not first_order)
        now = {
            name: leaf - lr * grad for (name, leaf), grad in zip(now.items(), grads, strict=True)
        }
    return loss(forward(now, episode.query.x), episode.query.y)


def by_autograd(
    forward: Forward,
    loss: Loss,
    meta: Params,
    episodes: Episode,
    steps: int,
    lr: float,
    first_order: bool = False,
) -> Params:
    """The mean over tasks of the gradient of `query_loss`."""
    start = {name: value.clone().requires_grad_() for name, value in meta.items()}
    tasks = episodes.support.x.shape[0]
    total = torch.stack(
        [
            query_loss(forward, loss, start, task(episodes, t), steps, lr, first_order)
            for t in range(tasks)
        ]
    ).mean()
    return dict(zip(start, torch.autograd.grad(total, list(start.values())), strict=True))


def by_engine(
    engine: str,
    loss: Loss,
    meta: Params,
    episodes: Episode,
    steps: int,
    lr: float,
    first_order: bool = False,
) -> Params:
    """The mean over tasks of the gradient that learn2learn or higher leaves on a torch module."""
    _or_skip(interop.PACKAGES[engine])
    network = Network(meta)
    adapt = interop.INNER_LOOPS[engine](network, loss, lr=lr, steps=steps, first_order=first_order)
    tasks = episodes.support.x.shape[0]
    for t in range(tasks):
        one = task(episodes, t)
        adapted = adapt(one.support.x, one.support.y)
        adapted.backward(loss(adapted.network(one.query.x), one.query.y) / tasks)
    return network.grads()


def gap(a: Params, b: Params) -> float:
    """|a - b| / |b| over all leaves, which must have the same names."""
    assert a.keys() == b.keys()
    far = torch.stack([(a[name] - b[name]).square().sum() for name in b]).sum().sqrt()
    return float(far / torch.stack([b[name].square().sum() for name in b]).sum().sqrt())
