"""Negative log-likelihood and calibration error of a test, against independent computations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import F64, case, episodes
from clusters import Clusters
from run_folders import groups_of, write_rows

from metalearn.compare.compare import line
from metalearn.compare.comparison import Comparison
from metalearn.evaluate.curves import Curve, learning_curve, mean_ci95
from metalearn.evaluate.ensemble import ensemble
from metalearn.in_context import IN_CONTEXT, ConditionalNeuralProcess
from metalearn.losses import BINS, calibration_counts, calibration_error, calibration_floor
from metalearn.models import MLP
from metalearn.results.comparison import write_comparison
from metalearn.results.summary import summary
from metalearn.rng import fold_in, normal
from metalearn.run.final_test import points, write_scores
from metalearn.tasks import Sinusoid
from metalearn.types import Learned, Method


def test_calibration_error_by_hand() -> None:
    """Confidences .9, .9, .6 with one right of the first two, and the third right."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]], dtype=F64)
    y = torch.tensor([0, 1, 1])
    counts = calibration_counts(p.log(), y)
    assert counts.shape == (BINS, 3) and float(counts[:, 0].sum()) == 3
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.6)) / 3
    assert float(calibration_error(counts)) == pytest.approx(expected)
    weighted = calibration_counts(p.log(), y, torch.tensor([1.0, 1.0, 0.0], dtype=F64))
    assert float(calibration_error(weighted)) == pytest.approx(0.4)


def test_counts_of_tasks_are_those_of_each() -> None:
    logits = normal(fold_in(0, "logits"), (4, 2, 7, 3), F64)
    y = torch.arange(7).remainder(3).expand(4, 2, 7)
    together = calibration_counts(logits, y, batch_dims=2)
    alone = calibration_counts(logits[1, 0], y[1, 0])
    torch.testing.assert_close(together[1, 0], alone)


def test_classes_have_their_cross_entropy_and_one_calibration_error_a_point() -> None:
    given, source = case("caml", IN_CONTEXT["caml"]), Clusters("test", 24)
    curve = learning_curve(given.method, given.state().meta, source, (0,), 30, seed=2)
    assert curve.nll is not None and curve.calibration_error is not None
    torch.testing.assert_close(curve.nll, curve.loss)
    assert curve.calibration_error.shape == (1,) and 0 <= float(curve.calibration_error) <= 1
    assert episodes(given).query.x.shape[1] == 12


def test_regression_has_a_likelihood_where_one_is_predicted() -> None:
    source = Sinusoid(shots=5).build(dtype=F64)
    method = ConditionalNeuralProcess(width=8).build(
        MLP(sizes=(8,)).build(source.spec), source.spec
    )
    meta = method.init(fold_in(0, "init")).meta
    curve = learning_curve(method, meta, source, (0,), 8, seed=2)
    batch = source.sample(fold_in(2, "episodes"), 8)
    learned = method.learn(meta, batch.support, batch.query.x, (0,))
    assert learned.log_deviation is not None and curve.nll is not None
    normals = torch.distributions.Normal(learned.predictions, learned.log_deviation.exp())
    expected = -normals.log_prob(batch.query.y.unsqueeze(1)).flatten(2).mean(-1)
    torch.testing.assert_close(curve.nll, expected)
    assert curve.calibration_error is not None and curve.calibration_error.isnan().all()


def with_one_bad_task(method: Method) -> Method:
    """The predictions of the first task of a batch are not finite."""

    def learn(*args: object, **named: object) -> Learned:
        learned = method.learn(*args, **named)
        learned.predictions[0] = float("nan")
        return learned

    return method._replace(learn=learn)


def test_a_task_that_diverged_is_left_out_and_counted() -> None:
    given, source = case("caml", IN_CONTEXT["caml"]), Clusters("test", 24)
    arguments = (given.state().meta, source, (0,), 10)
    whole = learning_curve(given.method, *arguments, seed=2)
    curve = learning_curve(with_one_bad_task(given.method), *arguments, seed=2)
    found = points(curve)
    assert found["diverged"] == found["nll_left_out"] == [0.1]
    assert whole.nll is not None and found["nll"] == [pytest.approx(float(whole.nll[1:].mean()))]
    assert 0 <= found["calibration_error"][0] <= 1
    assert found["nll_ci95"] == pytest.approx(mean_ci95(whole.nll[1:]).tolist())
    assert curve.nll is not None and curve.nll[0].isnan() and curve.nll[1:].isfinite().all()


def test_an_infinite_likelihood_is_left_out_and_counted_too() -> None:
    nothing = torch.zeros(4, 1, dtype=F64)
    nll = torch.tensor([[1.0], [2.0], [float("inf")], [3.0]], dtype=F64)
    curve = Curve((0,), "loss", nothing, nothing, nothing.bool(), nll=nll)
    found = points(curve)
    assert found["nll"] == [2.0] and found["nll_left_out"] == [0.25]


def test_an_ensemble_has_the_deviation_of_its_mixture() -> None:
    source = Sinusoid(shots=5).build(dtype=F64)
    learner = MLP(sizes=(8,)).build(source.spec)
    method = ConditionalNeuralProcess(width=8).build(learner, source.spec)
    metas = [method.init(fold_in(seed, "init")).meta for seed in range(3)]
    batch = source.sample(fold_in(2, "episodes"), 4)
    given = (batch.support, batch.query.x, (0,))
    found = ensemble(method, metas).learn(metas[0], *given)
    members = [method.learn(meta, *given) for meta in metas]
    draws = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3, dtype=F64)),
        torch.distributions.Normal(
            torch.stack([one.predictions for one in members], -1),
            torch.stack([one.log_deviation.exp() for one in members], -1),  # type: ignore[union-attr]
        ),
    )
    assert found.log_deviation is not None
    torch.testing.assert_close(found.predictions, draws.mean)
    torch.testing.assert_close(found.log_deviation.exp(), draws.stddev)


def test_mean_and_interval_are_over_the_tasks_of_every_seed(tmp_path: Path) -> None:
    write_rows(tmp_path, ["proto_net"], seeds=2, episodes=10)
    generator = np.random.default_rng(0)
    column = generator.normal(1, 0.3, (2, 10))
    column[0, 3], column[1, 7] = np.inf, np.nan
    for seed, values in enumerate(column):
        folder = tmp_path / "methods" / "proto_net" / f"seed-{seed}"
        result = json.loads((folder / "result.json").read_text())
        own = values[np.isfinite(values)]
        result["test"] |= {
            "nll": [own.mean()] * 6,
            "nll_ci95": [0.1] * 6,
            "nll_left_out": [0.1] * 6,
        }
        (folder / "result.json").write_text(json.dumps(result))
        scores = dict(np.load(folder / "scores.npz"))
        np.savez(folder / "scores.npz", **scores, nll=np.repeat(values[:, None], 6, 1))
    there = np.isfinite(column).all(0)
    found = summary(groups_of(tmp_path)[0])
    assert found["nll"] == pytest.approx(column[:, there].mean())
    assert found["nll_left_out"] == pytest.approx(0.2)
    half = mean_ci95(torch.from_numpy(column[:, there].mean(0)))
    assert found["nll_ci95"] == pytest.approx(float(half))
    write_comparison(tmp_path)
    assert f"{found['nll']:.3f} without 20 %" in Comparison(tmp_path).table()


def test_scores_of_tasks_that_diverged_are_no_likelihoods(tmp_path: Path) -> None:
    """The file holds what the mean of the test was taken of."""
    ones = torch.ones(3, 1, dtype=F64)
    gone = torch.tensor([[False], [True], [False]])
    write_scores(tmp_path / "scores.npz", Curve((0,), "loss", ones, ones, gone, nll=2 * ones))
    nll = np.load(tmp_path / "scores.npz")["nll"]
    assert np.isnan(nll[1, 0]) and (nll[[0, 2], 0] == 2).all()


@pytest.mark.parametrize(("tasks", "percent"), [(10, 7.6), (20, 5.3), (50, 3.3), (150, 1.9)])
def test_a_calibrated_predictor_has_the_calibration_error_of_its_floor(
    tasks: int, percent: float
) -> None:
    """25 queries per task, 5 classes; labels are drawn from the predictions."""
    generator = torch.Generator().manual_seed(tasks)
    errors, floors = [], []
    for _ in range(30):
        logits = 1.5 * torch.randn(25 * tasks, 5, generator=generator, dtype=F64)
        y = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        counts = calibration_counts(logits, y)
        errors.append(float(calibration_error(counts)))
        floors.append(float(calibration_floor(counts)))
    assert sum(floors) / 30 == pytest.approx(sum(errors) / 30, rel=0.12)
    assert 100 * sum(floors) / 30 == pytest.approx(percent, abs=0.4)


def test_the_floor_of_certain_and_of_missing_predictions() -> None:
    certain = calibration_counts(torch.tensor([[99.0, -99.0]] * 3), torch.tensor([0, 0, 0]))
    assert float(calibration_floor(certain)) == pytest.approx(0, abs=1e-6)
    one = calibration_counts(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    assert float(calibration_floor(one)) == pytest.approx(0.5)
    assert bool(calibration_floor(torch.full((BINS, 3), float("nan"))).isnan())


def test_the_line_of_a_run_has_both_at_the_headline_step() -> None:
    result: dict[str, Any] = {
        "label": "a",
        "seed": 0,
        "headline": {"metric": "accuracy", "value": 0.5, "ci95": 0.01, "step": 5},
        "traits": {"uses_steps": True},
        "episodes": {"count": 600},
        "normalisation": "none",
        "test": {"steps": [0, 5], "nll": [2.0, 1.25], "calibration_error": [0.3, 0.125]},
    }
    assert line(result).endswith("normalisation none, NLL 1.25, calibration error 12.5 %")
    result["test"] = {"steps": [0, 5], "nll": [None, None]}
    assert line(result).endswith("normalisation none")
