"""Inputs of own rows with mean 0 and deviation 1, in training, test and prediction alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from messages import collect_messages

import metalearn as ml
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.tasks import Arrays
from metalearn.tasks.tables.standardise import moments, restore, standardise


def readings(offset: float = 1000.0) -> dict[str, Any]:
    """Columns of groups: a large input, a constant one, and a value."""
    rng = np.random.default_rng(3)
    sensor = np.repeat(np.arange(20), 8)
    a = offset + 50 * rng.normal(size=160)
    return {"a": a, "b": np.full(160, 7.0), "sensor": sensor, "y": (a - offset) / 50 + sensor}


def test_inputs_are_standardised_by_the_training_split(tmp_path: Path) -> None:
    named: dict[str, Any] = {"group": "sensor", "shots": 3, "queries": 2}
    plain, task = Arrays(readings(), **named), Arrays(readings(), standardise=True, **named)
    raw = {split: plain.build(split, dtype=torch.float64)._x for split in ("train", "test")}
    mean, deviation = raw["train"].mean(0), raw["train"].std(0, correction=0)
    assert deviation[1] == 0
    for split, x in raw.items():
        found = task.build(split, dtype=torch.float64)._x
        torch.testing.assert_close(found[:, 0], (x[:, 0] - mean[0]) / deviation[0])
        assert (found[:, 1] == 0).all()
    resolved = task.resolve(0)
    assert resolved.moments is not None
    assert resolved.moments[0] == pytest.approx(mean.tolist())
    assert resolved.moments[1] == pytest.approx([float(deviation[0]), 1.0])
    same = resolved.build("test", dtype=torch.float64)._x
    torch.testing.assert_close(same, task.build("test", dtype=torch.float64)._x, rtol=0, atol=0)
    with pytest.raises(ConfigError, match="moments: are of 2 columns, and rows have"):
        resolved.model_copy(update={"inputs": ("a",)}).build()
    with pytest.raises(ConfigError, match="standardise: needs columns of numbers"):
        Arrays(np.zeros((160, 2, 2)), np.repeat(np.arange(20), 8), standardise=True).build()


def test_values_far_from_unit_size_are_named_once() -> None:
    lines = collect_messages()
    columns = readings(2000.0) | {"y": 60 + readings()["y"]}
    for _ in range(2):
        task = Arrays(columns, inputs=["a"], group="sensor", shots=3, queries=2)
        task.build("train"), task.build("test")
    inputs, targets = lines
    assert "inputs have mean 2e+03 and std" in inputs and "standardise: true" in inputs
    assert "targets have mean 7" in targets and "standardise_targets: true" in targets
    Arrays({**columns, "y": columns["y"] / 60}, standardise=True, group="sensor", shots=3).build()
    assert len(lines) == 2


def test_a_run_standardises_what_it_is_given(tmp_path: Path) -> None:
    """New tasks, files and exported programs take raw inputs; tests share training's moments."""
    named: dict[str, Any] = {"group": "sensor", "shots": 3, "queries": 2, "standardise": True}
    run = ml.train(
        ml.algorithms.MAML(inner_lr=0.1),
        task=Arrays(readings(), **named),
        model=ml.models.MLP(sizes=(8,)),
        meta_steps=3,
        episodes=4,
        steps=(0, 2),
        executor="vmap",
        out=tmp_path / "run",
    )
    moments = run.config.task.moments
    assert moments is not None and run.config.test_task.moments == moments
    x = np.stack([readings()["a"][:6], np.full(6, 7.0)], 1)
    y = readings()["y"][:6, None]
    task = run.adapt(x[:4], y[:4], steps=2)
    same = torch.as_tensor((x - moments[0]) / moments[1], dtype=torch.float32)
    torch.testing.assert_close(task.support.x, same[:4])
    expected = run.method.predict(run.state.meta, task.item, task.support, same[4:])
    torch.testing.assert_close(task.outputs(x[4:]), expected.detach())
    program = torch.jit.load(task.export(tmp_path / "task.pt"))
    given = torch.as_tensor(x[4:], dtype=torch.float32)
    torch.testing.assert_close(program(given), expected.detach())
    with pytest.raises(ConfigError, match="inputs of this run are standardised"):
        task.module()
    elsewhere = Arrays(readings(5000.0), **named).save(tmp_path / "later.npz")
    data = run.config.resolved()
    data["evaluate"]["task"] |= {"path": str(elsewhere), "data_sha256": None}
    assert parse(data).experiments[0].test_task.moments == moments


def test_targets_are_standardised_and_answers_have_the_units_of_the_data(tmp_path: Path) -> None:
    """Two targets of unequal size; losses are in deviations of the training split."""
    rows = readings()
    two = np.stack([300 + 40 * rows["y"], -2 + 0.01 * rows["a"]], 1)
    columns = {"a": (rows["a"] - 1000) / 50, "sensor": rows["sensor"], "y": two}
    named: dict[str, Any] = {"group": "sensor", "shots": 3, "queries": 2, "inputs": ["a"]}
    plain, task = Arrays(columns, **named), Arrays(columns, standardise_targets=True, **named)
    raw = plain.build("train", dtype=torch.float64)._y
    mean, deviation = raw.mean(0), raw.std(0, correction=0)
    for split in ("train", "test"):
        found = task.build(split, dtype=torch.float64)
        y = plain.build(split, dtype=torch.float64)._y
        torch.testing.assert_close(found._y, (y - mean) / deviation)
        assert found.facts["target_deviations"] == pytest.approx(deviation.tolist())
    run = ml.train(
        ml.algorithms.MAML(inner_lr=0.1),
        task=task,
        model=ml.models.MLP(sizes=(8,)),
        meta_steps=3,
        episodes=4,
        steps=(0, 2),
        executor="vmap",
        out=tmp_path / "run",
    )
    moments = run.config.task.target_moments
    assert moments is not None and run.config.test_task.target_moments == moments
    assert run.record().result["facts"]["target_deviations"] == list(moments[1])
    x, y = columns["a"][:6, None], two[:6]
    learned = run.adapt(x[:4], y[:4], steps=2)
    expected = torch.as_tensor((y[:4] - moments[0]) / moments[1], dtype=torch.float32)
    torch.testing.assert_close(learned.support.y, expected)
    query = torch.as_tensor(x[4:], dtype=torch.float32)
    answers = run.method.predict(run.state.meta, learned.item, learned.support, query).detach()
    found = answers * torch.tensor(moments[1]) + torch.tensor(moments[0])
    torch.testing.assert_close(learned.outputs(query), found)
    torch.testing.assert_close(torch.jit.load(learned.export(tmp_path / "task.pt"))(query), found)
    assert np.abs(learned.predict(x[4:]) - mean.numpy()).max() < 10 * float(deviation.max())
    with pytest.raises(ConfigError, match="targets of this run are standardised"):
        learned.module()
    with pytest.raises(ConfigError, match=r"y: must have shape \[B, 2\]"):
        run.adapt(x[:4], y[:4, 0])


def test_targets_of_classes_are_not_standardised() -> None:
    with pytest.raises(ValueError, match="set group, the column of tasks"):
        Arrays(np.zeros((20, 2)), np.arange(20) % 5, standardise_targets=True)


def test_standardise_leaves_older_hashes_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.random.rand(120, 2), y=np.repeat(np.arange(20), 6))
    section = {"source": "arrays", "path": str(tmp_path / "rows.npz"), "ways": 3}
    plain = parse({"task": section, "method": {"name": "maml"}}).experiments[0]
    off = parse({"task": {**section, "standardise": False}, "method": {"name": "maml"}})
    on = parse({"task": {**section, "standardise": True}, "method": {"name": "maml"}})
    assert off.experiments[0].hash() == plain.hash() != on.experiments[0].hash()
    assert parse(on.experiments[0].resolved()).experiments[0].hash() == on.experiments[0].hash()


def test_a_constant_is_one_up_to_rounding() -> None:
    """The mean of 160 times 0.1 is not 0.1, so that the deviation is not 0."""
    x = np.stack([np.full(160, 0.1), np.arange(160.0)], 1)
    assert x[:, 0].std() > 0
    means, deviations = moments(x, np.arange(160))
    assert deviations == pytest.approx((1.0, x[:, 1].std())) and means[0] == pytest.approx(0.1)


def test_targets_far_from_zero_keep_their_differences() -> None:
    """Seconds since 1970: float32 has one number for all of them."""
    y = 1.7e9 + np.arange(4.0)[:, None]
    found = moments(y, np.arange(4))
    assert found[1] == pytest.approx((y.std(),))
    scaled = standardise(torch.as_tensor(y), found).float()
    torch.testing.assert_close(restore(scaled, found), torch.as_tensor(y), rtol=0, atol=1e-5)
    small = moments(np.arange(4.0)[:, None], np.arange(4))
    assert restore(scaled, small).dtype == torch.float32


def test_a_float32_constant_of_own_rows_is_one_up_to_its_rounding() -> None:
    tenth = np.array([999.99994, 1000, 1000.00006], np.float32)[np.arange(160) % 3]
    columns = {**readings(), "b": tenth}
    task = Arrays(columns, standardise=True, group="sensor", shots=3, queries=2).resolve(0)
    assert task.moments is not None and task.moments[1][1] == 1
    counts = 1e6 + np.arange(2.0)[:, None]
    assert moments(counts, np.arange(2))[1] == (0.5,)


@pytest.mark.parametrize("deviation", [0.0, -1.0])
def test_given_deviations_are_above_zero(deviation: float) -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 1)), np.arange(40.0)
    given = ((0.0,), (deviation,))
    source = Arrays(x, y, group=np.arange(40) // 8, standardise=True, moments=given)
    with pytest.raises(ConfigError, match="moments: must be means, and standard deviations > 0"):
        source.build()
