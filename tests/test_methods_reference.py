"""Methods against an independent computation: scikit-learn, dense solves, losses by hand."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from clusters import Clusters
from small import pictures
from torch import nn
from torch.nn import functional as F

from metalearn.algorithms import (
    ALFA,
    IMAML,
    MAML,
    PMF,
    HessianFreeIMAML,
    MAMLPlusPlus,
    MetaBaseline,
    MetaOptNet,
    ProtoNet,
    RelationNet,
)
from metalearn.algorithms.gradient.implicit import conjugate_gradients
from metalearn.algorithms.gradient.maml_plus_plus import importance
from metalearn.algorithms.metric.metaopt_net import smoothed_cross_entropy
from metalearn.augment import augment
from metalearn.inner.adapt import support_loss
from metalearn.inner.heads import unit
from metalearn.models import MLP, Conv4, ResNet12, from_module
from metalearn.rng import fold_in, normal
from metalearn.transfer import KNN, RFS, LogisticRegression, SimpleShot
from metalearn.tree import take
from metalearn.types import Episode, EpisodeSpec, Learner, Method

F64 = torch.float64
KEY = fold_in(0, "reference")


def classes(norm: str = "none", shots: int = 2) -> tuple[Any, Learner]:
    source = Clusters("train", 24)
    source.spec = replace(source.spec, shots=shots)
    return source, MLP(sizes=(8, 7), activation="tanh", norm=norm).build(source.spec)


def answer(method: Method, meta: Any, episode: Episode, step: int = 0) -> torch.Tensor:
    assert method.adapt is not None and method.predict is not None
    item = method.adapt(meta, episode.support, step, KEY)
    return method.predict(meta, item, episode.support, episode.query.x)


def one_episode(source: Any) -> Episode:
    return take(source.sample(KEY, 1), 0)  # type: ignore[no-any-return]


def features(learner: Learner, meta: Any, episode: Episode) -> tuple[torch.Tensor, torch.Tensor]:
    z, new = (learner.features(meta["params"], b.x) for b in (episode.support, episode.query))
    return z, new


# frozen features


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])
def test_logistic_regression_is_that_of_scikit_learn(normalise: bool, strength: float) -> None:
    from sklearn.linear_model import LogisticRegression as Reference

    source, learner = classes(shots=4)
    episode = one_episode(source)
    method = LogisticRegression(strength=strength, normalise=normalise)
    built = method.build(learner, source.spec)
    meta = built.init(KEY).meta
    z, new = features(learner, meta, episode)
    if normalise:
        z, new = unit(z), unit(new)
    reference = Reference(C=strength, tol=1e-12, max_iter=10_000).fit(z, episode.support.y)
    found = answer(built, meta, episode).softmax(-1)
    np.testing.assert_allclose(found, reference.predict_proba(new), atol=1e-6)


def test_rfs_solves_on_changed_copies() -> None:
    source = pictures()
    learner = Conv4(filters=4, downsample="pool").build(source.spec)
    episode = one_episode(source)
    method = RFS(copies=3).build(learner, source.spec)
    plain = LogisticRegression().build(learner, source.spec)
    meta, places = method.init(KEY).meta, torch.arange(len(episode.support.y))
    changes = ("crop", "flip", "colour")
    copies = [augment(episode.support.x, fold_in(KEY, n, places), changes) for n in range(3)]
    many = episode.support._replace(x=torch.cat(copies), y=episode.support.y.repeat(3))
    expected = answer(plain, meta, episode._replace(support=many))
    torch.testing.assert_close(answer(method, meta, episode), expected)
    source, learner = classes()
    method, plain = (kind.build(learner, source.spec) for kind in (RFS(), LogisticRegression()))
    meta, episode = plain.init(KEY).meta, one_episode(source)
    assert torch.equal(answer(method, meta, episode), answer(plain, meta, episode))


def test_nearest_neighbours_vote_by_their_distance() -> None:
    source, learner = classes(shots=4)
    episode = one_episode(source)
    meta = KNN().build(learner, source.spec).init(KEY).meta
    z, new = map(unit, features(learner, meta, episode))
    distance = torch.cdist(new, z).square()
    one = answer(KNN().build(learner, source.spec), meta, episode)
    assert torch.equal(one.argmax(-1), episode.support.y[distance.argmin(-1)])
    found = answer(KNN(neighbours=3, temperature=0.5).build(learner, source.spec), meta, episode)
    near = distance.topk(3, largest=False)
    votes = (-near.values / 0.5).softmax(-1).unsqueeze(-1)
    expected = (votes * F.one_hot(episode.support.y[near.indices], source.spec.ways)).sum(-2)
    torch.testing.assert_close(found.exp(), expected, atol=1e-8, rtol=1e-6)
    assert found.min() == -30  # a class without a vote
    every = answer(KNN(neighbours=99).build(learner, source.spec), meta, episode)
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(len(every), dtype=F64))


def test_simple_shot_centres_by_the_mean_of_training_features() -> None:
    source, learner = classes()
    method = SimpleShot(momentum=0.5).build(learner, source.spec)
    state, mean = method.init(KEY), torch.zeros(7, dtype=F64)
    assert method.step is not None
    for number in range(3):
        batch = source.examples(fold_in(KEY, number), 16)
        mean = 0.5 * mean + 0.5 * learner.features(state.meta["params"], batch.x).mean(0)
        state, _ = method.step(state, batch)
    torch.testing.assert_close(state.meta["centre"]["stats.mean"], mean)
    episode = one_episode(source)
    z, new = (unit(x - mean) for x in features(learner, state.meta, episode))
    centres = torch.stack([z[episode.support.y == n].mean(0) for n in range(source.spec.ways)])
    expected = -torch.cdist(new, centres).square()
    torch.testing.assert_close(answer(method, state.meta, episode), expected)


# gradients of the inner loop


def test_maml_plus_plus_at_one_rate_and_the_last_loss_is_maml() -> None:
    source, learner = classes()
    episodes = source.sample(KEY, 3)
    plain = MAML(inner_steps=3, inner_lr=0.1)
    for first in (False, True):
        options = {"multi_steps": 0, "first_order_steps": 5 if first else 0}
        method = MAMLPlusPlus(inner_steps=3, inner_lr=0.1, **options).build(learner, source.spec)
        maml = plain.model_copy(update={"first_order": first}).build(learner, source.spec)
        meta = method.init(KEY).meta
        given = take(episodes, 0)
        given = given._replace(info={**given.info, "step": torch.zeros((), dtype=F64)})
        assert method.task_grad is not None and maml.task_grad is not None
        grads, _ = method.task_grad(meta, given)
        expected, _ = maml.task_grad(meta["params"], given)
        torch.testing.assert_close(grads["params"], expected)
    found = method.learn(meta, episodes.support, episodes.query.x, (0, 1, 3))
    other = maml.learn(meta["params"], episodes.support, episodes.query.x, (0, 1, 3))
    torch.testing.assert_close(found.predictions, other.predictions)


def test_the_multi_step_loss_is_the_weighted_sum_of_every_step() -> None:
    source, learner = classes()
    episode = one_episode(source)
    given = episode._replace(info={**episode.info, "step": torch.tensor(5.0, dtype=F64)})
    method = MAMLPlusPlus(inner_steps=3, inner_lr=0.2, multi_steps=20).build(learner, source.spec)
    meta = method.init(KEY).meta
    assert method.adapt is not None and method.predict is not None and method.task_grad is not None

    def loss(meta: Any) -> torch.Tensor:
        total = torch.zeros((), dtype=F64)
        for step, weight in ((1, 0.25), (2, 0.25), (3, 0.5)):  # 1/3 (1 - 5/20), and the rest
            item = method.adapt(meta, given.support, step, KEY)  # type: ignore[misc]
            logits = method.predict(meta, item, given.support, given.query.x)  # type: ignore[misc]
            total = total + weight * F.cross_entropy(logits, given.query.y)
        return total

    expected = torch.func.grad(loss)(meta)
    torch.testing.assert_close(method.task_grad(meta, given)[0], expected)


def test_weights_of_the_multi_step_loss_are_the_schedule_of_the_authors() -> None:
    for step, expected in (
        (0, [0.2] * 5),
        (50, [0.1] * 4 + [0.6]),
        (99, [0.006] * 4 + [0.976]),
        (100, [0, 0, 0, 0, 1.0]),
    ):
        found = importance(torch.tensor(float(step), dtype=F64), 5, 100)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def test_maml_plus_plus_has_a_gain_and_a_shift_for_each_step() -> None:
    source, learner = classes(norm="query_batch")
    method = MAMLPlusPlus(inner_steps=2, inner_lr=0.1).build(learner, source.spec)
    meta, episode = method.init(KEY).meta, one_episode(source)
    assert meta["params"]["norms.0.weight"].shape == (2, 8)
    assert not any(name.startswith("norms.") for name in meta["rates"])
    before = [answer(method, meta, episode, step) for step in (1, 2, 3)]
    meta["params"]["norms.1.weight"] = meta["params"]["norms.1.weight"].clone()
    meta["params"]["norms.1.weight"][1] *= 2
    after = [answer(method, meta, episode, step) for step in (1, 2, 3)]
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, False, False]


def test_maml_plus_plus_has_those_of_every_network_and_leaves_running_statistics() -> None:
    spec = EpisodeSpec("classification", 3, 1, 2, (3, 16, 16), 3, 8, dtype=F64)
    for model in (ResNet12(widths=(4, 5, 6, 7), norm="running"), Conv4(filters=4, norm="running")):
        meta = MAMLPlusPlus(inner_steps=2).build(model.build(spec), spec).init(KEY).meta
        gains = [n for n in meta["params"] if "norm" in n and n.endswith(("weight", "bias"))]
        assert gains and all(meta["params"][name].shape[0] == 2 for name in gains)
        assert not any("norm" in name for name in meta["rates"])
        means = [n for n in meta["params"] if n.startswith("stats.")]
        assert means and all(meta["params"][name].dim() == 1 for name in means)


def test_maml_plus_plus_knows_gains_by_the_kind_of_their_layer() -> None:
    spec = EpisodeSpec("classification", 3, 2, 2, (8,), 3, 8, dtype=F64)
    parts = {"norm": nn.Linear(8, 6), "middle": nn.BatchNorm1d(6), "out": nn.Linear(6, 3)}
    learner = from_module(nn.Sequential(OrderedDict(parts)), spec)
    meta = MAMLPlusPlus(inner_steps=2).build(learner, spec).init(KEY).meta
    assert set(meta["rates"]) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert meta["params"]["middle.weight"].shape == (2, 6)


@pytest.mark.parametrize("component", [IMAML, HessianFreeIMAML])
@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_the_implicit_gradient_is_that_of_a_linear_solve(damping: float, component: Any) -> None:
    """Against a dense Hessian: (I + H / lambda)^-1 times the gradient of the query loss."""
    source, learner = classes()
    episode = one_episode(source)
    options: Any = {"inner_steps": 4, "strength": 0.7, "damping": damping}
    options |= {"inner_lr": 0.2} if component is IMAML else {}
    method = component(cg_steps=100, **options).build(learner, source.spec)
    meta = method.init(KEY).meta
    assert method.adapt is not None and method.task_grad is not None
    phi = method.adapt(meta, episode.support, 4, KEY)
    names, shapes = list(phi), [phi[name].shape for name in phi]
    flat = torch.cat([phi[name].flatten() for name in names])
    inner = support_loss(learner, source.spec)

    def unflat(at: torch.Tensor) -> Any:
        parts = at.split([shape.numel() for shape in shapes])
        return {n: p.reshape(s) for n, p, s in zip(names, parts, shapes)}

    hessian = torch.func.hessian(lambda at: inner(unflat(at), episode.support, 0))(flat)
    grad = torch.func.grad(lambda at: inner(unflat(at), episode.query, 0))(flat)
    matrix = (1 + damping) * torch.eye(len(flat), dtype=F64) + hessian / 0.7
    expected = torch.linalg.solve(matrix, grad)
    found, _ = method.task_grad(meta, episode)
    torch.testing.assert_close(
        torch.cat([found[name].flatten() for name in names]), expected, atol=1e-8, rtol=1e-6
    )


def test_the_inner_loop_of_imaml_descends_the_penalised_loss() -> None:
    source, learner = classes()
    episode = one_episode(source)
    method = IMAML(inner_lr=0.1, strength=3.0).build(learner, source.spec)
    theta = method.init(KEY).meta
    phi, loss = dict(theta), support_loss(learner, source.spec)
    for _ in range(3):
        grads = torch.func.grad(loss)(phi, episode.support, 0)
        phi = {n: p - 0.1 * (grads[n] + 3.0 * (p - theta[n])) for n, p in phi.items()}
    assert method.adapt is not None
    torch.testing.assert_close(method.adapt(theta, episode.support, 3, KEY), phi)


def test_conjugate_gradients_solve_in_as_many_steps_as_unknowns() -> None:
    root = normal(fold_in(KEY, "root"), (6, 6), F64)
    matrix, b = root @ root.T + torch.eye(6, dtype=F64), normal(fold_in(KEY, "b"), (6,), F64)
    for steps in (6, 9):
        found = conjugate_gradients(lambda x: {"x": matrix @ x["x"]}, {"x": b}, steps)["x"]
        torch.testing.assert_close(found, torch.linalg.solve(matrix, b))


def test_alfa_without_its_network_is_maml() -> None:
    source, learner = classes()
    episodes = source.sample(KEY, 3)
    method = ALFA(inner_steps=2, inner_lr=0.1).build(learner, source.spec)
    maml = MAML(inner_steps=2, inner_lr=0.1).build(learner, source.spec)
    meta = method.init(KEY).meta
    zero = {n: x * (not n.startswith("last")) for n, x in meta["rule"].items()}
    plain = maml.learn(meta["params"], episodes.support, episodes.query.x, (0, 2)).predictions
    asked = (episodes.support, episodes.query.x, (0, 2))
    found = method.learn({**meta, "rule": zero}, *asked).predictions
    torch.testing.assert_close(found, plain)
    zero["last.bias"] = torch.cat([torch.full((6,), 1.0), torch.full((6,), -0.5)]).double()
    double, decayed = method.learn({**meta, "rule": zero}, *asked).predictions[:, 1], maml
    theta = {name: x.clone() for name, x in meta["params"].items()}
    loss, one = support_loss(learner, source.spec), take(episodes, 0)
    for _ in range(2):
        grads = torch.func.grad(loss)(theta, one.support, 0)
        theta = {n: 0.5 * p - 0.2 * grads[n] for n, p in theta.items()}
    assert decayed.predict is not None
    torch.testing.assert_close(double[0], learner.apply(theta, one.query.x))


# learned comparisons


def test_a_relation_network_reads_each_pair_side_by_side() -> None:
    source, learner = classes()
    episode = one_episode(source)
    method = RelationNet(hidden=5).build(learner, source.spec)
    meta = method.init(KEY).meta
    z, new = features(learner, meta, episode)
    g = meta["relation"]
    for m, n in ((0, 0), (3, 2)):
        centre = z[episode.support.y == n].mean(0)
        hidden = torch.relu(g["first.weight"] @ torch.cat([centre, new[m]]) + g["first.bias"])
        expected = (g["last.weight"] @ hidden)[0]
        torch.testing.assert_close(answer(method, meta, episode)[m, n], expected)


def test_metaopt_net_solves_ridge_regression_of_a_fixed_strength() -> None:
    from sklearn.linear_model import Ridge

    source, learner = classes()
    episode = one_episode(source)
    method = MetaOptNet(strength=0.6, scale=3.0).build(learner, source.spec)
    meta = method.init(KEY).meta
    z, new = features(learner, meta, episode)
    target = np.eye(source.spec.ways)[episode.support.y]
    fitted = Ridge(alpha=0.6, fit_intercept=False).fit(z.numpy(), target)
    np.testing.assert_allclose(answer(method, meta, episode), 3.0 * fitted.predict(new.numpy()))


def test_smoothed_labels_are_those_of_torch_at_another_share() -> None:
    logits, y = normal(fold_in(KEY, "logits"), (7, 4), F64), torch.arange(7) % 4
    expected = F.cross_entropy(logits, y, label_smoothing=0.3 * 4 / 3)
    torch.testing.assert_close(smoothed_cross_entropy(logits, y, None, 0.3), expected)


def test_meta_baseline_takes_cosines_with_class_means() -> None:
    source, learner = classes()
    episode = one_episode(source)
    method = MetaBaseline(scale=4.0).build(learner, source.spec)
    meta = method.init(KEY).meta
    z, new = features(learner, meta, episode)
    centres = torch.stack([z[episode.support.y == n].mean(0) for n in range(source.spec.ways)])
    expected = 4.0 * F.cosine_similarity(new[:, None], centres[None], -1)
    torch.testing.assert_close(answer(method, meta, episode), expected)


def test_pmf_begins_as_a_proto_net_and_descends_its_own_support_set() -> None:
    source, learner = classes()
    episode = one_episode(source)
    method = PMF(inner_lr=0.1).build(learner, source.spec)
    proto = ProtoNet().build(learner, source.spec)
    meta = method.init(KEY).meta
    params = meta["params"]
    torch.testing.assert_close(answer(method, meta, episode), answer(proto, params, episode))

    def loss(at: Any) -> torch.Tensor:
        z = learner.features(at, episode.support.x)
        centres = torch.stack([z[episode.support.y == n].mean(0) for n in range(source.spec.ways)])
        return F.cross_entropy(-torch.cdist(z, centres).square(), episode.support.y)

    grads = torch.func.grad(loss)(params)
    moved = {name: x - 0.1 * grads[name] for name, x in params.items()}
    found = answer(method, meta, episode, 1)
    torch.testing.assert_close(found, answer(proto, moved, episode), atol=1e-9, rtol=1e-7)
