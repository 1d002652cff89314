"""T-nets: transformations that the inner loop leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import F64, gap
from torch import Tensor, nn

from metalearn.algorithms import IMAML, MAML, HessianFreeIMAML, TNet
from metalearn.inner.adapt import support_loss
from metalearn.inner.rules import SGD
from metalearn.models import MLP
from metalearn.models.external.from_module import from_module
from metalearn.rng import fold_in, normal
from metalearn.testing.clusters import Clusters
from metalearn.tree import take


def one_task() -> Any:
    source = Clusters("train", 24)
    learner = MLP(sizes=(8,), activation="tanh").build(source.spec)
    return source, learner, take(source.sample(fold_in(1), 1), 0)


@pytest.mark.parametrize("steps", [1, 3])
def test_t_nets_begin_as_maml_and_learn_their_transformations(steps: int) -> None:
    """Two steps by hand: W moves by T' dL/d(T W), which T scales; T stays in the inner loop."""
    source, learner, episode = one_task()
    options: Any = {"inner_steps": steps, "inner_lr": 0.2, "outer": SGD(lr=0.1)}
    net, plain = (part(**options).build(learner, source.spec) for part in (TNet, MAML))
    meta = net.init(fold_in(0)).meta
    params = plain.init(fold_in(0)).meta
    assert net.adapt is not None and plain.adapt is not None and net.task_grad is not None
    for at in (0, steps):
        found = net.adapt(meta, episode.support, at, fold_in(2))
        assert gap(found, plain.adapt(params, episode.support, at, fold_in(2))) < 1e-12
    turned = {
        name: x + 0.3 * normal(fold_in(3, name), x.shape, F64)
        for name, x in meta["transforms"].items()
    }
    loss, w = support_loss(learner, source.spec), dict(params)
    for _ in range(steps):
        whole = {n: turned[n] @ x if n in turned else x for n, x in w.items()}
        grads = torch.func.grad(lambda at: loss(at, episode.support, 0))(whole)
        w = {
            name: x - 0.2 * (turned[name].T @ grads[name] if name in turned else grads[name])
            for name, x in w.items()
        }
    expected = {n: turned[n] @ x if n in turned else x for n, x in w.items()}
    found = net.adapt({**meta, "transforms": turned}, episode.support, steps, fold_in(2))
    assert gap(found, expected) < 1e-10
    grads, _ = net.task_grad(meta, episode)
    assert all((x != 0).any() for x in grads["transforms"].values())


def test_linear_layers_and_convolutions_alone_have_transformations() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(3, 6))
            self.conv, self.back = nn.Conv1d(1, 3, 1), nn.ConvTranspose1d(3, 2, 1)
            self.last = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.back((self.conv(x.unsqueeze(1)) + self.place).tanh())
            out: Tensor = self.last(z.flatten(1))
            return out

    source = Clusters("train", 24)
    learner = from_module(Net, source.spec)
    meta = TNet().build(learner, source.spec).init(fold_in(0)).meta
    sizes = {name: tuple(x.shape) for name, x in meta["transforms"].items()}
    assert sizes == {"conv.weight": (3, 3), "head.weight": (3, 3)}


class Names(nn.Module):
    """Layers with the names that methods once had for parts of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.transform, self.start = nn.Linear(6, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.start(torch.tanh(self.transform(x)))))


@pytest.mark.parametrize("component", [TNet(), IMAML(), HessianFreeIMAML()])
def test_any_name_of_a_layer_is_a_layer(component: Any) -> None:
    source = Clusters("train", 24)
    method = component.build(from_module(Names().double(), source.spec), source.spec)
    episode = take(source.sample(fold_in(1), 1), 0)
    grads, _ = method.task_grad(method.init(fold_in(0)).meta, episode)
    leaves = grads.get("params", grads)
    assert {"transform.weight", "start.weight", "head.weight"} <= set(leaves)
    assert all((leaves[f"{name}.weight"] != 0).any() for name in ("transform", "start"))
