"""Methods of tables against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from clusters import Clusters

from metalearn.config.build import build
from metalearn.config.experiment import parse
from metalearn.evaluate.cost_block import learning_cost
from metalearn.models import MLP, Standardised
from metalearn.padding import standardise
from metalearn.rng import fold_in
from metalearn.run.cost import _new_task_entry
from metalearn.run.run import run_one
from metalearn.tasks import RealTables
from metalearn.transfer import GradientBoosting, LogisticRegression
from metalearn.tree import take

F64 = torch.float64
KEY = fold_in(4, "tables")


def test_logistic_regression_on_standardised_columns_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    source = RealTables(tables=("wine",), ways=3, shots=10, queries=4).build("test", dtype=F64)
    learner = Standardised().build(source.spec)
    method = LogisticRegression(normalise=False, iterations=200).build(learner, source.spec)
    meta, episode = method.init(fold_in(0)).meta, source.sample(KEY, 3)
    found = method.learn(meta, episode.support, episode.query.x, (0,)).predictions[:, 0]
    for task in range(3):
        support, query, _ = take(episode, task)
        z, asked = standardise(support.x)[0], standardise(query.x, support.x)[0]
        theirs = linear_model.LogisticRegression(tol=1e-10, max_iter=5000).fit(z, support.y)
        p = torch.from_numpy(theirs.predict_proba(asked))
        torch.testing.assert_close(found[task].softmax(-1), p, rtol=1e-4, atol=1e-5)


def test_gradient_boosting_is_that_of_scikit_learn() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    source = Clusters("test", 24)
    method = GradientBoosting(depth=2).build(MLP().build(source.spec), source.spec)
    support, query, _ = take(source.sample(KEY, 2), slice(0, 2))
    keys = torch.zeros(2, dtype=torch.int64)  # the random state of both
    found = method.learn({}, support, query.x, (0, 1, 4), key=keys).predictions.exp()
    assert found.shape == (2, 3, query.x.shape[1], 3)
    torch.testing.assert_close(found[:, 0], torch.full_like(found[:, 0], 1 / 3))
    for task in range(2):
        made = ensemble.GradientBoostingClassifier(n_estimators=4, max_depth=2, random_state=0)
        made.fit(support.x[task], support.y[task])
        for place, p in ((1, next(made.staged_predict_proba(query.x[task]))), (2, None)):
            p = made.predict_proba(query.x[task]) if p is None else p
            torch.testing.assert_close(found[task, place].numpy(), np.asarray(p), rtol=1e-6, atol=0)


def test_trees_answer_each_query_alone() -> None:
    source = Clusters("test", 24)
    method = GradientBoosting().build(MLP(norm="query_batch").build(source.spec), source.spec)
    support, query, _ = source.sample(KEY, 2)
    together, alone = (
        method.learn({}, support, x, (3,)).predictions for x in (query.x, query.x[:, :1])
    )
    assert torch.equal(together[:, :, :1], alone) and not method.traits.transductive


def test_the_seconds_of_trees_are_those_of_one_pass(tmp_path: Path) -> None:
    """All points are predicted in one pass, and a curve of rounds begins with no cost."""
    pytest.importorskip("sklearn")
    data = {
        "task": {"source": "real_tables", "tables": ["iris"], "ways": 3, "shots": 4, "queries": 2},
        "method": {"name": "gradient_boosting"},
        "run": {"validate": {"every": None}},
        "evaluate": {"steps": [0, 1, 4], "episodes": 3},
    }
    cost = run_one(parse(data).experiments[0], tmp_path / "run")["cost"]
    assert cost["adapt"]["seconds_at_start"] == 0
    seconds = learning_cost(cost, "seconds", [0, 1, 4])
    assert seconds is not None and seconds[0] == 0 and seconds[1] == pytest.approx(seconds[2] / 4)
    parts = build(parse(data).experiments[0])
    whole = cost["predict"] | {"seconds": 6.0}
    evaluate = parse(data).experiments[0].evaluate
    for alone, expected in ((1.9, 1.9), (5.0, 2.0)):  # no more than in the test of 3 tasks
        row, rest = _new_task_entry("predict", whole, None, parts, evaluate, alone)
        assert row["seconds"] == expected and rest == pytest.approx(6 - 3 * expected)


def test_a_task_of_one_class_is_answered_with_it() -> None:
    source = Clusters("test", 24)
    method = GradientBoosting().build(MLP().build(source.spec), source.spec)
    support, query, _ = source.sample(KEY, 1)
    weight = (support.y == 1).to(F64)
    found = method.learn({}, support._replace(weight=weight), query.x, (0, 2)).predictions
    assert (found.argmax(-1) == 1).all()
