"""Ranges of ways and shots: what is drawn, and runs that train and test on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metalearn as ml
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.rng import fold_in
from metalearn.run.run import run_one
from metalearn.tasks import TASKS, Arrays, Glyphs, Sinusoid

KEY = fold_in(3, "variable")


def rows(classes: int = 24, each: int = 12) -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(classes * each, 4)).astype(np.float32)
    y = np.repeat(np.arange(classes), each)
    return x + 3 * y[:, None] % 7, y


def test_ways_and_shots_are_drawn_from_their_ranges() -> None:
    source = Arrays(*rows(), ways=[2, 5], shots=[1, 4], queries=3).build()
    assert (source.spec.ways, source.spec.shots, source.spec.padded) == (5, 4, True)
    support, query, info = source.sample(KEY, 400)
    counts = torch.stack([((support.y == n) * support.weight).sum(1) for n in range(5)], 1)
    ways = (counts > 0).sum(1)
    assert set(ways.tolist()) == {2, 3, 4, 5} and torch.equal(ways, info["ways"])
    assert set(counts[counts > 0].tolist()) == {1.0, 2.0, 3.0, 4.0}
    assert (counts.gather(1, torch.zeros(400, 1, dtype=torch.int64)) > 0).all()
    assert any(len(set(row[row > 0].tolist())) > 1 for row in counts)  # unequal shots
    asked = torch.stack([((query.y == n) * query.weight).sum(1) for n in range(5)], 1)
    assert torch.equal(asked, 3.0 * (counts > 0))
    again = source.sample(KEY, 3, start=7)
    assert torch.equal(again.support.weight, support.weight[7:10])


def test_shots_of_a_regression_are_drawn_once_a_task() -> None:
    source = Sinusoid(shots=[2, 10]).build()
    support, query, _ = source.sample(KEY, 300)
    assert set(support.weight.sum(1).tolist()) == set(map(float, range(2, 11)))
    assert (query.weight == 1).all()


def test_ranges_are_kept_in_a_config_and_may_be_overridden() -> None:
    task = Glyphs.model_validate({"ways": [5, 10], "shots": [1, 3]})
    data = task.model_dump(mode="json")
    assert data["ways"] == [5, 10] and data["shots"] == [1, 3]
    assert Glyphs.model_validate(data) == task != Glyphs(ways=10, shots=3)
    assert Glyphs.model_validate({**data, "ways": 7}).ranges == {"shots": (1, 3)}
    assert Glyphs(ways=10).model_dump()["ways"] == 10


@pytest.mark.parametrize("bad", [[5], [5, 2], [1, 5], [2.0, 5], [2, 5, 7], ["2", 5]])
def test_what_is_no_range_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"\[low, high\]"):
        Glyphs.model_validate({"ways": bad})


def test_a_task_of_functions_has_one_size() -> None:
    with pytest.raises((ConfigError, ValueError)):
        TASKS["quadratics"].model_validate({"source": "quadratics", "shots": [1, 3]}).build()


@pytest.mark.parametrize("executor", ["loop", "vmap", "traced", "chunk"])
def test_executors_agree_on_variable_tasks(executor: str) -> None:
    from metalearn.executors.step import build_train_step

    source = Arrays(*rows(), ways=[2, 5], shots=[1, 3]).build(dtype=torch.float64)
    learner = ml.models.MLP(sizes=(8,), norm="query_batch").build(source.spec)
    method = ml.algorithms.MAML(inner_lr=0.1).build(learner, source.spec)

    def draw(key: Any, count: int, first: int) -> Any:
        return source.sample(key, count, first)

    def run(name: str) -> Any:
        how = {"tasks": 4, "device": "cpu", "executor": name, "chunk": 2}
        made = build_train_step(method, draw, KEY, **how)
        return made.step(method.init(fold_in(0, "init")), made.step_input(0))[0].meta

    found, plain = run(executor), run("vmap")
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["maml", "proto_net", "fine_tune", "reptile"])
def test_a_run_trains_and_tests_on_variable_tasks(tmp_path: Path, method: str) -> None:
    x, y = rows(30)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    task = {"source": "arrays", "path": str(tmp_path / "rows.npz"), "queries": 3}
    data = {
        "experiment": "variable",
        "task": {**task, "ways": [2, 5], "shots": [1, 4]},
        "model": {"name": "mlp", "norm": "query_batch"},
        "method": {"name": method},
        "run": {"meta_steps": 3, "tasks_per_step": 2, "executor": "vmap"},
        "evaluate": {"episodes": 6, "steps": [0, 1]},
    }
    result = run_one(parse(data).experiments[0], tmp_path / "run")
    assert result["task"]["ranges"] == {"ways": [2, 5], "shots": [1, 4]}
    assert result["task"]["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4)
    assert 0 <= result["headline"]["value"] <= 1
    assert ml.load_run(tmp_path / "run").config.task.ranges == {"ways": (2, 5), "shots": (1, 4)}


def test_levels_of_a_loss_may_be_any_positive_number() -> None:
    data = {
        "experiment": "levels",
        "task": {"source": "sinusoid"},
        "evaluate": {"targets": [0.05, 3.0]},
        "model": {"name": "mlp"},
    }
    assert parse(data).experiments[0].evaluate.targets == (0.05, 3.0)
    with pytest.raises(ConfigError, match="twice chance"):
        parse({**data, "task": {"source": "glyphs"}, "model": {}})
