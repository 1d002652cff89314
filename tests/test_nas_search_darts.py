"""Differentiable search, one-shot search and proxies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nas_tasks import F64, image_spec
from test_nas_search import data_of

from metalearn.inner.adapt import adapt
from metalearn.inner.rules import sgd
from metalearn.losses import cross_entropy
from metalearn.nas import DARTS, Conv4Micro, MLPReg, OneShot, Proxy
from metalearn.nas.searchers.darts import arch_loss, start_arch
from metalearn.nas.searchers.one_shot import _steps
from metalearn.nas.searchers.proxies import grad_norm, jacob_cov, snip
from metalearn.nas.spaces.space import Space, embed, extract_subnet, insert_subnet, softmax_masks
from metalearn.rng import fold_in, normal
from metalearn.tree import vmap
from metalearn.types import Batch, EpisodeSpec

# DARTS


def darts_case() -> tuple[Space, Any, Any, Batch, Batch]:
    spec = EpisodeSpec("classification", 3, 2, 2, (4,), 3, 0, dtype=F64)
    space = MLPReg().build(spec, "none")
    arch = {name: 300 * value for name, value in start_arch(space, fold_in(0)).items()}
    weights = space.supernet.init(fold_in(1))
    x = normal(fold_in(2), (12, 4), F64)
    y = torch.arange(12) % 3
    return space, arch, weights, Batch(x[:6], y[:6]), Batch(x[6:], y[6:])


def unrolled(
    space: Space, arch: Any, weights: Any, train: Batch, held: Batch, lr: float
) -> torch.Tensor:
    """L_held(w - lr * grad L_train(w, a), a) written out with autograd."""
    masks = softmax_masks(arch)
    names = list(weights)
    leaves = {name: weights[name].detach().requires_grad_() for name in names}
    loss = cross_entropy(space.supernet.apply({**leaves, **masks}, train.x), train.y)
    grads = torch.autograd.grad(loss, [leaves[name] for name in names], create_graph=True)
    moved = {name: leaves[name] - lr * grad for name, grad in zip(names, grads)}
    return cross_entropy(space.supernet.apply({**moved, **masks}, held.x), held.y)


def test_the_second_order_slope_of_darts_is_exact() -> None:
    """Against the written-out gradient to 1e-9, and central differences of the unrolled loss."""
    space, arch, weights, train, held = darts_case()
    lr = 0.3
    mine = torch.func.grad(arch_loss(space, lr, first_order=False))(arch, weights, train, held)
    first = torch.func.grad(arch_loss(space, lr, first_order=True))(arch, weights, train, held)
    leaves = {name: value.clone().requires_grad_() for name, value in arch.items()}
    loss = unrolled(space, leaves, weights, train, held, lr)
    wanted = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)
    difference = max(float((mine[name] - first[name]).abs().max()) for name in mine)
    assert difference > 1e-3  # the term that first order leaves out is there
    for name in ("activation", "width"):
        for place in range(2):
            nudge = torch.zeros_like(arch[name])
            nudge[place] = 1e-5
            high, low = (
                unrolled(space, {**arch, name: arch[name] + sign * nudge}, weights, train, held, lr)
                for sign in (1, -1)
            )
            assert float(mine[name][place]) == pytest.approx(
                float((high - low).detach()) / 2e-5, rel=1e-5, abs=1e-9
            )


def test_first_order_darts_is_the_slope_at_the_weights_as_they_are() -> None:
    space, arch, weights, train, held = darts_case()
    mine = torch.func.grad(arch_loss(space, 0.3, first_order=True))(arch, weights, train, held)
    leaves = {name: value.clone().requires_grad_() for name, value in arch.items()}
    loss = cross_entropy(space.supernet.apply({**weights, **softmax_masks(leaves)}, held.x), held.y)
    wanted = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("first_order", [False, True])
def test_darts_goes_downhill_in_the_held_out_loss(first_order: bool) -> None:
    spec = image_spec(2)
    space, data = Conv4Micro(filters=2).build(spec, "query_batch"), data_of(spec, 3)
    searcher = DARTS(steps=12, arch_lr=0.2, lr=0.1, first_order=first_order)
    step = searcher._step(space)
    train, held, keys = data.folds
    arch, weights = start_arch(space, fold_in(1)), vmap(space.supernet.init)(keys)
    state, measure = (
        searcher._rule().init(arch),
        vmap(arch_loss(space, 0.1, True), in_dims=(None, 0, 0, 0)),
    )
    before = measure(arch, weights, train, held).mean()
    start = {name: value.clone() for name, value in arch.items()}
    for _ in range(12):
        arch, state, weights = step(arch, state, weights, train, held)
    assert measure(arch, weights, train, held).mean() < before - 0.02
    assert measure(arch, weights, train, held).mean() < measure(start, weights, train, held).mean()


# one-shot and proxies


def test_a_single_path_moves_only_its_own_weights() -> None:
    """The step of one path is that of its own network, and of the supernet under its masks."""
    spec = image_spec(2)
    space, data = Conv4Micro(filters=2).build(spec, "query_batch"), data_of(spec)
    train = data.folds.train
    shared = vmap(space.supernet.init)(data.folds.keys)
    path = (2, 3, 4)
    assert space.canonical(path) == path
    part = extract_subnet(space, path, shared)
    moved = _steps(space, 0.5)[0](path)(part, train)
    after = insert_subnet(shared, moved)
    changed = {name for name in shared if not torch.equal(after[name], shared[name])}
    assert changed and all(
        name.startswith(("stem", "head")) or ".0-1.conv1." in name or ".0-2.conv3." in name
        for name in changed
    )
    whole = embed(space, path, part)

    def loss(params: Any, batch: Batch, step: int) -> torch.Tensor:
        return cross_entropy(space.supernet.apply(params, batch.x), batch.y)

    wanted = vmap(lambda p, t: adapt(loss, p, sgd(0.5), t, 1, keep=(1,)).points[0])(whole, train)
    torch.testing.assert_close(extract_subnet(space, path, wanted), moved, rtol=1e-9, atol=1e-11)


def test_one_shot_ranks_its_pool_by_the_shared_weights() -> None:
    """The asked are as many as `keep` says; all of the pool where it keeps all."""
    spec = image_spec(2)
    space, data = Conv4Micro(filters=2).build(spec, "query_batch"), data_of(spec)
    asks = [
        next(OneShot(steps=4, pool=6, keep=keep).build(space)(fold_in(0), 16, data)).genotypes
        for keep in (1, 6)
    ]
    assert asks[0] == asks[1][:1] and len(set(asks[1])) == 6


def test_parameters_and_flops_rank_by_cost() -> None:
    spec = image_spec(2)
    space = Conv4Micro(filters=2).build(spec, "query_batch")
    for measure in ("params", "flops"):
        ask = next(Proxy(measure=measure, pool=20, keep=20).build(space)(fold_in(0), 100, None))
        costs = [getattr(space.cost(genotype), measure) for genotype in ask.genotypes]
        assert costs == sorted(costs, reverse=True) and len(costs) == 20


def test_proxies_on_data_are_those_written_out() -> None:
    spec = EpisodeSpec("classification", 3, 2, 2, (4,), 3, 0, dtype=F64)
    space = MLPReg().build(spec, "none")
    learner = space.learner(space.default)
    params = learner.init(fold_in(1))
    batch = Batch(normal(fold_in(2), (6, 4), F64), torch.arange(6) % 3)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    loss = cross_entropy(learner.apply(leaves, batch.x), batch.y)
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    norm = sum(float(grad.square().sum()) for grad in grads.values()) ** 0.5
    assert float(grad_norm(learner, cross_entropy, params, batch)) == pytest.approx(norm, rel=1e-12)
    total = sum(float((grads[name] * params[name]).abs().sum()) for name in params)
    assert float(snip(learner, cross_entropy, params, batch)) == pytest.approx(total, rel=1e-12)
    slopes = torch.autograd.functional.jacobian(lambda x: learner.apply(params, x).sum(-1), batch.x)
    rows = np.stack([slopes[number, number].numpy() for number in range(6)])
    values = np.linalg.eigvalsh(np.corrcoef(rows)) + 1e-5
    wanted = -(np.log(values) + 1 / values).sum()
    assert float(jacob_cov(learner, cross_entropy, params, batch)) == pytest.approx(
        wanted, rel=1e-4
    )


@pytest.mark.parametrize("measure", ["grad_norm", "snip", "jacob_cov"])
def test_proxies_on_data_choose_by_their_number(measure: Any) -> None:
    spec = image_spec(2)
    space, data = Conv4Micro(filters=2).build(spec, "query_batch"), data_of(spec)
    proxy = Proxy(measure=measure, pool=5, keep=5)
    ask = next(proxy.build(space)(fold_in(0), 8, data))
    values = [proxy.value(space, genotype, data) for genotype in ask.genotypes]
    assert values == sorted(values, reverse=True) and len(set(values)) > 2
