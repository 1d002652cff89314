"""Several sources in one run, and the test on a source that training left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_sources import Lines

from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.rng import fold_in
from metalearn.run.run import run_one
from metalearn.tasks import Arrays, Mixture, Sinusoid

KEY = fold_in(9, "mixture")
WAVES = {"source": "sinusoid", "amplitude": [1, 1]}


def arrays(offset: float, classes: int = 20) -> Arrays:
    x = np.random.default_rng(0).normal(size=(classes * 8, 3)) + offset
    return Arrays(x, np.repeat(np.arange(classes), 8), ways=3, shots=1, queries=2)


def test_each_task_is_of_one_source_and_all_are_met() -> None:
    source = Mixture([arrays(0.0), arrays(100.0), arrays(200.0)]).build()
    support, query, info = source.sample(KEY, 90)
    of = (support.x.mean((1, 2)) / 100).round().long()
    assert torch.equal(of, info["source"]) and (torch.bincount(of) > 15).all()
    assert torch.equal((query.x.mean((1, 2)) / 100).round().long(), of)
    again = source.sample(KEY, 4, start=11)
    assert torch.equal(again.support.x, support.x[11:15])
    classes = source.spec.num_classes // 3
    assert torch.equal(info["class_ids"] // classes, of.unsqueeze(-1).expand(-1, 3))
    batch = source.examples(KEY, 200)
    assert torch.equal(batch.y // classes, (batch.x.mean(1) / 100).round().long())


def test_hold_out_leaves_a_source_to_the_test() -> None:
    sources = [{**WAVES, "label": "plain"}, {**WAVES, "x": [20, 30], "label": "far"}]
    task = Mixture(sources, hold_out="far", shots=4, queries=3)
    assert task.labels == ["plain", "far"]
    for split in ("train", "valid"):
        assert task.build(split).sample(KEY, 40).support.x.abs().max() <= 5
    test = task.build("test").sample(KEY, 40)
    assert test.support.x.min() >= 20 and test.support.x.shape == (40, 4, 1)
    assert Mixture.model_validate(task.model_dump(mode="json")) == task


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"sources": [{"source": "nowhere"}]}, "'nowhere' is not a source"),
        ({"sources": [{"source": "sinusoid", "shot": 3}]}, "sources.0.*shot"),
        ({"sources": [WAVES], "hold_out": "sinusoid"}, "at least 2 sources"),
        (
            {"sources": [WAVES, {"source": "arrays", "path": "a.csv", "standardise": True}]},
            "sources.1: standardise: .* a mixture cannot standardise them",
        ),
        ({"sources": [WAVES, WAVES], "hold_out": "x"}, "valid: sinusoid, sinusoid-2"),
        ({"sources": [{"source": "mixture", "sources": [WAVES]}]}, "'mixture' is not a source"),
    ],
)
def test_what_cannot_be_mixed_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Mixture(**fields)


def test_sources_of_other_shapes_are_named() -> None:
    task = Mixture([{"source": "sinusoid", "shots": 3}, {"source": "sinusoid", "shots": 4}])
    with pytest.raises(ConfigError, match="shots differs: sinusoid 3, sinusoid-2 4"):
        task.build()
    assert Sinusoid in {type(one) for one in (Sinusoid(),)}


def test_ranges_hold_for_all_sources() -> None:
    source = Mixture([arrays(0.0), arrays(9.0)], ways=[2, 3]).build()
    weight = source.sample(KEY, 50).support.weight
    assert weight is not None and set(weight.sum(1).tolist()) == {2.0, 3.0}


def test_results_have_the_scores_of_each_source(tmp_path: Path) -> None:
    data = {
        "experiment": "mixed",
        "task": {
            "source": "mixture",
            "sources": [{**WAVES, "label": "one"}, {**WAVES, "amplitude": [5, 5], "label": "five"}],
        },
        "model": {"name": "mlp", "sizes": [8]},
        "method": {"name": "maml"},
        "run": {"meta_steps": 2, "tasks_per_step": 4, "executor": "vmap"},
        "evaluate": {"episodes": 40, "steps": [0, 1]},
    }
    result = run_one(parse(data).experiments[0], tmp_path / "run")
    found = result["by_source"]
    assert set(found) == {"one", "five"} and sum(f["episodes"] for f in found.values()) == 40
    mean = sum(f["episodes"] * f["loss"][1] for f in found.values()) / 40
    assert mean == pytest.approx(result["headline"]["value"], rel=1e-4)
    assert found["five"]["loss"][0] > 5 * found["one"]["loss"][0]
    held = {**data, "task": {**data["task"], "hold_out": "five"}}
    result = run_one(parse(held).experiments[0], tmp_path / "held")
    assert set(result["by_source"]) == {"five"} and result["facts"]["sources"] == "one"


def lines() -> dict[str, Lines]:
    return {split: Lines(split) for split in ("train", "valid", "test")}


def test_sizes_of_a_mixture_hold_for_a_source_of_the_user() -> None:
    """Its spec has them, and it has no fields to set: 5 shots and 6 queries."""
    other = Sinusoid(shots=5, queries=6)
    assert Mixture([lines(), other], shots=5, queries=6).build().spec.shots == 5
    task = Mixture([other, lines()], shots=3)
    why = r"sources\.1: its tasks have shots 5, and the mixture sets shots 3 for all sources, but "
    with pytest.raises(ConfigError, match=why + "task_sources has no field shots: omit shots of"):
        task.build()
    stored = Mixture.model_validate(task.model_dump(mode="json"))  # as of a file
    with pytest.raises(ConfigError, match=why):
        stored.build()
    task = Mixture([lines(), other], shots=5)
    assert Mixture.model_validate(task.model_dump(mode="json")).build().spec.shots == 5
    ranged = Mixture([lines(), other], shots=[1, 5]).build()
    assert ranged.spec.padded and ranged.spec.shots == 5


def test_groups_of_a_mixture_are_those_of_all_sources() -> None:
    rows = {"g": np.repeat(np.arange(10), 8), "x": np.zeros(80), "y": np.arange(80.0)}
    task = Arrays(rows, group="g", shots=2, queries=2)
    assert Mixture([task, task]).build("test").groups == 4
    assert Mixture([task, Sinusoid(shots=2, queries=2)]).build("test").groups is None
