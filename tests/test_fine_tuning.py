"""Step sizes side by side: ensembles and cross-validation against runs of fine_tune one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clusters import STEPS, Clusters, predictions_of
from small import pictures
from torch import Tensor
from torch.nn import functional as F

import metalearn as ml
from metalearn.augment import augment
from metalearn.errors import ConfigError
from metalearn.evaluate.ledger import CostLedger
from metalearn.inner.rules import Adam
from metalearn.models import MLP, Conv4
from metalearn.rng import fold_in
from metalearn.run.trained.adapted import adapt_task
from metalearn.transfer import FineTune, FineTuneCrossValidated, FineTuneEnsemble
from metalearn.tree import take
from metalearn.types import Batch, Episode, Learner, Method

KEYS = torch.stack([fold_in(5, n) for n in range(3)])
FACTORS = (0.2, 1.0, 5.0)
ALL: list[dict[str, Any]] = [
    {"inner_lr": 0.1},
    {"inner_lr": 0.02, "inner_momentum": 0.9, "head_start": "prototypes"},
    {"inner_lr": 0.1, "adapts": "head"},
    {"inner_lr": 0.1, "adapts": ["layers.1.*", "head"]},
    {"inner": Adam(lr=0.02, weight_decay=0.1, clip=1.0)},
]


def network(spec: Any, norm: str = "none") -> Learner:
    return MLP(sizes=(8, 7), activation="tanh", norm=norm).build(spec)


def by_factor(options: dict[str, Any], factor: float) -> FineTune:
    """fine_tune with its step size times `factor`."""
    if "inner" in options:
        inner = options["inner"]
        return FineTune(**{**options, "inner": inner.model_copy(update={"lr": inner.lr * factor})})
    return FineTune(**{**options, "inner_lr": options["inner_lr"] * factor})


@pytest.fixture(scope="module")
def tasks() -> tuple[Clusters, Episode]:
    source = Clusters("train", 9)
    return source, source.sample(fold_in(1), 3)


# ensembles


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("options", ALL)
def test_an_ensemble_is_the_mean_of_separate_runs(
    options: dict[str, Any], dtype: torch.dtype, limit: float, tasks: Any
) -> None:
    source, episode = tasks
    spec = replace(source.spec, dtype=dtype)
    support, query = (Batch(part.x.to(dtype), part.y) for part in episode[:2])
    learner = network(spec)
    method = FineTuneEnsemble(**options).build(learner, spec)
    meta = method.init(fold_in(0, "init")).meta
    runs = [by_factor(options, factor).build(learner, spec) for factor in FACTORS]
    found = method.learn(meta, support, query.x, STEPS, key=KEYS).predictions
    each = [run.learn(meta, support, query.x, STEPS, key=KEYS).predictions for run in runs]
    mean = torch.stack([one.softmax(-1) for one in each]).mean(0)
    torch.testing.assert_close(found.exp(), mean, rtol=limit, atol=limit)
    assert (each[0] - each[2])[:, -1].abs().max() > 1e-3


def test_the_head_may_have_factors_of_its_own(tasks: Any) -> None:
    source, episode = tasks
    learner = network(source.spec)
    method = FineTuneEnsemble(inner_lr=0.1, lr_factors=(0.5, 2), head_lr_factors=(3,))
    built = method.build(learner, source.spec)
    meta = built.init(fold_in(0, "init")).meta

    def by_hand(body: float, head: float) -> Tensor:
        support, query = (take(part, 0) for part in episode[:2])
        start = FineTune().build(learner, source.spec).adapt(meta, support, 0, KEYS[0])  # type: ignore[misc]
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in start.items()}
        for _ in range(2):
            loss = F.cross_entropy(learner.apply(leaves, support.x), support.y)
            grads = torch.autograd.grad(loss, list(leaves.values()))
            leaves = {
                name: (leaf - 0.1 * (head if name.startswith("head") else body) * grad)
                for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
            }
        return learner.apply(leaves, query.x).softmax(-1)

    mean = (by_hand(0.5, 3) + by_hand(2, 3)) / 2
    found = predictions_of(built, meta, episode, (2,), KEYS)[0, 0]
    torch.testing.assert_close(found.exp(), mean.detach(), rtol=1e-10, atol=1e-10)


def test_in_regression_the_outputs_are_averaged() -> None:
    source = ml.tasks.Sinusoid(shots=5).build(dtype=torch.float64)
    learner, episode = MLP(sizes=(8,)).build(source.spec), source.sample(fold_in(1), 3)
    method = FineTuneEnsemble(inner_lr=0.05).build(learner, source.spec)
    meta = method.init(fold_in(0)).meta
    runs = [FineTune(inner_lr=0.05 * f).build(learner, source.spec) for f in FACTORS]
    each = torch.stack([predictions_of(run, meta, episode) for run in runs])
    torch.testing.assert_close(predictions_of(method, meta, episode), each.mean(0))


def test_classes_without_shots_have_no_probability_in_any_member(tasks: Any) -> None:
    source, episode = tasks
    learner = network(source.spec)
    method = FineTuneEnsemble(inner_lr=0.1).build(learner, source.spec)
    meta = method.init(fold_in(0)).meta
    weight = (episode.support.y != 2).to(torch.float64)
    support = episode.support._replace(weight=weight)
    runs = [FineTune(inner_lr=0.1 * f).build(learner, source.spec) for f in FACTORS]
    found, *each = (
        one.learn(meta, support, episode.query.x, (3,), key=KEYS).predictions.softmax(-1)
        for one in (method, *runs)
    )
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-10, atol=1e-12)
    assert (found[..., 2] == 0).all()


# cross-validation


def loop(
    options: dict[str, Any],
    learner: Learner,
    spec: Any,
    meta: Any,
    task: Any,
    folds: int,
    step: int,
) -> Tensor:
    """Predictions of one task by loops over step sizes and folds of real subsets."""
    support, query, key = task
    runs = [by_factor(options, factor).build(learner, spec) for factor in FACTORS]

    def predict(run: Method, part: Batch, x: Tensor) -> Tensor:
        batch = Batch(part.x.unsqueeze(0), part.y.unsqueeze(0))
        found = run.learn(meta, batch, x.unsqueeze(0), (step,), key=key.unsqueeze(0))
        return found.predictions[0, 0]

    number, seen = [], [0] * max(spec.ways, 1)
    for label in support.y.tolist() if spec.classification else [0] * len(support.y):
        number.append(seen[label])
        seen[label] += 1
    labels = support.y.tolist() if spec.classification else [0] * len(support.y)
    losses = []
    for run in runs:
        total = 0.0
        for fold in range(folds):
            out = torch.tensor(
                [n % folds == fold and seen[c] > 1 for n, c in zip(number, labels, strict=True)]
            )
            if not out.any():
                continue
            part = Batch(support.x[~out], support.y[~out])
            found = predict(run, part, support.x[out])
            loss = F.cross_entropy if spec.classification else F.mse_loss
            total += float(loss(found, support.y[out])) * int(out.sum())
        losses.append(total)
    best = min(range(3), key=losses.__getitem__) if max(seen) > 1 else 1
    return predict(runs[best], support, query)


def classes(shots: int) -> tuple[Any, Episode]:
    source = ml.tasks.Digits(ways=3, shots=shots, queries=4).build(dtype=torch.float64)
    return source, source.sample(fold_in(2), 3)


@pytest.mark.parametrize(
    ("options", "norm", "shots", "folds"),
    [
        *((options, "none", 3, 10) for options in ALL),
        (ALL[0], "none", 5, 2),
        (ALL[0], "query_batch", 4, 10),
        (ALL[0], "support", 3, 10),
        (ALL[2], "query_batch", 3, 10),
    ],
)
def test_cross_validation_is_that_of_plain_loops(
    options: dict[str, Any], norm: str, shots: int, folds: int
) -> None:
    source, episode = classes(shots)
    learner = network(source.spec, norm)
    method = FineTuneCrossValidated(**options, folds=folds).build(learner, source.spec)
    meta = method.init(fold_in(0, "init")).meta
    found = predictions_of(method, meta, episode, key=KEYS)
    for task in range(3):
        given = take(episode.support, task), episode.query.x[task], KEYS[task]
        for place, step in enumerate(STEPS):
            one = loop(options, learner, source.spec, meta, given, min(folds, shots), step)
            torch.testing.assert_close(found[task, place], one, rtol=1e-9, atol=1e-9)


def test_cross_validation_of_regression_holds_out_examples() -> None:
    source = ml.tasks.Sinusoid(shots=5).build(dtype=torch.float64)
    learner, episode = MLP(sizes=(8,)).build(source.spec), source.sample(fold_in(1), 3)
    options = {"inner_lr": 0.05}
    method = FineTuneCrossValidated(**options).build(learner, source.spec)
    meta = method.init(fold_in(0)).meta
    found = predictions_of(method, meta, episode, (4,), KEYS)
    for task in range(3):
        given = take(episode.support, task), episode.query.x[task], KEYS[task]
        one = loop(options, learner, source.spec, meta, given, 5, 4)
        torch.testing.assert_close(found[task, 0], one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("counts", [(4, 2, 1), (1, 1, 1), (3, 0, 2)])
def test_shots_may_differ_from_class_to_class(counts: tuple[int, ...]) -> None:
    source, episode = classes(4)
    learner = network(source.spec)
    method = FineTuneCrossValidated(**ALL[0]).build(learner, source.spec)
    meta = method.init(fold_in(0, "init")).meta
    support, query = take(episode.support, 0), episode.query.x[0]
    weight, left = torch.zeros(12, dtype=torch.float64), list(counts)
    for place, label in enumerate(support.y.tolist()):
        weight[place] = float(left[label] > 0)
        left[label] -= 1
    batch = Batch(*(part.unsqueeze(0) for part in (support.x, support.y, weight)))
    found = method.learn(meta, batch, query.unsqueeze(0), (3,), key=KEYS[:1]).predictions[0, 0]
    part = Batch(support.x[weight > 0], support.y[weight > 0])
    one = loop(ALL[0], learner, source.spec, meta, (part, query, KEYS[0]), 4, 3)
    there = [label for label, count in enumerate(counts) if count]
    expected = one if len(there) == 3 else None
    if expected is not None:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found.softmax(-1)[:, [c for c in range(3) if c not in there]] == 0).all()


def test_one_shot_holds_out_nothing_and_is_refused() -> None:
    source = ml.tasks.Digits(ways=3, shots=1).build()
    with pytest.raises(ConfigError, match="at least 2, or fine_tune_ensemble"):
        FineTuneCrossValidated().build(network(source.spec), source.spec)
    FineTuneEnsemble().build(network(source.spec), source.spec)


def test_a_step_size_that_diverges_is_not_chosen() -> None:
    source, episode = classes(3)
    learner = network(source.spec)
    method = FineTuneCrossValidated(inner_lr=0.1, lr_factors=(1, 1e308)).build(learner, source.spec)
    usual = FineTune(inner_lr=0.1).build(learner, source.spec)
    meta = method.init(fold_in(0)).meta
    found, one = (predictions_of(made, meta, episode, (3,), KEYS) for made in (method, usual))
    torch.testing.assert_close(found, one, rtol=1e-9, atol=1e-9)


# both


def test_factors_that_say_nothing_are_refused(tasks: Any) -> None:
    for kind in (FineTuneEnsemble, FineTuneCrossValidated):
        for wrong in ((), (0.0, 1.0), (1.0, 1.0), (float("inf"),)):
            with pytest.raises(ValueError, match="lr_factors"):
                kind(lr_factors=wrong)
        with pytest.raises(ValueError, match="omit head_lr_factors"):
            kind(adapts="head", head_lr_factors=(1.0, 2.0))
        spec = tasks[0].spec
        with pytest.raises(ConfigError, match="does not include the head"):
            kind(adapts=["layers.0.*"], head_lr_factors=(1.0, 2.0)).build(network(spec), spec)


@pytest.mark.parametrize("adapts", ["all", "head"])
def test_every_step_of_every_path_is_on_the_account(adapts: str) -> None:
    source, episode = classes(4)
    learner, costs = network(source.spec), []
    kinds = (FineTune, FineTuneEnsemble, FineTuneCrossValidated)
    for kind in kinds:
        method = kind(inner_lr=0.1, adapts=adapts).build(learner, source.spec)
        meta, ledger, start = method.init(fold_in(0)).meta, CostLedger(), CostLedger()
        method.learn(meta, episode.support, episode.query.x, (0, 5), ledger=ledger)
        method.learn(meta, episode.support, episode.query.x, (0,), ledger=start)
        costs.append(
            (ledger.cost(), ledger.cost()["adapt"]["flops"] - start.cost()["adapt"]["flops"])
        )
    one, ensemble, validated = costs
    assert ensemble[1] == pytest.approx(3 * one[1], rel=0.05)
    assert validated[1] == pytest.approx((4 + 1) * 3 * one[1], rel=0.05)
    steps = [cost[0]["adapt"]["gradient_steps"] for cost in costs]
    assert steps == [15, 3 * 15, 15 * 15]
    both = [cost[0]["predict"]["flops"] for cost in costs]
    assert both[1] > both[0] and both[2] == both[0]


@pytest.mark.parametrize("kind", [FineTuneEnsemble, FineTuneCrossValidated])
def test_learning_is_one_graph_for_the_compiler(kind: Any) -> None:
    source, episode = classes(2)
    method = kind(inner_lr=0.1).build(network(source.spec), source.spec)
    meta = method.init(fold_in(0)).meta

    def learn(support: Batch, query_x: Tensor) -> Tensor:
        predictions: Tensor = method.learn(meta, support, query_x, (0, 2), key=KEYS).predictions
        return predictions

    compiled = torch.compile(learn, fullgraph=True, dynamic=False, backend="aot_eager")
    given = episode.support, episode.query.x
    torch.testing.assert_close(compiled(*given), learn(*given), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [FineTuneEnsemble, FineTuneCrossValidated])
def test_images_are_learned_side_by_side(kind: Any) -> None:
    """Convolutions of many tasks, folds and step sizes at once equal those of a task alone."""
    source = ml.tasks.Glyphs(ways=2, shots=2, queries=2).build()
    learner = Conv4(filters=4, downsample="pool", norm="query_batch").build(source.spec)
    episode = source.sample(fold_in(1), 2)
    method = kind(inner_lr=0.01, copies=1).build(learner, source.spec)
    meta = method.init(fold_in(0)).meta
    both = predictions_of(method, meta, episode, (0, 2), KEYS[:2])
    for task in range(2):
        part = Episode(*(take(one, slice(task, task + 1)) for one in episode[:2]), {})
        alone = predictions_of(method, meta, part, (0, 2), KEYS[task : task + 1])
        torch.testing.assert_close(both[task : task + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [FineTuneEnsemble, FineTuneCrossValidated])
def test_an_adapted_task_is_a_program(kind: Any, tmp_path: Path, tasks: Any) -> None:
    source, episode = tasks
    spec, support = source.spec, take(episode.support, 0)

    def build(spec: Any) -> tuple[Learner, Method]:
        learner = network(spec)
        return learner, kind(inner_lr=0.1).build(learner, spec)

    meta = build(spec)[1].init(fold_in(0)).meta
    task = adapt_task(build, meta, spec, support.x, support.y, 2)
    program = torch.export.load(task.export(tmp_path / "task.pt2")).module()
    x = episode.query.x[0]
    torch.testing.assert_close(program(x), task.outputs(x))
    if kind is FineTuneEnsemble:
        with pytest.raises(ConfigError, match="use predict or export"):
            task.module()
    else:
        torch.testing.assert_close(task.module()(x).detach(), task.outputs(x))


# changed copies


@pytest.mark.parametrize("adapts", ["all", "head"])
def test_steps_learn_from_changed_copies_and_class_means_from_images(adapts: str) -> None:
    source = pictures()
    learner = Conv4(filters=4, downsample="pool").build(source.spec)
    episode = source.sample(fold_in(1), 1)
    options: dict[str, Any] = {"adapts": adapts, "inner_lr": 0.1, "head_start": "prototypes"}
    method = FineTune(**options, copies=2).build(learner, source.spec)
    meta, support = method.init(fold_in(0)).meta, take(episode.support, 0)
    start = FineTune(**{**options, "adapts": "all"}).build(learner, source.spec)
    params = start.adapt(meta, support, 0, KEYS[0])  # type: ignore[misc]
    places = torch.arange(len(support.y))
    changes = ("crop", "flip", "colour")
    x = torch.cat([augment(support.x, fold_in(KEYS[0], n, places), changes) for n in range(2)])
    moving = {n: leaf for n, leaf in params.items() if adapts == "all" or n.startswith("head")}
    for _ in range(2):
        loss = lambda leaves: F.cross_entropy(  # noqa: E731
            learner.apply({**params, **leaves}, x), support.y.repeat(2)
        )
        grads = torch.func.grad(loss)(moving)
        moving = {name: leaf - 0.1 * grads[name] for name, leaf in moving.items()}
    expected = learner.apply({**params, **moving}, episode.query.x[0])
    found = predictions_of(method, meta, episode, (0, 2), KEYS[:1])[0]
    torch.testing.assert_close(found[1], expected, rtol=1e-5, atol=1e-5)
    plain = FineTune(**options).build(learner, source.spec)
    torch.testing.assert_close(found[0], predictions_of(plain, meta, episode, (0,), KEYS[:1])[0, 0])
