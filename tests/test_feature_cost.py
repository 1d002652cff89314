"""What features of a frozen network cost, in the phase that asks for them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from test_pretrained import experiment, source, tiny
from torch import Tensor, nn

import metalearn as ml
from metalearn.cli import commands
from metalearn.distributed.curve import TaskSet
from metalearn.evaluate.fingerprint import fingerprint
from metalearn.evaluate.flops import cached_count
from metalearn.evaluate.ledger import CostLedger
from metalearn.models import Pretrained
from metalearn.rng import fold_in
from metalearn.run.features import features_once

__all__ = ["tiny"]  # the fixture


def result_of(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def test_features_take_the_time_of_the_phase_that_asks_for_them() -> None:
    tasks = source()
    learner = Pretrained(backbone="tiny", size=16).build(tasks.spec)
    network = learner.frozen
    assert network is not None
    inner = network.network

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Any:
            time.sleep(0.1)
            return inner(x)

    network.network = Slow()
    parts: Any = SimpleNamespace(learner=learner, device="cpu", valid=tasks)
    ledger = CostLedger()
    with ledger.span("tune"), features_once(parts, TaskSet("valid", 2, 0), 2, ledger, phase="tune"):
        looked_up = cached_count(learner.features, {}, tasks.examples(fold_in(2, "x"), 4).x)
        key_of_look_ups = fingerprint(learner)
    assert looked_up.matrix == 0 and fingerprint(learner) != key_of_look_ups
    found = ledger.cost()
    assert found["tune"]["seconds"] > 0.1 and found["setup"]["seconds"] == 0
    assert found["tune"]["flops"] > 0 == found["setup"]["flops"]
    assert cached_count(learner.features, {}, tasks.examples(fold_in(2, "x"), 4).x).matrix > 0


def test_a_resumed_run_pays_for_the_images_of_a_tuned_headline(tmp_path: Path) -> None:
    data = experiment(name="linear_probe")
    data["run"]["validate"] |= {"episodes": 6}
    data["evaluate"] |= {"steps": [0, 1], "headline_step": "tuned"}
    ml.train(data, out=tmp_path / "run")
    whole = result_of(tmp_path / "run")["cost"]["tune"]
    (tmp_path / "run" / "result.json").unlink()  # as if it was killed in the final test
    commands.resume(tmp_path / "run", allow_change=False)
    again = result_of(tmp_path / "run")["cost"]["tune"]
    assert again["flops"] == whole["flops"] > 0 and again["examples"] == whole["examples"]


def test_a_run_pays_for_its_validation_images_whatever_is_stored(tmp_path: Path) -> None:
    """Once, not per trial, and also where a run before it stored their features."""
    data = experiment(name="linear_probe", tune={"inner_lr": [0.01, 0.1]})
    data |= {"budget": {"trials": 2}}
    data["run"]["validate"] |= {"episodes": 6}
    data["evaluate"] |= {"steps": [0, 1], "headline_step": 1}
    for name in ("first", "second"):
        ml.train(data, out=tmp_path / name)
    first, second = (result_of(tmp_path / name)["cost"] for name in ("first", "second"))
    setup, tune = first["setup"], first["tune"]
    image = setup["flops"] / setup["examples"]
    files = (tmp_path / "data" / "features").iterdir()
    images = sum(len(np.load(file)["digests"]) for file in files) - setup["examples"]
    assert 0 < tune["flops"] - images * image < images * image, "the rest is of heads"
    assert tune["flops"] == second["tune"]["flops"], "equal work costs the same in every run"
    assert tune["examples"] == second["tune"]["examples"]
    assert second["setup"]["flops"] == 0
    for phase in ("adapt", "predict"):
        assert first[phase]["flops"] == second[phase]["flops"] > image
