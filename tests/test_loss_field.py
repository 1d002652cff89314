"""The loss of the tasks: a field of an experiment, or a function in Python."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from clusters import Clusters
from torch import Tensor
from torch.nn import functional as F

from metalearn.algorithms import MAML, MetaOptNet, MetaOptSVM, ProtoNet
from metalearn.config.build import build, hold_loss
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.evaluate import learning_curve
from metalearn.losses import criterion
from metalearn.models import MLP
from metalearn.rng import fold_in, normal
from metalearn.run.run import run_one
from metalearn.run.trained.load import load_run
from metalearn.transfer import FineTune
from metalearn.tree import take
from metalearn.types import Batch, Episode, EpisodeSpec, Key

F64 = torch.float64
KEY = fold_in(9, "loss")
TASK: dict[str, Any] = {"source": "sinusoid", "shots": 4, "queries": 6}
SMALL: dict[str, Any] = {
    "task": TASK,
    "model": {"name": "mlp", "sizes": [5]},
    "method": {"name": "maml", "inner_lr": 0.1},
    "run": {"meta_steps": 2, "tasks_per_step": 2, "executor": "vmap"},
    "evaluate": {"episodes": 3, "steps": [0, 1]},
}


class Labels:
    """Multi-label tasks: each of 4 labels holds where one of 6 inputs is above a threshold."""

    data_sha256 = ""

    def __init__(self, loss: Any = "bce") -> None:
        self.spec = EpisodeSpec("regression", 1, 8, 8, (6,), 4, 0, dtype=F64, loss=loss)

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        keys = fold_in(key, torch.arange(start, start + num_tasks))
        x = normal(keys, (16, 6), F64)
        y = (x[..., :4] + normal(fold_in(keys, "shift"), (1, 4), F64) > 0).to(F64)
        parts = (Batch(x[:, part], y[:, part]) for part in (slice(0, 8), slice(8, 16)))
        return Episode(*parts, {"key": keys})

    def examples(self, key: Key, size: int) -> Batch:
        return take(self.sample(key, size).query, (slice(None), 0))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["huber", "bce", "mse"])
def test_maml_descends_the_loss_inside_and_outside(name: str) -> None:
    """The meta-gradient by torch.autograd with torch's own loss."""
    source = Labels(name)
    learner = MLP(sizes=(5,), activation="tanh").build(source.spec)
    method = MAML(inner_lr=0.1).build(learner, source.spec)
    meta, one = method.init(KEY).meta, take(source.sample(KEY, 2), 1)
    torchs = {"huber": F.huber_loss, "mse": F.mse_loss, "bce": F.binary_cross_entropy_with_logits}
    params = {leaf: value.clone().requires_grad_() for leaf, value in meta.items()}
    inner = torchs[name](learner.apply(params, one.support.x), one.support.y)
    grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
    after = {leaf: p - 0.1 * g for (leaf, p), g in zip(params.items(), grads, strict=True)}
    outer = torchs[name](learner.apply(after, one.query.x), one.query.y)
    outer.backward()
    assert method.task_grad is not None
    found, metrics = method.task_grad(meta, one)
    expected = {leaf: value.grad for leaf, value in params.items()}
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(metrics["query_loss"], outer.detach())


def test_a_test_is_scored_by_the_loss_of_the_tasks() -> None:
    source = Labels()
    learner = MLP(sizes=(5,), activation="tanh").build(source.spec)
    method = MAML(inner_lr=1.0, inner_steps=5).build(learner, source.spec)
    meta = method.init(KEY).meta
    curve = learning_curve(method, meta, source, (0, 5), episodes=4)
    tasks = source.sample(fold_in(1, "episodes"), 4)
    learned = method.learn(meta, tasks.support, tasks.query.x, (0, 5)).predictions
    each = [F.binary_cross_entropy_with_logits(p[1], y) for p, y in zip(learned, tasks.query.y)]
    torch.testing.assert_close(curve.loss[:, 1], torch.stack(each))
    assert curve.mean[1] < curve.mean[0]


def own(predictions: Tensor, y: Tensor) -> Tensor:
    return (predictions - y).abs()  # [B, C]


def test_a_function_is_a_loss_with_weights_and_leading_axes() -> None:
    spec = EpisodeSpec("regression", 1, 1, 1, (2,), 3, 0, dtype=F64, loss=own)
    loss = criterion(spec)
    p, y = (normal(fold_in(KEY, n), (2, 5, 3), F64) for n in ("p", "y"))
    weight = torch.tensor([1.0, 0, 2, 1, 0], dtype=F64)
    expected = torch.stack([(weight * own(a, b).mean(1)).sum() / 4 for a, b in zip(p, y)])
    torch.testing.assert_close(loss(p, y, weight.expand(2, 5), 1), expected)
    torch.testing.assert_close(loss(p, y, batch_dims=1), own(p, y).mean((1, 2)))
    mean = criterion(dataclasses.replace(spec, loss=lambda p, y: own(p, y).mean()))
    torch.testing.assert_close(mean(p[0], y[0]), own(p[0], y[0]).mean())
    with pytest.raises(ConfigError, match="loss of each"):
        mean(p[0], y[0], weight)
    with pytest.raises(ConfigError, match=r"returns shape \[3\] for 5 examples"):
        criterion(dataclasses.replace(spec, loss=lambda p, y: own(p, y).mean(0)))(p[0], y[0])
    for other in (y[0, :, 0], y[0, :, :1]):  # would be broadcast
        with pytest.raises(ConfigError, match="targets: have shape"):
            loss(p[0], other)
    wide = criterion(dataclasses.replace(spec, loss=lambda p, y: own(p[:, :3], y) * p[:, 3:].exp()))
    both = torch.cat([p[0], y[0]], 1)
    torch.testing.assert_close(wide(both, y[0]), (own(p[0], y[0]) * y[0].exp()).mean())


@pytest.mark.parametrize("component", [MetaOptNet(), MetaOptSVM()])
def test_a_loss_that_a_method_would_not_minimise_is_refused(component: Any) -> None:
    def focal(logits: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(logits, y, reduction="none")
        return (1 - (-each).exp()).square() * each

    spec = EpisodeSpec("classification", 3, 2, 2, (4,), 3, 9, dtype=F64)
    learner = MLP(sizes=(5,)).build(spec)
    for loss in (None, "cross_entropy"):
        component.build(learner, dataclasses.replace(spec, loss=loss))
    with pytest.raises(ConfigError, match=r"loss: is .*minimises cross-entropy.*omit the loss"):
        component.build(learner, dataclasses.replace(spec, loss=focal))


@pytest.mark.parametrize(
    "function",
    [
        torch.nn.MSELoss(reduction="sum"),
        lambda p, y: own(p, y).sum(1).sum(),
        lambda p, y: F.binary_cross_entropy_with_logits(p, y, reduction="sum"),
    ],
)
def test_a_sum_over_the_examples_is_refused(function: Any) -> None:
    spec = EpisodeSpec("regression", 1, 1, 1, (2,), 3, 0, dtype=F64, loss=function)
    with pytest.raises(ConfigError, match="loss: returns the sum over the examples"):
        criterion(spec)
    MAML().build(MLP().build(spec), dataclasses.replace(spec, loss=lambda p, y: own(p, y).mean()))


def test_the_loss_of_dense_classes_is_checked_where_it_is_used() -> None:
    def spec(loss: Any) -> EpisodeSpec:
        return EpisodeSpec("classification", 4, 1, 1, (2,), 4, 4, loss=loss)

    def total(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits.movedim(-1, 1), y, reduction="sum") if y.dim() > 1 else y

    logits, y = torch.randn(2, 5, 4, 4, 4), torch.zeros(2, 5, 4, 4, dtype=torch.int64)
    with pytest.raises(ConfigError, match="returns the sum"):
        criterion(spec(total))(logits, y, batch_dims=1)
    for torchs in (torch.nn.CrossEntropyLoss(), F.cross_entropy, partial(F.cross_entropy)):
        with pytest.raises(ConfigError, match=r"uses axis 1 of \[5, 4, 4, 4\] as the class axis"):
            criterion(spec(torchs))(logits, y, batch_dims=1)


def test_classes_take_a_function_too() -> None:
    source = Clusters("train", 24)

    def smoothed(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=0.1)

    spec = dataclasses.replace(source.spec, loss=smoothed)
    for component in (MAML(), ProtoNet()):
        method = component.build(MLP(sizes=(5,)).build(spec), spec)
        assert method.step is not None
        metrics = method.step(method.init(KEY), source.sample(KEY, 3))[1]
        assert metrics["query_loss"].isfinite() and "query_accuracy" in metrics


# of an experiment


def test_a_file_names_the_loss() -> None:
    plain, huber = (parse({**SMALL, **more}).experiments[0] for more in ({}, {"loss": "huber"}))
    assert "loss" not in plain.resolved() and huber.resolved()["loss"] == "huber"
    assert plain.hash() != huber.hash()
    assert parse(huber.resolved()).experiments[0].hash() == huber.hash()
    parts = build(huber)
    assert {s.spec.loss for s in (parts.train, parts.valid, parts.test)} == {"huber"}
    assert parts.method.spec.loss == parts.test_method.spec.loss == "huber"


@pytest.mark.parametrize(
    ("loss", "words"),
    [("cross_entropy", "does not fit regression"), ("hubert", "did you mean 'huber'")],
)
def test_a_loss_that_does_not_fit_is_refused(loss: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build(parse({**SMALL, "loss": loss}).experiments[0])
    assert [place for place, _ in caught.value.problems] == ["loss"]


def test_a_run_learns_and_tests_by_its_loss(tmp_path: Path) -> None:
    results = {}
    for name in ("mse", "huber"):
        experiment = parse({**SMALL, "loss": name}).experiments[0]
        results[name] = run_one(experiment, tmp_path / name)["test"]["loss"]
    assert results["mse"] != results["huber"]
    run = load_run(tmp_path / "huber")
    assert run.source.spec.loss == "huber"
    curve = learning_curve(run.method, run.state.meta, run.source, (0, 1), episodes=3, seed=1)
    assert curve.loss.mean(0).tolist() == pytest.approx(results["huber"], rel=1e-5)


def test_a_function_is_recorded_by_name_and_hash_and_asked_for_again(tmp_path: Path) -> None:
    name, function = hold_loss(own)
    assert name.startswith("python:test_loss_field.own:")
    run_one(parse({**SMALL, "loss": name}).experiments[0], tmp_path / "run")
    assert load_run(tmp_path / "run").source.spec.loss is own
    del function
    with pytest.raises(ConfigError, match=r"is the function test_loss_field.own .*pass it again"):
        load_run(tmp_path / "run")
    assert load_run(tmp_path / "run", loss=own).source.spec.loss is own


def test_targets_that_are_no_probabilities_are_refused() -> None:
    """Cross-entropy of a target of 2 has no lower bound: training would follow it down."""

    class Doubled(Labels):
        def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
            episode = super().sample(key, num_tasks, start)
            return episode._replace(query=episode.query._replace(y=2 * episode.query.y))

    source, words = Doubled(), "must be in 0 .. 1 for this loss: got 2"
    learner = MLP(sizes=(5,)).build(source.spec)
    maml, tuned = (kind().build(learner, source.spec) for kind in (MAML, FineTune))
    assert maml.step is not None and tuned.step is not None
    with pytest.raises(ConfigError, match=f"of the query set {words}"):
        maml.step(maml.init(KEY), source.sample(KEY, 2))
    with pytest.raises(ConfigError, match=f"of the examples {words}"):
        tuned.step(tuned.init(KEY), source.examples(KEY, 8))
    with pytest.raises(ConfigError, match=words):
        learning_curve(maml, maml.init(KEY).meta, source, steps=(0, 1), episodes=4, seed=0)


def test_a_mean_of_dense_classes_is_checked_once() -> None:
    calls = []

    def mean(logits: Tensor, y: Tensor) -> Tensor:
        calls.append(y.shape)
        return F.cross_entropy(logits.movedim(-1, 1), y)

    loss = criterion(EpisodeSpec("classification", 4, 1, 1, (2,), 4, 4, loss=mean))
    calls.clear()
    logits, y = torch.randn(5, 4, 4, 4), torch.zeros(5, 4, 4, dtype=torch.int64)
    for _ in range(3):
        loss(logits, y)
    assert len(calls) == 3 + 2  # of the check
