"""Meta-gradients in float64 against plain loops, learn2learn and higher; every executor against
every other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import Network, by_autograd, by_engine, gap, learn2learn, query_loss, task
from torch import Tensor
from torch.nn import functional as F

from metalearn.algorithms import ANIL, MAML, MetaSGD, Reptile
from metalearn.executors.executor import make_step
from metalearn.inner.adapt import adapt
from metalearn.inner.method import make_step_over_tasks
from metalearn.inner.rules import sgd
from metalearn.models import MLP, Conv4
from metalearn.rng import fold_in, normal, permutation
from metalearn.tasks import Sinusoid
from metalearn.types import Batch, Episode, EpisodeSpec, Method, Params

F64 = torch.float64
TASKS, LR = 4, 0.05
EQUAL = 1e-10  # relative, over all leaves together
FAR = 0.2  # what first order and second order, or two methods, must differ by; seen: 0.42 to 1.0
SOURCE = Sinusoid(shots=5, queries=7, amplitude=(0.5, 2.0)).build(dtype=F64)
LEARNER = MLP(sizes=(16, 12)).build(SOURCE.spec)
EXECUTORS = [("vmap", 8), ("loop", 8), ("chunk", 1), ("chunk", 3)]


def squared(predictions: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(predictions, y)


def start() -> tuple[Params, Episode]:
    return LEARNER.init(fold_in(0, "init")), SOURCE.sample(fold_in(1, "episodes"), TASKS)


def forward(params: Params, x: Tensor) -> Tensor:
    """The perceptron in torch alone."""
    for place in range(2):
        x = torch.relu(
            F.linear(x, params[f"layers.{place}.weight"], params[f"layers.{place}.bias"])
        )
    return F.linear(x, params["head.weight"], params["head.bias"])


def meta_gradient(
    method: Method, meta: Any, episodes: Episode, executor: str = "vmap", chunk: int = 8
) -> Any:
    """The mean over tasks that an executor hands to the meta-update, caught on its way."""
    assert method.task_grad is not None

    def catch(state: Any, grads: Any) -> Any:
        return state._replace(meta=grads)

    caught = method._replace(
        update=catch, step=make_step_over_tasks(method.task_grad, catch, method.spec)
    )
    state = method.init(fold_in(0, "init"))._replace(meta=meta)
    return make_step(caught, executor, chunk)(state, episodes)[0].meta


@pytest.mark.parametrize("first_order", [False, True], ids=["maml", "fomaml"])
@pytest.mark.parametrize("steps", [1, 3])
def test_maml_equals_a_loop_learn2learn_and_higher(steps: int, first_order: bool) -> None:
    meta, episodes = start()
    method = MAML(inner_steps=steps, inner_lr=LR, first_order=first_order).build(
        LEARNER, SOURCE.spec
    )
    ours = meta_gradient(method, meta, episodes)
    assert gap(ours, by_autograd(forward, squared, meta, episodes, steps, LR, first_order)) < EQUAL
    assert (
        gap(ours, by_engine("learn2learn", squared, meta, episodes, steps, LR, first_order)) < EQUAL
    )
    assert gap(ours, by_engine("higher", squared, meta, episodes, steps, LR, first_order)) < EQUAL
    other = by_autograd(forward, squared, meta, episodes, steps, LR, not first_order)
    assert gap(ours, other) > FAR


@pytest.mark.parametrize(("executor", "chunk"), EXECUTORS[1:])
@pytest.mark.parametrize("first_order", [False, True], ids=["maml", "fomaml"])
def test_executors_agree_on_the_meta_gradient(executor: str, chunk: int, first_order: bool) -> None:
    meta, episodes = start()
    method = MAML(inner_steps=3, inner_lr=LR, first_order=first_order).build(LEARNER, SOURCE.spec)
    assert (
        gap(
            meta_gradient(method, meta, episodes, executor, chunk),
            meta_gradient(method, meta, episodes),
        )
        < EQUAL
    )


def test_the_mean_is_over_tasks() -> None:
    """The gradient of four tasks is the mean of those of each: sums and other
    weights would show."""
    meta, episodes = start()
    method = MAML(inner_steps=2, inner_lr=LR).build(LEARNER, SOURCE.spec)
    assert method.task_grad is not None
    each = [method.task_grad(meta, task(episodes, t))[0] for t in range(TASKS)]
    mean = {name: torch.stack([one[name] for one in each]).mean(0) for name in meta}
    for executor, chunk in EXECUTORS:
        assert gap(meta_gradient(method, meta, episodes, executor, chunk), mean) < EQUAL


def test_anil_equals_learn2learn_on_the_head_alone() -> None:
    """As in learn2learn's own example: features by the network, MAML on its last layer."""
    meta, episodes = start()
    ours = meta_gradient(
        ANIL(inner_steps=3, inner_lr=LR).build(LEARNER, SOURCE.spec), meta, episodes
    )
    network = Network(meta)
    head = learn2learn().algorithms.MAML(network.head, lr=LR)
    for t in range(TASKS):
        one, live = task(episodes, t), head.clone()
        for _ in range(3):
            live.adapt(squared(live(network.features(one.support.x)), one.support.y))
        (squared(live(network.features(one.query.x)), one.query.y) / TASKS).backward()
    assert gap(ours, network.grads()) < EQUAL
    whole = meta_gradient(
        MAML(inner_steps=3, inner_lr=LR).build(LEARNER, SOURCE.spec), meta, episodes
    )
    assert gap(ours, whole) > FAR


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_sgd_equals_learn2learn(steps: int) -> None:
    """Both halves: for the start and for the rates, which differ from parameter to parameter."""
    meta, episodes = start()
    rates = {
        name: LR * (1 + 0.5 * normal(fold_in(2, name), v.shape, F64)) for name, v in meta.items()
    }
    method = MetaSGD(inner_steps=steps).build(LEARNER, SOURCE.spec)
    ours = meta_gradient(method, {"params": meta, "rates": rates}, episodes)
    network = Network(meta)
    theirs = learn2learn().algorithms.MetaSGD(network, lr=LR)
    names = [name for name, _ in network.named_parameters()]
    with torch.no_grad():
        for name, rate in zip(names, theirs.lrs, strict=True):
            rate.data = rates[name].clone()
    for t in range(TASKS):
        one, live = task(episodes, t), theirs.clone()
        for _ in range(steps):
            live.adapt(squared(live(one.support.x), one.support.y))
        (squared(live(one.query.x), one.query.y) / TASKS).backward()
    assert gap(ours["params"], network.grads()) < EQUAL
    assert (
        gap(ours["rates"], dict(zip(names, [rate.grad for rate in theirs.lrs], strict=True)))
        < EQUAL
    )


@pytest.mark.parametrize(("executor", "chunk"), EXECUTORS)
def test_reptile_is_theta_minus_phi(executor: str, chunk: int) -> None:
    """phi by torch's own Adam with beta1 = 0, from theta, on the whole support set; the mean over
    tasks."""
    meta, episodes = start()
    method = Reptile(inner_steps=4, inner_lr=0.01, inner_batch=None).build(LEARNER, SOURCE.spec)
    ours = meta_gradient(method, meta, episodes, executor, chunk)
    total = {name: torch.zeros_like(value) for name, value in meta.items()}
    for t in range(TASKS):
        network, one = Network(meta), task(episodes, t)
        adam = torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.0, 0.999), eps=1e-8)
        for _ in range(4):
            adam.zero_grad()
            squared(network(one.support.x), one.support.y).backward()
            adam.step()
        phi = dict(network.named_parameters())
        total = {name: total[name] + (meta[name] - phi[name].detach()) / TASKS for name in meta}
    assert gap(ours, total) < EQUAL


# convolutions

IMAGES = EpisodeSpec("classification", 3, 2, 2, (1, 16, 16), 3, 20, dtype=F64)


def image_episodes() -> Episode:
    def batch(part: str, each: int) -> Batch:
        keys = fold_in(fold_in(4, part), torch.arange(TASKS))
        y = permutation(keys, 3 * each) % 3
        x = normal(keys, (3 * each, *IMAGES.x_shape), F64) + y.view(TASKS, -1, 1, 1, 1)
        return Batch(x, y)

    return Episode(batch("support", 2), batch("query", 2), {"key": fold_in(4, torch.arange(TASKS))})


def convolve(params: Params, x: Tensor, strided: bool) -> Tensor:
    """Four blocks and the head by torch's own batch normalisation and pooling."""
    for place in range(4):
        x = F.conv2d(
            x,
            params[f"convs.{place}.weight"],
            params[f"convs.{place}.bias"],
            stride=2 if strided else 1,
            padding=1,
        )
        x = F.batch_norm(
            x,
            None,
            None,
            params[f"norms.{place}.weight"],
            params[f"norms.{place}.bias"],
            training=True,
        )
        x = torch.relu(x)
        x = x if strided else F.max_pool2d(x, 2)
    return F.linear(x.mean((-2, -1)), params["head.weight"], params["head.bias"])


@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_conv4_equals_a_loop_in_torch_alone(downsample: Any) -> None:
    """Batch normalisation and pooling included; loop, vmap and chunks."""
    learner = Conv4(filters=8, downsample=downsample, norm="query_batch").build(IMAGES)
    meta, episodes = learner.init(fold_in(0, "init")), image_episodes()
    for place in range(4):  # gains and shifts that are not the 1 and 0 of the start
        for leaf, base in (("weight", 1.0), ("bias", 0.0)):
            name = f"norms.{place}.{leaf}"
            meta[name] = base + 0.2 * normal(fold_in(6, name), meta[name].shape, F64)
    method = MAML(inner_steps=2, inner_lr=0.1).build(learner, IMAGES)

    def hand(params: Params, x: Tensor) -> Tensor:
        return convolve(params, x, downsample == "stride")

    expected = by_autograd(hand, F.cross_entropy, meta, episodes, 2, 0.1)
    for executor, chunk in EXECUTORS:
        assert gap(meta_gradient(method, meta, episodes, executor, chunk), expected) < EQUAL
    assert (
        gap(by_autograd(hand, F.cross_entropy, meta, episodes, 2, 0.1, first_order=True), expected)
        > FAR
    )


#
# finite differences


def test_gradcheck_of_the_two_step_loss() -> None:
    """The query loss after two steps of `adapt`, by finite differences in every direction: slopes
    and their slopes."""
    learner = MLP(sizes=(4,), activation="tanh").build(SOURCE.spec)
    meta, one = learner.init(fold_in(0, "init")), task(SOURCE.sample(fold_in(1, "episodes"), 1), 0)
    names = list(meta)

    def loss(params: Params, batch: Batch, step: int) -> Tensor:
        return squared(learner.apply(params, batch.x), batch.y)

    def outer(*values: Tensor) -> Tensor:
        path = adapt(
            loss, dict(zip(names, values, strict=True)), sgd(LR), one.support, 2, keep=(2,)
        )
        return loss(path.points[-1], one.query, 2)

    leaves = tuple(value.clone().requires_grad_() for value in meta.values())
    assert torch.autograd.gradcheck(outer, leaves, atol=1e-7)
    assert torch.autograd.gradgradcheck(outer, leaves, atol=1e-6)

    def forward_by_hand(params: Params, x: Tensor) -> Tensor:
        z = torch.tanh(F.linear(x, params["layers.0.weight"], params["layers.0.bias"]))
        return F.linear(z, params["head.weight"], params["head.bias"])

    by_hand = query_loss(
        forward_by_hand, squared, dict(zip(names, leaves, strict=True)), one, 2, LR
    )
    torch.testing.assert_close(outer(*leaves), by_hand, rtol=1e-12, atol=0)
