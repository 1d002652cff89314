"""Standardised columns, and a network fitted to a prior of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.config.experiment import parse
from metalearn.executors import executor
from metalearn.in_context import PriorFitted
from metalearn.in_context.prior_fitted import discriminant
from metalearn.inner.rules import Adam
from metalearn.models import MLP
from metalearn.padding import FARTHEST, padding_scope, standardise
from metalearn.rng import fold_in, normal
from metalearn.run.run import run_one
from metalearn.tasks import Tables
from metalearn.testing.case import CLOSE
from metalearn.tree import tree_map
from metalearn.types import Batch

F64 = torch.float64
KEY = fold_in(4, "tables")
SMALL: dict[str, Any] = {"width": 8, "columns": [2, 8]}


def test_columns_are_standardised_by_the_support_set() -> None:
    x, other = normal(fold_in(1, "x"), (9, 4), F64) * 3 + 5, normal(fold_in(1, "o"), (6, 4), F64)
    x[:, 2] = 7.0
    z, varies = standardise(x)
    assert varies.tolist() == [True, True, False, True]
    torch.testing.assert_close(z[:, 0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std(correction=0))
    assert (z[:, 2] == 0).all() and (standardise(other, x)[0][:, 2] == 0).all()
    assert standardise(1e6 * other, x)[0].abs().max() == FARTHEST
    weight = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 1], dtype=F64)
    with padding_scope(None, context=weight):
        found = standardise(other, x)[0]
    torch.testing.assert_close(found, standardise(other, x[weight > 0])[0])


def fitted(seed: int = 0, steps: int = 5) -> tuple[Any, Any, Any]:
    """(a method, its meta after some steps, its source) on small tables."""
    source = Tables(ways=[2, 3], shots=4, queries=3, **SMALL).build(dtype=F64)
    component = PriorFitted(width=16, heads=2, layers=2, outer=Adam(lr=3e-3))
    method = component.build(MLP(sizes=()).build(source.spec), source.spec)
    state = method.init(fold_in(seed, "init"))
    for step in range(steps):
        state, _ = method.step(state, source.sample(fold_in(seed, "train", step), 4))
    return method, state.meta, source


def predictions(method: Any, meta: Any, support: Batch, query: Batch) -> torch.Tensor:
    found: torch.Tensor = method.learn(meta, support, query.x, (0,)).predictions
    return found.softmax(-1)


def test_a_prior_fitted_network_ignores_units_and_constant_columns() -> None:
    method, meta, source = fitted()
    support, query, _ = source.sample(KEY, 5)
    one = predictions(method, meta, support, query)
    scale, shift = (normal(fold_in(2, name), (8,), F64) for name in ("scale", "shift"))
    moved = [batch._replace(x=scale.exp() * batch.x + shift) for batch in (support, query)]
    torch.testing.assert_close(one, predictions(method, meta, *moved), rtol=1e-6, atol=1e-9)


def test_a_prior_fitted_network_renames_classes_with_their_labels() -> None:
    method, meta, source = fitted()
    support, query, _ = source.sample(KEY, 5)
    renamed = torch.tensor([2, 0, 1])
    one = predictions(method, meta, support, query)
    two = predictions(method, meta, support._replace(y=renamed[support.y]), query)
    torch.testing.assert_close(one, two[..., renamed], **CLOSE)


def test_scores_of_discriminant_analysis_are_distances() -> None:
    """Half the difference of squared Mahalanobis distances to the class means, by numpy."""
    z, y = normal(fold_in(3, "z"), (12, 5), F64), torch.arange(12) % 3
    z[:, 4] = 0.0  # a column that does not vary
    strength = torch.tensor([-0.7, 0.5], dtype=F64)
    labels = torch.nn.functional.one_hot(y, 4).to(F64)  # of which one is absent
    weight, bias = discriminant(strength, z, labels, None)
    queries = normal(fold_in(3, "q"), (6, 5), F64)
    scores = (queries @ weight + bias).numpy()
    x, q = (0.8**0.5 * one.numpy()[:, :4] for one in (z, queries))  # f / F = 4 / 5
    means = np.stack([x[y.numpy() == n].mean(0) for n in range(3)])
    inside = x - means[y.numpy()]
    ridge = np.exp(-0.7 + 0.5 * np.log(4 / 12))
    inverse = np.linalg.inv(inside.T @ inside / 12 + ridge * np.eye(4))
    apart = q[:, None] - means
    distances = np.einsum("qnf,fg,qng->qn", apart, inverse, apart)
    for n in (1, 2):
        expected = (distances[:, 0] - distances[:, n]) / 2
        np.testing.assert_allclose(scores[:, n] - scores[:, 0], expected, rtol=1e-9)
    assert (scores[:, 3] < -1e3).all()


def test_executors_agree_on_tables() -> None:
    method, _, source = fitted(steps=0)
    episode = source.sample(fold_in(0, "train"), 4)
    found = []
    for how, chunk in (("loop", None), ("vmap", None), ("chunk", 2), ("traced", None)):
        step = executor.make_step(method, how, *([] if chunk is None else [chunk]))
        state, metrics = step(method.init(fold_in(0, "init")), episode)
        found.append((state.meta, metrics))
    for one in found[1:]:
        tree_map(lambda a, b: torch.testing.assert_close(a, b, **CLOSE), found[0], one)


def test_a_run_on_tables_has_scores_by_table(tmp_path: Path) -> None:
    config = {
        "experiment": "tables",
        "task": {"source": "tables", "ways": [2, 10], "shots": [2, 5], "queries": 2},
        "model": {"name": "mlp", "sizes": []},
        "method": {"name": "prior_fitted", "width": 16, "layers": 2},
        "run": {"meta_steps": 2, "tasks_per_step": 2, "executor": "vmap"},
        "evaluate": {
            "task": {"source": "real_tables", "shots": 5, "queries": 3},
            "episodes": 20,
            "steps": [0],
        },
    }
    (experiment,) = parse(config).experiments
    result = run_one(experiment, tmp_path / "run")
    scores = result["by_source"]
    assert sum(one["episodes"] for one in scores.values()) == 20 and len(scores) == 5
    assert all(0 <= value <= 1 for one in scores.values() for value in one["accuracy"])
    assert result["task"]["chance"] == pytest.approx(0.3533, abs=1e-3)
