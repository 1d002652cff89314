"""Methods of transfer against loops by hand, closed forms, and small problems."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clusters import (
    OF_REGRESSION,
    PRETRAINED,
    STEPS,
    Clusters,
    after,
    make,
    predictions_of,
    scaling,
)
from torch import Tensor
from torch.nn import functional as F

from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learning_curve
from metalearn.inner.heads import fresh_linear
from metalearn.inner.rules import Adam
from metalearn.models.mlp import MLP
from metalearn.rng import fold_in
from metalearn.tasks.sinusoid import Sinusoid
from metalearn.transfer import TRANSFER, BaselinePlusPlus, FineTune, LinearProbe, NearestCentroid
from metalearn.tree import named_leaves, tree_map, zeros_like
from metalearn.types import Batch, EpisodeSpec


def by_hand(
    leaves: list[Tensor],
    forward: Any,
    support: Batch,
    lr: float,
    momentum: float,
    decay: float = 0.0,
) -> list[Any]:
    """torch's own SGD on copies of `leaves`; the leaves at STEPS."""
    moving = [leaf.clone().requires_grad_() for leaf in leaves]
    optimizer = torch.optim.SGD(moving, lr=lr, momentum=momentum, weight_decay=decay)
    points = []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            points.append([leaf.detach().clone() for leaf in moving])
        optimizer.zero_grad()
        loss = F.mse_loss if support.y.is_floating_point() else F.cross_entropy
        loss(forward(moving, support.x), support.y).backward()
        optimizer.step()
    return points


def perceptron(leaves: list[Tensor], x: Tensor) -> Tensor:
    """The network of `make`, written out: leaves in the order of PATH."""
    w0, b0, w1, b1, w, b = leaves
    return torch.tanh(torch.tanh(x @ w0.T + b0) @ w1.T + b1) @ w.T + b


PATH = [
    "layers.0.weight",
    "layers.0.bias",
    "layers.1.weight",
    "layers.1.bias",
    "head.weight",
    "head.bias",
]


# against loops written by hand


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fine_tune_moves_all_layers_as_torchs_own_sgd(momentum: float) -> None:
    source = Clusters("train", 9)
    method = make("fine_tune", source.spec, inner_lr=0.3, inner_momentum=momentum)
    meta = method.init(fold_in(0, "init")).meta
    episode, keys = source.sample(fold_in(1), 2), torch.stack([fold_in(5), fold_in(6)])
    ours = predictions_of(method, meta, episode, key=keys)
    for task in range(2):
        support, query = (Batch(b.x[task], b.y[task]) for b in episode[:2])
        start = {
            **meta["params"],
            **fresh_linear(keys[task], 3, torch.zeros(7, dtype=torch.float64)),
        }
        points = by_hand([start[name] for name in PATH], perceptron, support, 0.3, momentum)
        hand = torch.stack([perceptron(point, query.x) for point in points])
        torch.testing.assert_close(ours[task], hand, rtol=1e-10, atol=1e-10)


def test_scratch_moves_all_layers_as_torchs_own_sgd_from_the_learners_start() -> None:
    source = Clusters("train", 9)
    method = make("scratch", source.spec, inner_lr=0.3, inner_momentum=0.5)
    episode, keys = source.sample(fold_in(1), 1), fold_in(5).unsqueeze(0)
    start = MLP(sizes=(8, 7)).build(source.spec).init(keys[0])
    support, query = (Batch(b.x[0], b.y[0]) for b in episode[:2])
    points = by_hand([start[name] for name in PATH], perceptron, support, 0.3, 0.5)
    hand = torch.stack([perceptron(point, query.x) for point in points])
    torch.testing.assert_close(
        predictions_of(method, {}, episode, key=keys)[0], hand, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("normalise", [False, True])
def test_linear_probe_is_a_linear_layer_on_fixed_features(normalise: bool) -> None:
    source = Clusters("train", 9)
    method = LinearProbe(
        inner_lr=0.2, inner_momentum=0.9, weight_decay=0.1, normalise=normalise
    ).build(scaling(source.spec), source.spec)
    meta = tree_map(lambda x: 1.5 * x, method.init(fold_in(0, "init")).meta)
    episode, keys = source.sample(fold_in(1), 1), fold_in(5).unsqueeze(0)
    z, q = (1.5 * b.x[0] for b in episode[:2])
    if normalise:
        z, q = F.normalize(z, dim=-1), F.normalize(q, dim=-1)
    head = fresh_linear(keys[0], 3, z)
    points = by_hand(
        [*head.values()],
        lambda p, x: F.linear(x, *p),
        Batch(z, episode.support.y[0]),
        0.2,
        0.9,
        0.1,
    )
    hand = torch.stack([F.linear(q, *point) for point in points])
    torch.testing.assert_close(
        predictions_of(method, meta, episode, key=keys)[0], hand, rtol=1e-9, atol=1e-9
    )


def test_baseline_plus_plus_is_a_cosine_layer_on_fixed_features() -> None:
    source = Clusters("train", 9)
    method = BaselinePlusPlus(
        inner_lr=0.2, inner_momentum=0.5, weight_decay=0.1, temperature=4
    ).build(scaling(source.spec), source.spec)
    episode, keys = source.sample(fold_in(1), 1), fold_in(5).unsqueeze(0)
    weight = fresh_linear(keys[0], 3, episode.support.x)["head.weight"]

    def cosine(leaves: list[Tensor], x: Tensor) -> Tensor:
        return 4 * F.cosine_similarity(x.unsqueeze(1), leaves[0].unsqueeze(0), dim=-1)

    points = by_hand(
        [weight], cosine, Batch(episode.support.x[0], episode.support.y[0]), 0.2, 0.5, 0.1
    )
    hand = torch.stack([cosine(point, episode.query.x[0]) for point in points])
    ours = predictions_of(method, method.init(fold_in(0)).meta, episode, key=keys)[0]
    torch.testing.assert_close(ours, hand, rtol=1e-8, atol=1e-8)


def test_fine_tune_of_the_head_leaves_the_body_where_it_was() -> None:
    source = Clusters("train", 9)
    method = make("fine_tune", source.spec, inner_lr=0.3, adapts="head")
    meta = method.init(fold_in(0, "init")).meta
    episode, keys = source.sample(fold_in(1), 1), fold_in(5).unsqueeze(0)
    body = [meta["params"][name] for name in PATH[:4]]
    head = fresh_linear(keys[0], 3, torch.zeros(7, dtype=torch.float64))
    support = Batch(episode.support.x[0], episode.support.y[0])
    points = by_hand(
        [head[name] for name in PATH[4:]],
        lambda p, x: perceptron([*body, *p], x),
        support,
        0.3,
        0.0,
    )
    hand = torch.stack([perceptron([*body, *point], episode.query.x[0]) for point in points])
    torch.testing.assert_close(
        predictions_of(method, meta, episode, key=keys)[0], hand, rtol=1e-10, atol=1e-10
    )
    moved = predictions_of(make("fine_tune", source.spec, inner_lr=0.3), meta, episode, key=keys)[0]
    torch.testing.assert_close(moved[0], hand[0], rtol=1e-10, atol=1e-10)
    assert (moved[-1] - hand[-1]).abs().max() > 1e-2


def test_one_pretraining_step_is_torchs_own_adam() -> None:
    source = Clusters("train", 9)
    method, batch = make("fine_tune", source.spec), source.examples(fold_in(2), 32)
    state = method.init(fold_in(0, "init"))
    flat = {**state.meta["params"], **state.meta["pretrain_head"]}
    moving = [flat[name].clone().requires_grad_() for name in PATH]
    optimizer = torch.optim.Adam(moving, lr=1e-3)
    assert method.step is not None
    for _ in range(3):
        state, found = method.step(state, batch)
        optimizer.zero_grad()
        loss = F.cross_entropy(perceptron(moving, batch.x), batch.y)
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(found["query_loss"], loss.detach())
    ours = {**state.meta["params"], **state.meta["pretrain_head"]}
    for name, leaf in zip(PATH, moving, strict=True):
        torch.testing.assert_close(ours[name], leaf.detach(), rtol=1e-9, atol=1e-9)


# closed forms


def test_nearest_centroid_is_minus_the_squared_distance_to_each_class_mean() -> None:
    source = Clusters("test", 9)
    method = NearestCentroid(normalise=False).build(scaling(source.spec), source.spec)
    episode = source.sample(fold_in(1), 1)
    x, y, query = episode.support.x[0], episode.support.y[0], episode.query.x[0]
    expected = torch.stack([-((query - x[y == c].sum(0) / 2) ** 2).sum(1) for c in range(3)], 1)
    ours = predictions_of(method, method.init(fold_in(0)).meta, episode)
    assert ours.shape == (1, len(STEPS), 12, 3)
    for point in ours[0]:
        torch.testing.assert_close(point, expected)


def test_nearest_centroid_with_features_of_length_one() -> None:
    source = Clusters("test", 9)
    method = NearestCentroid().build(scaling(source.spec), source.spec)
    episode = source.sample(fold_in(1), 1)
    x, y, query = (
        episode.support.x[0],
        episode.support.y[0],
        F.normalize(episode.query.x[0], dim=-1),
    )
    x = x / x.norm(dim=-1, keepdim=True)
    expected = torch.stack([-((query - x[y == c].sum(0) / 2) ** 2).sum(1) for c in range(3)], 1)
    ours = predictions_of(method, method.init(fold_in(0)).meta, episode)
    torch.testing.assert_close(ours[0, 0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "component", [BaselinePlusPlus(), NearestCentroid(), LinearProbe(normalise=True)]
)
def test_the_scale_of_features_does_not_enter(component: Any) -> None:
    source = Clusters("test", 9)
    method = component.build(scaling(source.spec), source.spec)
    meta, episode = method.init(fold_in(0)).meta, source.sample(fold_in(1), 2)
    large = {**meta, "params": {"scale": 7 * meta["params"]["scale"]}}
    torch.testing.assert_close(
        predictions_of(method, large, episode),
        predictions_of(method, meta, episode),
        rtol=1e-8,
        atol=1e-8,
    )


def test_the_scale_of_features_enters_a_linear_layer() -> None:
    source = Clusters("test", 9)
    method = LinearProbe().build(scaling(source.spec), source.spec)
    meta, episode = method.init(fold_in(0)).meta, source.sample(fold_in(1), 2)
    large = {**meta, "params": {"scale": 7 * meta["params"]["scale"]}}
    assert (
        predictions_of(method, large, episode) - predictions_of(method, meta, episode)
    ).abs().max() > 0.1


@pytest.mark.parametrize("name", ["linear_probe", "baseline_plus_plus", "nearest_centroid"])
def test_features_are_computed_once(name: str) -> None:
    source, calls = Clusters("test", 9), []
    learner = scaling(source.spec)

    def counted(params: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
        calls.append(context is not None)
        return learner.features(params, x, context)

    method = TRANSFER[name]().build(learner._replace(features=counted), source.spec)
    predictions_of(
        method, method.init(fold_in(0)).meta, source.sample(fold_in(1), 2), steps=(0, 20)
    )
    assert calls.count(False) == 1  # the support's
    assert calls.count(True) == 1  # the queries', for all points together


# pretraining


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", PRETRAINED)
def test_pretraining_learns_and_new_classes_are_told_apart(name: str, seed: int) -> None:
    train, test = Clusters("train", 12), Clusters("test", 7)
    method = make(name, train.spec, outer=Adam(lr=1e-2))
    state, rows = after(method, train, 150, seed=seed)
    assert rows[-1]["query_loss"] < 0.5 * rows[0]["query_loss"]
    assert rows[-1]["query_accuracy"] > 0.6  # chance: 1/12
    new = make(name, test.spec, **({"inner_lr": 0.1} if name.startswith("fine_tune") else {}))
    curve, untrained = (
        learning_curve(new, meta, test, steps=(0, 20), episodes=200, seed=1)
        for meta in (state.meta, method.init(fold_in(seed, "init")).meta)
    )
    if method.traits.support_at_step_0:
        assert (curve.scores[:, 0] == curve.scores[:, 1]).all()
    else:
        assert abs(curve.mean[0] - 1 / 3) < 4 * curve.ci95[0] / 1.96
    assert curve.mean[1] > 0.75
    assert curve.mean[1] > untrained.mean[1] + 0.06  # seen: 0.12 to 0.31 more


# tests/test_rfs_distill.py looks at its generations
@pytest.mark.parametrize("name", [name for name in PRETRAINED if name != "rfs_distill"])
def test_every_leaf_of_the_meta_moves_in_pretraining(name: str) -> None:
    source = Clusters("train", 9)
    method = make(name, source.spec)
    state, _ = after(method, source, 1)
    old, new = named_leaves(method.init(fold_in(0, "init")).meta), named_leaves(state.meta)
    assert [leaf for leaf in old if (old[leaf] == new[leaf]).all()] == []
    assert not any(leaf.startswith("params.head") for leaf in old)
    assert old["pretrain_head.head.weight"].shape == (9, 7)  # a row for each class of the split
    assert {leaf.dtype for leaf in new.values()} == {torch.float64}


@pytest.mark.parametrize("name", PRETRAINED)
def test_running_statistics_move_in_pretraining_and_the_outer_rule_skips_them(name: str) -> None:
    source = Clusters("train", 9)
    method, batch = make(name, source.spec, norm="running"), source.examples(fold_in(2), 32)
    learner = MLP(sizes=(8, 7), activation="tanh", norm="running").build(source.spec)
    state = method.init(fold_in(0, "init"))
    assert method.step is not None
    new, _ = method.step(state, batch)
    expected = learner.stats(state.meta["params"], batch.x)
    statistics = [leaf for leaf in expected if leaf.startswith("stats.")]
    assert len(statistics) == 4
    for leaf in statistics:
        torch.testing.assert_close(new.meta["params"][leaf], expected[leaf])
        assert (new.meta["params"][leaf] != state.meta["params"][leaf]).any()
    assert not any("stats." in leaf for leaf in named_leaves(state.opt))


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_test_spec_with_other_classes_and_shots_takes_the_same_meta(name: str) -> None:
    train, test = Clusters("train", 12, shots=2), Clusters("test", 7, shots=5)
    meta = make(name, train.spec).init(fold_in(0)).meta
    episode = test.sample(fold_in(1), 4)
    ours = predictions_of(make(name, test.spec), meta, episode)
    assert ours.shape == (4, len(STEPS), 12, 3)
    assert torch.equal(ours, predictions_of(make(name, train.spec), meta, episode))
    wide = Clusters("test", 7, ways=5)
    predictions = predictions_of(make(name, wide.spec), meta, wide.sample(fold_in(1), 2))
    assert predictions.shape == (2, len(STEPS), 20, 5)


def test_learning_reads_nothing_of_the_old_head_but_its_width() -> None:
    source = Clusters("train", 9)
    episode = source.sample(fold_in(1), 2)
    for name in PRETRAINED:
        method = make(name, source.spec)
        meta = method.init(fold_in(0)).meta
        blank = {**meta, "pretrain_head": zeros_like(meta["pretrain_head"])}
        assert torch.equal(
            predictions_of(method, meta, episode), predictions_of(method, blank, episode)
        )


# regression


@pytest.mark.parametrize("adapts", ["all", "head"])
def test_fine_tune_of_a_regression_begins_with_the_whole_pretrained_network(adapts: str) -> None:
    source = Sinusoid(shots=5, queries=6).build(dtype=torch.float64)
    method = make("fine_tune", source.spec, inner_lr=0.05, adapts=adapts)
    state, rows = after(method, source, 3)
    assert set(state.meta) == {"params"} and set(rows[0]) == {"query_loss"}
    start = method.init(fold_in(0, "init")).meta["params"]
    assert all((start[name] != state.meta["params"][name]).any() for name in PATH)
    episode = source.sample(fold_in(1), 1)
    ours = predictions_of(method, state.meta, episode)
    leaves = [state.meta["params"][name] for name in PATH]
    torch.testing.assert_close(ours[0, 0], perceptron(leaves, episode.query.x[0]))
    still = 0 if adapts == "all" else 4
    support = Batch(episode.support.x[0], episode.support.y[0])
    points = by_hand(
        leaves[still:], lambda p, x: perceptron([*leaves[:still], *p], x), support, 0.05, 0.0
    )
    hand = torch.stack(
        [perceptron([*leaves[:still], *point], episode.query.x[0]) for point in points]
    )
    torch.testing.assert_close(ours[0], hand, rtol=1e-10, atol=1e-10)


def test_pretraining_on_sinusoids_goes_to_the_floor_of_one_answer_for_all() -> None:
    source = Sinusoid().build()
    method = FineTune(outer=Adam(lr=5e-3)).build(
        MLP(sizes=(40, 40)).build(source.spec), source.spec
    )
    state, _ = after(method, source, 400, size=250)
    curve = learning_curve(method, state.meta, source, steps=(0,), episodes=2000, seed=1)
    # E[A^2]/2 - (2 E[A]/pi)^2 E[cos^2 x] = 3.006 is the best that one answer for all waves can do;
    # f = 0 has 4.252.
    assert abs(curve.mean[0] - 3.006) < 0.25


@pytest.mark.parametrize("name", sorted(set(TRANSFER) - set(OF_REGRESSION)))
def test_methods_that_compare_classes_refuse_regression_with_a_sentence(name: str) -> None:
    source = Sinusoid().build()
    with pytest.raises(
        ConfigError, match=f"method.name: {name} needs a classification task.*use fine_tune"
    ):
        make(name, source.spec)


def test_a_source_that_does_not_count_its_classes_is_refused_with_a_sentence() -> None:
    spec = Clusters("train", 9).spec
    uncounted = EpisodeSpec(**{**spec.__dict__, "num_classes": 0})
    with pytest.raises(ConfigError, match=r"task.num_classes: must be the number of classes"):
        make("fine_tune", uncounted).init(fold_in(0))
