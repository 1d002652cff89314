"""Runs of older versions on tables: what they recorded of their data still counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metalearn as ml
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.run.directory import status
from metalearn.storage.files import read_json, write_json, write_yaml
from metalearn.storage.yaml import read_yaml
from metalearn.tasks import Arrays, Mixture

QUICK: dict[str, Any] = {"meta_steps": 1, "episodes": 2, "steps": (0, 1), "executor": "vmap"}
# of tasks of the columns a and b, before names of inputs of data in memory were resolved
OLD_HASH = "42ae08d2c34b41e452baa7f8f9cd8db5f223415edf790d212899ff49998f053c"


def columns(shift: float = 0.0) -> dict[str, Any]:
    """12 shops with 6 rows each."""
    numbers = np.arange(72.0)
    a, b = numbers % 7 + shift, numbers % 5
    return {"a": a, "b": b, "y": a - b, "shop": numbers.astype(np.int64) // 6}


def in_memory(**fields: Any) -> Arrays:
    return Arrays(columns(), group="shop", shots=3, queries=2, **fields)


def interrupt(folder: Path) -> None:
    (folder / "result.json").unlink()


def experiment_of(task: Arrays) -> Any:
    data = {
        "task": task.model_dump(mode="json"),
        "method": {"name": "maml"},
        "model": {"name": "mlp"},
    }
    return parse(data).experiments[0]


def test_resolved_columns_of_data_in_memory_are_not_in_the_hash() -> None:
    task = in_memory()
    experiment = experiment_of(task)
    assert dict(experiment.task)["inputs"] == ("a", "b")
    assert experiment.hash() == OLD_HASH
    stored = parse(experiment.resolved()).experiments[0]  # inputs are listed
    assert stored.hash() == OLD_HASH
    chosen = in_memory(inputs=("b", "a"))
    assert experiment_of(chosen).hash() != OLD_HASH and not experiment.has_hash("other")


def test_a_mixture_leaves_them_out_too() -> None:
    task = Mixture(sources=[in_memory(), in_memory(split_seed=1)])
    data = {"task": task.model_dump(mode="json"), "method": {"name": "maml"}}
    experiment = parse(data | {"model": {"name": "mlp"}}).experiments[0]
    assert [source["inputs"] for source in experiment.resolved()["task"]["sources"]] == 2 * [
        ["a", "b"]
    ]
    hashed = experiment.task.without_implied(experiment.resolved()["task"])
    assert [source["inputs"] for source in hashed["sources"]] == [None, None]


def test_an_old_run_of_data_in_memory_is_finished_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, folder = in_memory(), tmp_path / "run"
    made = {"task": task, "model": ml.models.MLP(sizes=(4,)), "out": folder, **QUICK}
    with monkeypatch.context() as older:
        older.setattr(Arrays, "resolve", lambda self, seed: self)
        ml.train(ml.algorithms.MAML(), **made)
    assert read_yaml(folder / "config.yaml")["task"]["inputs"] is None
    experiment = ml.load_run(folder).config
    assert dict(experiment.task)["inputs"] == ("a", "b")
    assert status(folder, experiment) == "finished"
    interrupt(folder)
    assert status(folder, experiment) == "unfinished"
    assert ml.resume(folder, task=task).state.step == 1


def test_a_config_without_differences_was_not_edited(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    made = {"task": in_memory(), "model": ml.models.MLP(sizes=(4,)), "out": folder, **QUICK}
    ml.train(ml.algorithms.MAML(), **made)
    interrupt(folder)
    environment = read_json(folder / "environment.json")
    write_json(folder / "environment.json", environment | {"config_hash": "of another version"})
    ml.resume(folder)  # said: undo the changes, and named none


def test_hashes_of_addresses_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shift = [0.0]

    def read(path: Path, field: str) -> dict[str, Any]:
        names = np.array([f"shop {n}" for n in columns()["shop"]], dtype=object)
        return {**columns(shift[0]), "shop": names}

    monkeypatch.setattr("metalearn.tasks.arrays.read_columns", read)
    folder = tmp_path / "run"
    task = Arrays("rows.parquet", group="shop", shots=3, queries=2)
    made = {"task": task, "model": ml.models.MLP(sizes=(4,)), "out": folder, **QUICK}
    ml.train(ml.algorithms.MAML(), **made)
    path = folder / "environment.json"
    environment = read_json(path)
    for record in environment["tasks"].values():
        record["data_sha256"] = 64 * "0"
    write_json(path, environment)
    interrupt(folder)
    with pytest.raises(ConfigError, match="was started with data of SHA-256 0000"):
        ml.resume(folder)
    for record in environment["tasks"].values():
        assert record.pop("data_hash") == 2
    write_json(path, environment)
    ml.resume(folder)
    loaded = ml.load_run(folder)
    loaded.source.sample(ml.fold_in(0, "k"), 1)
    assert "SHA-256" not in caplog.text


def test_allowed_changes_of_data_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, files = tmp_path / "run", [tmp_path / "1.npz", tmp_path / "2.npz"]
    for file, shift in zip(files, (0.0, 1.0)):
        np.savez(file, **columns(shift))
    task = Arrays(files[0], group="shop", shots=3, queries=2)
    made = {"task": task, "model": ml.models.MLP(sizes=(4,)), "out": folder, **QUICK}
    ml.train(ml.algorithms.MAML(), **made)
    interrupt(folder)
    config = read_yaml(folder / "config.yaml")
    config["task"]["path"] = config["evaluate"]["task"]["path"] = str(files[1])
    write_yaml(folder / "config.yaml", config)
    with pytest.raises(ConfigError, match="was changed since the run started"):
        ml.resume(folder)
    ml.resume(folder, allow_change=True)
    assert "was started with data of SHA-256" in caplog.text
