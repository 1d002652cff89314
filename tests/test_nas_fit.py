"""Training of candidates: folds of a support set, and many at once against one at a time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hand_counts import Net
from nas_tasks import F64, Images, image_spec
from test_nas_methods import Always, learned_by

from metalearn.evaluate.ledger import CostLedger
from metalearn.inner.rules import sgd
from metalearn.losses import cross_entropy
from metalearn.models import MLP
from metalearn.nas import Conv4Micro, PerTaskNAS, RandomSearch
from metalearn.nas.fit import (
    Folds,
    chunks,
    count_lanes,
    divide,
    halves,
    make_losses,
    mean_and_error,
)
from metalearn.nas.spaces.space import shuffled
from metalearn.rng import fold_in
from metalearn.tree import take, vmap
from metalearn.types import Batch, NullLedger


@pytest.mark.parametrize("policy", ["query_batch", "support", "none"])
@pytest.mark.parametrize("shots", [1, 2])
def test_buckets_and_masks_equal_candidates_trained_alone(shots: int, policy: Any) -> None:
    """Losses of (task, architecture, steps) jobs against one network at a time."""
    source = Images(image_spec(shots))
    space = Conv4Micro(filters=2).build(source.spec, policy)
    episode, rule = source.sample(fold_in(1), 3), sgd(0.2)
    keys = fold_in(2, torch.arange(3))
    folds: Folds = vmap(lambda s, k: divide(source.spec, s, k, 5, 2))(episode.support, keys)
    one, two, three = itertools.islice(shuffled(space, fold_in(0, "some")), 3)
    jobs = [(0, one, 2), (1, two, 2), (2, one, 2), (0, three, 1), (1, one, 2), (0, two, 1)]
    bucket = make_losses(space, rule, "bucket")(jobs, folds, NullLedger())
    masks = make_losses(space, rule, "masks")(jobs, folds, NullLedger())
    for (task, genotype, steps), found, other in zip(jobs, bucket, masks):
        learner = space.learner(genotype)
        for lane in range(2):
            train, held, key = take(take(folds, task), lane)
            params, along = learner.init(key), []
            for _ in range(steps):
                grads, loss = torch.func.grad_and_value(
                    lambda p, t=train, one=learner: cross_entropy(one.apply(p, t.x), t.y)
                )(params)
                along.append(loss)
                params = {name: value - 0.2 * grads[name] for name, value in params.items()}
            learned_by = cross_entropy(learner.apply(params, held.x, context=train.x), held.y)
            wanted = torch.stack(along).mean() if shots == 1 else learned_by
            torch.testing.assert_close(found[lane], wanted, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(other[lane], wanted, rtol=1e-8, atol=1e-10)


# what it costs


@pytest.mark.parametrize(("tasks", "together"), [(1, 1), (32, 32), (32, 1)])
def test_a_candidate_costs_what_a_pencil_says(
    tasks: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shot of 3 classes, 2 starts, 3 steps each; the winner: 4 more, 6 queries at 2 points."""
    monkeypatch.setattr(RandomSearch, "build", lambda self, space: Always().build(space))
    source, net, ledger = Images(image_spec(1, side=28)), Net(4, 3), CostLedger()
    learner = MLP(sizes=(4,), norm="query_batch").build(source.spec)
    method = PerTaskNAS(space=Conv4Micro(filters=4), search_steps=3, repeats=2).build(
        learner, source.spec
    )
    for start in range(0, tasks, together):
        learned_by(method, source.sample(fold_in(1), together, start), (0, 4), ledger=ledger)
    spent = {
        phase: entry["flops"]
        for phase, entry in ledger.cost().items()
        if phase in method.traits.phases
    }
    assert spent["search"] == pytest.approx(
        tasks * 2 * (3 * net.gradient(3) + net.forward(3)), rel=1e-3
    )
    assert spent["retrain"] == pytest.approx(tasks * 4 * net.gradient(3), rel=1e-3)
    assert spent["predict"] == pytest.approx(tasks * 2 * net.forward(6), rel=1e-3)


# folds


@pytest.mark.parametrize(
    ("shots", "folds", "lanes"),
    [(1, 5, 3), (2, 5, 2), (4, 5, 4), (5, 5, 5), (6, 5, 3), (7, 5, 7), (10, 5, 5), (9, 2, 9)],
)
def test_folds_hold_out_every_shot_once_and_classes_evenly(
    shots: int, folds: int, lanes: int
) -> None:
    spec = image_spec(shots)
    assert count_lanes(spec, folds, repeats=3) == (lanes, shots > 1)
    y = (
        torch.arange(3 * shots)[
            torch.randperm(3 * shots, generator=torch.Generator().manual_seed(0))
        ]
        % 3
    )
    support = Batch(torch.arange(3 * shots, dtype=F64).view(-1, 1, 1, 1), y)
    made = divide(spec, support, fold_in(1), folds, 3)
    assert made.keys.shape == (lanes,) and len(set(made.keys.tolist())) == lanes
    if shots == 1:
        assert torch.equal(made.train.x, support.x.expand(3, *support.x.shape))
        assert torch.equal(made.held_out.y[1], y)
        return
    seen = []
    for train, held in zip(made.train.x.flatten(1).tolist(), made.held_out.x.flatten(1).tolist()):
        assert sorted(train + held) == list(range(3 * shots))
        seen += held
        for part in (train, held):
            labels = y[torch.tensor(part).long()]
            assert labels.bincount(minlength=3).unique().numel() == 1
    assert sorted(seen) == list(range(3 * shots))
    assert all(
        torch.equal(y[made.train.x[lane].flatten().long()], made.train.y[lane])
        for lane in range(lanes)
    )


def test_halves_share_nothing_and_leave_nothing() -> None:
    spec = image_spec(5)
    y = torch.arange(15) % 3
    first, second = halves(spec, Batch(torch.arange(15, dtype=F64).view(-1, 1, 1, 1), y))
    assert sorted([*first.x.flatten().tolist(), *second.x.flatten().tolist()]) == list(range(15))
    assert first.y.bincount().tolist() == [3, 3, 3] and second.y.bincount().tolist() == [2, 2, 2]


def test_means_errors_and_pieces() -> None:
    values = torch.tensor([1.0, 2.0, 4.0], dtype=F64)
    mean, error = mean_and_error(values)
    assert (mean, error) == pytest.approx((7 / 3, float(values.std()) / 3**0.5))
    assert mean_and_error(torch.tensor([1.0, math.nan])) == (math.inf, 0.0)
    assert mean_and_error(torch.tensor([3.0])) == (3.0, 0.0)
    for count in (1, 31, 32, 33, 100):
        pieces = chunks(count, "cpu")
        assert [number for piece in pieces for number in range(count)[piece]] == list(range(count))
        assert max(len(range(count)[piece]) for piece in pieces) <= 32
