"""Tasks, splits and costs that were once computed as something else than what was asked for."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Commands, sinusoid, write
from own_sources import QUICK, Points, by_split
from torch import Tensor
from torch.nn import functional as F

import metalearn as ml
from metalearn.config.build import build
from metalearn.config.experiment import parse
from metalearn.config.misfits import contradictions
from metalearn.config.registry import TABLES
from metalearn.distributed.ranks import RankLost
from metalearn.errors import ConfigError
from metalearn.evaluate.ledger import CostLedger
from metalearn.interop import SourceTaskset
from metalearn.rng import fold_in
from metalearn.run import loop
from metalearn.tasks import Arrays, Landscapes, Mixture, RealTables, Sinusoid
from metalearn.tasks.mixture import MixtureSource

KEY = fold_in(3, "misread")


# padding


def test_a_range_keeps_the_padding_of_its_source() -> None:
    """Three classes of iris in tasks of up to ten, with one to ten shots."""
    source = RealTables(tables=("iris",), ways=10, shots=[1, 10], queries=2).build("test")
    support, query, info = source.sample(KEY, 20)
    assert support.weight is not None and query.weight is not None
    assert (support.weight[support.y >= 3] == 0).all() and (query.weight[query.y >= 3] == 0).all()
    own = (query.weight * (query.y < 3)).sum(1)
    assert torch.equal(own, torch.full((20,), 6.0))
    per_class = torch.stack([support.weight[n].sum() for n in range(20)])
    assert torch.equal(per_class, info["shots"][:, :3].sum(1).to(per_class))


def test_a_taskset_has_no_place_for_padding() -> None:
    with pytest.raises(ConfigError, match="source: has tasks of several sizes"):
        SourceTaskset(RealTables(ways=10, shots=2, queries=2).build(), KEY)


# mixtures


def test_a_mixture_of_test_functions_is_refused() -> None:
    two = [
        {"source": "landscapes", "function": name, "dims": 4} for name in ("powell", "rosenbrock")
    ]
    with pytest.raises(ConfigError, match="sources: test functions are learned one by one"):
        Mixture(two).build()
    assert Mixture(two[:1]).build().spec.objective is not None
    assert Landscapes(function="powell", dims=4).build().spec.objective is not None


def test_sources_with_different_losses_are_no_mixture() -> None:
    one, other = (Sinusoid(shots=2, queries=2).build() for _ in range(2))
    MixtureSource({"a": one, "b": other})
    other.spec = dataclasses.replace(other.spec, loss="huber")
    with pytest.raises(ConfigError, match="loss differs: a None, b huber"):
        MixtureSource({"a": one, "b": other})


def test_every_source_of_a_mixture_has_its_own_label() -> None:
    waves = {"source": "sinusoid", "shots": 2, "queries": 2}
    task = Mixture([{**waves, "label": "sinusoid-2"}, waves, waves, {**waves, "noise": 0.1}])
    assert task.labels == ["sinusoid-2", "sinusoid", "sinusoid-3", "sinusoid-4"]
    assert len(task.build()._sources) == 4


def test_a_size_of_the_mixture_replaces_the_range_of_a_source() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    one = Arrays(x, np.repeat(np.arange(20), 10), ways=[2, 4], shots=1, queries=2)
    assert Mixture([one]).build().spec.padded
    assert not Mixture([one], ways=4).build().spec.padded and one.ranges == {"ways": (2, 4)}


# splits


FILE: dict[str, Any] = {
    "experiment": "form",
    "model": {"name": "conv4", "filters": 4},
    "method": {"name": "proto_net"},
    "evaluate": {"steps": [0], "headline_step": 0},
}


def component(section: dict[str, Any]) -> Any:
    options = {name: value for name, value in section.items() if name != "source"}
    return TABLES["tasks"][section["source"]](**options).resolve(0)


@pytest.mark.parametrize(
    ("task", "test", "named"),
    [
        ({"source": "omniglot"}, {"split_scheme": "lake"}, ["split_scheme"]),
        (
            {"source": "omniglot", "split_scheme": "random", "split_seed": 0},
            {"split_seed": 1},
            ["split_seed"],
        ),
        ({"source": "omniglot"}, {"ways": 20}, []),
        ({"source": "omniglot"}, {"source": "glyphs"}, []),
        ({"source": "image_folder", "path": "a"}, {"fractions": [0, 0, 1]}, ["fractions"]),
        ({"source": "image_folder", "path": "a"}, {"path": "b", "fractions": [0, 0, 1]}, []),
        ({"source": "arrays", "path": "a.csv"}, {"split_seed": 3}, ["split_seed"]),
        ({"source": "tides"}, {"split_scheme": "shift"}, ["split_scheme"]),
    ],
)
def test_a_test_on_another_split_of_the_data_of_training_is_refused(
    task: dict[str, Any], test: dict[str, Any], named: list[str]
) -> None:
    section = test if "source" in test else {**task, **test}
    experiment: Any = SimpleNamespace(
        task=component(task),
        test_task=component(section),
        evaluate=SimpleNamespace(split="test", episodes=1),
    )
    found = contradictions(experiment)
    assert [place for place, _ in found] == [f"evaluate.task.{name}" for name in named]
    assert all("of the training would be in the test" in text for _, text in found)


def test_images_of_training_classes_are_as_they_are_in_the_form_of_the_test() -> None:
    task = {"source": "glyphs", "ways": 3, "shots": 1, "queries": 2}
    parts, plain = (
        build(parse({**FILE, "task": {**task, "augment": changes}}).experiments[0])
        for changes in (["crop"], [])
    )
    assert not torch.equal(parts.train.sample(KEY, 2).query.x, plain.train.sample(KEY, 2).query.x)
    for name in ("train_in_test_form", "valid", "test"):
        found, expected = (getattr(one, name).sample(KEY, 2) for one in (parts, plain))
        assert torch.equal(found.query.x, expected.query.x), name
        assert torch.equal(found.support.x, expected.support.x), name


# sections inside a section


def test_an_overlay_changes_the_named_keys_of_validate_alone() -> None:
    data = sinusoid(run={"validate": {"every": None, "episodes": 60, "patience": None, "keep": 3}})
    data["methods"] = [
        {"name": "maml"},
        {"name": "anil", "run": {"validate": {"episodes": 150}}},
    ]
    del data["method"]
    first, second = parse(data).experiments
    assert second.run.validate == first.run.validate.model_copy(update={"episodes": 150})
    assert second.run.validate.every is None and second.run.validate.keep == 3


def test_another_model_than_the_default_takes_none_of_the_keys_of_the_file() -> None:
    data = sinusoid(task={"source": "glyphs"}, evaluate={"steps": [0]})
    data["model"] = {"norm": "support"}
    data["methods"] = [
        {"name": "proto_net"},
        {"name": "proto_net", "label": "b", "model": {"name": "wide_resnet", "depth": 10}},
        {"name": "proto_net", "label": "c", "model": {"filters": 8}},
    ]
    del data["method"]
    first, second, third = (one.model for one in parse(data).experiments)
    assert (first.name, first.norm) == ("conv4", "support") == (third.name, third.norm)
    assert second.norm == type(second)().norm != "support"


# losses


def steep(p: Tensor, y: Tensor) -> Tensor:
    return 5 * F.cross_entropy(p, y, reduction="none")


class Steep(Points):
    """Points with a loss of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spec = dataclasses.replace(self.spec, loss=steep)


def test_a_loaded_run_learns_by_the_loss_of_its_source(tmp_path: Path) -> None:
    """The inner loop of the run that `train` returns is that of its training."""
    model = ml.models.MLP(sizes=(4,))
    options = {**QUICK, "model": model}
    run = ml.train(
        ml.algorithms.MAML(inner_lr=0.1), task=by_split(Steep), out=tmp_path / "r", **options
    )
    assert callable(run.method.spec.loss)
    episode = by_split(Steep)["test"].sample(KEY, 1)
    support = type(episode.support)(*(None if x is None else x[0] for x in episode.support))
    adapted = run.method.adapt(run.state.meta, support, 1, KEY)
    learner = model.build(run.method.spec)
    grads = torch.func.grad(lambda at: steep(learner.apply(at, support.x), support.y).mean())(
        run.state.meta
    )
    for name, value in run.state.meta.items():
        torch.testing.assert_close(adapted[name], value - 0.1 * grads[name])


# costs


def test_a_tuned_headline_is_paid_for_after_a_resume_too(metalearn: Commands) -> None:
    data = sinusoid(
        method={"name": "scratch", "inner_lr": 0.01},
        run={"meta_steps": 0, "validate": {"every": None, "episodes": 8}},
        evaluate={"headline_step": "tuned", "steps": [0, 1, 3], "episodes": 6},
    )
    file = write(metalearn.folder, "scratch", data)
    done = metalearn("train", file, "--out", "whole")
    assert done.code == 0, done.err
    whole, half = metalearn.folder / "whole", metalearn.folder / "half"
    shutil.copytree(whole, half)
    (half / "result.json").unlink()  # as if it was killed in the final test
    done = metalearn("resume", half)
    assert done.code == 0, done.err
    costs = [json.loads((at / "result.json").read_text())["cost"]["tune"] for at in (whole, half)]
    assert costs[0]["flops"] == costs[1]["flops"] > 0
    assert costs[0]["tasks"] == costs[1]["tasks"]


def test_a_checkpoint_after_a_lost_process_has_the_cost_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven steps since the last checkpoint are in the ledger and in metrics.jsonl."""
    saved: list[Any] = []
    monkeypatch.setattr(loop, "write_checkpoint", lambda job, done, *_: saved.append(done))
    monkeypatch.setattr(loop, "finishes", lambda device, wait: True)
    experiment = parse(sinusoid()).experiments[0]
    parts = build(experiment)
    ledger = CostLedger()
    job: Any = SimpleNamespace(
        experiment=experiment,
        parts=parts,
        ledger=ledger,
        phase="meta_train",
        ranks=SimpleNamespace(is_first=True),
        metrics=tmp_path / "metrics.jsonl",
        folder=tmp_path,
    )
    buffer = [(step, {"query_loss": torch.tensor(float(step))}) for step in (5, 6, 7)]
    state: Any = SimpleNamespace(lanes=None)
    with (
        pytest.raises(RankLost),
        loop._save_if_rank_lost(job, 7, state, (), (7, {"flops": 10.0}, buffer)),
    ):
        raise RankLost("rank 1 was lost")
    spent = ledger.cost()["meta_train"]
    assert saved == [7] and spent["flops"] == 70
    assert spent["tasks"] == 7 * experiment.run.tasks_per_step
    (line,) = (json.loads(text) for text in job.metrics.read_text().splitlines())
    assert (line["step"], line["query_loss"]) == (7, 6.0)
