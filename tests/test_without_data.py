"""Finished runs where their training data are gone: loading, testing on other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metalearn as ml
from metalearn.cli.commands import evaluate
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.run.run import run_one


def rows(path: Path, classes: int, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    y = np.repeat([f"c{n:02}" for n in range(classes)], 8)
    np.savez(path, x=generator.normal(size=(8 * classes, 3)), y=y)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run whose data are gone."""
    path = rows(tmp_path / "rows.npz", 12)
    data: dict[str, Any] = {
        "experiment": "gone",
        "task": {"source": "arrays", "path": str(path), "ways": 2, "queries": 3},
        "method": {"name": "fine_tune"},
        "run": {"meta_steps": 2, "examples_per_step": 4, "executor": "vmap"},
        "evaluate": {"episodes": 4, "steps": [0, 1]},
    }
    run_one(parse(data).experiments[0], tmp_path / "run")
    path.rename(tmp_path / "moved.npz")
    return tmp_path / "run"


def test_a_run_loads_without_its_data(run: Path) -> None:
    loaded = ml.load_run(run)
    assert loaded.source.spec.x_shape == (3,) and loaded.source.spec.num_classes == 2
    task = loaded.adapt(np.zeros((4, 3)), ["a", "b", "b", "a"])
    assert set(task.predict(np.ones((5, 3)))) <= {"a", "b"}
    with pytest.raises(ConfigError, match=r"rows.npz is not a file"):
        loaded.source.sample(ml.fold_in(0, "k"), 1)
    (run.parent / "moved.npz").rename(run.parent / "rows.npz")
    assert loaded.source.sample(ml.fold_in(0, "k"), 2).support.x.shape == (2, 2, 3)


def test_a_moved_file_is_named_anew(run: Path) -> None:
    evaluate(run, [f"task.path={run.parent / 'moved.npz'}"], None)
    made = json.loads((run / "evaluations" / "1.json").read_text())
    first = json.loads((run / "result.json").read_text())
    assert made["test"] == first["test"] and made["facts"] == first["facts"]


def test_only_the_split_that_is_tested_is_built(run: Path, tmp_path: Path) -> None:
    two = rows(tmp_path / "two.npz", 2, seed=1)
    with pytest.raises(ConfigError, match="the test split has 0 classes"):
        evaluate(run, [f"task.path={two}"], None)
    evaluate(run, [f"task.path={two}", "task.fractions=[0,0,1]"], None)
    made = json.loads((run / "evaluations" / "1.json").read_text())
    assert made["task"]["ways"] == 2 and made["task"]["split"] == "test"


def test_data_of_another_form_are_refused(run: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 8)
    np.savez(tmp_path / "rows.npz", x=generator.normal(size=(96, 5)), y=y)
    with pytest.raises(ConfigError, match=r"x_shape \(3,\) -> \(5,\)"):
        ml.load_run(run).source.examples(ml.fold_in(0, "k"), 3)


def test_classes_that_training_has_seen_test_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [f"task.path={run.parent / 'moved.npz'}", "evaluate.checkpoint=last"]
    ml.evaluate_run(run, [*new, "evaluate.split=valid", "task.fractions=[0,1,0]"])
    monkeypatch.setattr(ml.tasks.Arrays, "trains_on_validation", property(lambda self: True))
    ml.evaluate_run(run, new)
    for wrong, place in (("evaluate.split=valid", "split"), ("evaluate.checkpoint=best", "check")):
        with pytest.raises(ConfigError, match=rf"evaluate\.{place}.*training"):
            ml.evaluate_run(run, [*new, wrong])
    other = ["task.source=real_tables", "evaluate.split=valid"]
    with pytest.raises(ConfigError) as error:  # of other data, whatever else does not fit
        ml.evaluate_run(run, [*other, "evaluate.checkpoint=last"])
    assert "training uses its classes" not in str(error.value)
