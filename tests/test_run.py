"""What a run chooses and carries along: tuning, another run's start, which checkpoint is tested,
the executor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import Commands, files_of, refused, sinusoid, write

import metalearn as ml
from metalearn.config.experiment import parse
from metalearn.run.final_test import describe_result
from metalearn.storage import checkpoint
from metalearn.tree import named_leaves

LOG = {"min": 0.001, "max": 0.2, "distribution": "log_uniform"}


def trained(metalearn: Commands, name: str, **sections: Any) -> Path:
    """The finished run directory of an experiment file; sections as in `sinusoid`, `method`
    whole."""
    method = sections.pop("method", {"name": "maml", "inner_lr": 0.01})
    file = write(metalearn.folder, name, {**sinusoid(method=None, **sections), "method": method})
    done = metalearn("train", file, "--out", name)
    assert done.code == 0, done.err
    return metalearn.folder / name


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def meta_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    named = checkpoint.read(checkpoint.path_of(folder / "checkpoints", step))
    return {name: value for name, value in named.items() if name.startswith("meta.")}


def test_a_field_that_acts_on_new_tasks_is_tuned_on_the_trained_meta(metalearn: Commands) -> None:
    method = {"name": "fine_tune", "inner_lr": 0.05}
    plain = trained(metalearn, "plain", method=method)
    folder = trained(
        metalearn, "late", method={**method, "tune": {"inner_lr": LOG}}, budget={"trials": 4}
    )
    assert sorted(path.name for path in (folder / "tune").iterdir()) == ["best.json", "trials.json"]
    assert all(
        torch.equal(value, meta_of(plain, 20)[name]) for name, value in meta_of(folder, 20).items()
    )
    best = read(folder / "tune" / "best.json")
    # the file's own is first
    assert len(best["trials"]) == 4 and best["trials"][0]["parameters"] == {"inner_lr": 0.05}
    top = max(best["trials"], key=lambda trial: trial["score"])
    assert best["parameters"] == top["parameters"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["method"]["inner_lr"] == top["parameters"]["inner_lr"]
    result, other = read(folder / "result.json"), read(plain / "result.json")
    assert result["tuned"]["inner_lr"] == top["parameters"]["inner_lr"]
    assert (
        result["cost"]["pretrain"]["gradient_steps"]
        == other["cost"]["pretrain"]["gradient_steps"]
        == 20
    )
    assert (
        result["cost"]["tune"]["gradient_steps"]
        == other["cost"]["tune"]["gradient_steps"] + 4 * 8 * 3
    )
    experiment = parse(yaml.safe_load((metalearn.folder / "late.yaml").read_text())).experiments[0]
    assert result["config_hash"] == experiment.hash()
    before = files_of(folder)
    assert metalearn("train", metalearn.folder / "late.yaml", "--out", folder).code == 0
    assert files_of(folder) == before


def test_a_field_that_acts_in_training_is_tuned_by_whole_trainings(metalearn: Commands) -> None:
    tune = {"inner_lr": LOG, "inner_steps": {"min": 1, "max": 3}}
    folder = trained(
        metalearn, "early", method={"name": "maml", "tune": tune}, budget={"trials": 3}
    )
    names = {path.name for path in (folder / "tune").iterdir()}
    assert names == {"0", "1", "2", "training.json", "trials.json"}
    found = read(folder / "tune" / "training.json")
    for number, trial in enumerate(found["trials"]):
        config = yaml.safe_load((folder / "tune" / str(number) / "config.yaml").read_text())
        assert {name: config["method"][name] for name in tune} == trial["parameters"]
        assert isinstance(trial["parameters"]["inner_steps"], int)
    best = max(range(3), key=lambda number: found["trials"][number]["score"])
    mine, its = meta_of(folder, 20), meta_of(folder / "tune" / str(best), 20)
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    cost = read(folder / "result.json")["cost"]
    steps = [20 * 4 * (trial["parameters"]["inner_steps"] + 1) for trial in found["trials"]]
    assert cost["tune"]["gradient_steps"] >= sum(steps) and cost["tune"]["seconds"] > 0
    assert cost["meta_train"]["gradient_steps"] == steps[best]


def test_a_trial_that_diverges_scores_worst_and_does_not_end_the_run(metalearn: Commands) -> None:
    method = {
        "name": "maml",
        "inner_lr": 1e30,
        "inner_steps": 5,
        "tune": {"inner_lr": {"values": [1e30, 0.01]}},
    }
    folder = trained(metalearn, "wild", method=method, budget={"trials": 4})
    found = read(folder / "tune" / "training.json")
    assert found["parameters"] == {"inner_lr": 0.01}
    assert {
        trial["score"] is None
        for trial in found["trials"]
        if trial["parameters"]["inner_lr"] == 1e30
    } == {True}


def test_the_headline_step_is_chosen_on_validation_tasks_and_written_down(
    metalearn: Commands,
) -> None:
    settings = {"headline_step": "tuned", "steps": [0, 1, 3, 50]}
    folder = trained(
        metalearn, "headline", evaluate=settings, method={"name": "scratch", "inner_lr": 0.02}
    )
    best = read(folder / "tune" / "best.json")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    result = read(folder / "result.json")
    assert (
        best["headline_step"]
        == config["evaluate"]["headline_step"]
        == result["headline"]["step"]
        > 0
    )
    cost = result["cost"]
    assert cost["tune"]["gradient_steps"] == 2 * 8 * 50  # a look at valid tasks, and the choice
    assert cost["setup"]["gradient_steps"] == 8 * 50  # a look at training tasks
    assert result["tuned"]["headline_step"] == best["headline_step"]


def test_which_checkpoint_is_tested(metalearn: Commands) -> None:
    run = {"validate": {"every": 5, "episodes": 8, "keep": 2}}
    method = {"name": "maml", "outer": {"lr": 0.3}}  # so fast that the last is not the best
    folders = {
        which: trained(
            metalearn, f"which-{which}", run=run, method=method, evaluate={"checkpoint": which}
        )
        for which in ("last", "best", "ensemble")
    }
    rows = [
        json.loads(line) for line in (folders["best"] / "metrics.jsonl").read_text().splitlines()
    ]
    valid = {row["step"]: row["loss"] for row in rows if row.get("split") == "valid"}
    order = sorted(valid, key=lambda step: valid[step])
    assert list(valid) == [5, 10, 15, 20] and order[0] != 20
    results = {which: read(folder / "result.json") for which, folder in folders.items()}
    steps = {which: result["checkpoint_step"] for which, result in results.items()}
    assert steps == {"last": 20, "best": order[0], "ensemble": order[0]}
    assert set(order[:2]) <= set(checkpoint.steps_in(folders["best"] / "checkpoints"))
    losses = {which: result["test"]["loss"] for which, result in results.items()}
    assert losses["last"] != losses["best"] != losses["ensemble"]
    # `evaluate` tests what the run tested, and the other choices on request.
    again = folders["ensemble"] / "evaluations"
    assert metalearn("evaluate", folders["ensemble"]).code == 0
    assert read(again / "1.json")["test"]["loss"] == losses["ensemble"]
    for number, which in ((2, "last"), (3, "best")):
        assert metalearn("evaluate", folders["ensemble"], f"evaluate.checkpoint={which}").code == 0
        assert read(again / f"{number}.json")["test"]["loss"] == losses[which]


def test_best_without_a_validation_is_last(metalearn: Commands) -> None:
    folder = trained(metalearn, "unvalidated", run={"validate": {"every": None}})
    assert read(folder / "result.json")["checkpoint_step"] == 20
    assert '"kind": "valid"' not in (folder / "metrics.jsonl").read_text()


def test_a_start_from_another_run_brings_its_meta_and_its_cost(metalearn: Commands) -> None:
    (metalearn.folder / "runs").mkdir()
    first = trained(metalearn, "runs/first")
    before = read(first / "result.json")
    for start in ("runs/first", "first", str(first)):
        method = {"name": "maml", "inner_lr": 0.02, "start": start}
        folder = trained(metalearn, f"from-{len(start)}", method=method, run={"meta_steps": 0})
        loaded = ml.load_run(folder)
        assert {
            f"meta.{name}": value.tolist()
            for name, value in named_leaves(loaded.state.meta).items()
        } == {
            name: value.tolist()
            for name, value in meta_of(first, before["checkpoint_step"]).items()
        }
        cost = read(folder / "result.json")["cost"]
        assert (
            cost["meta_train"]["gradient_steps"]
            == before["cost"]["meta_train"]["gradient_steps"]
            == 160
        )
        assert cost["meta_train"]["seconds"] >= before["cost"]["meta_train"]["seconds"]
    more = trained(metalearn, "more", method={"name": "reptile", "start": "first"})
    assert read(more / "result.json")["cost"]["meta_train"]["labels"] > 800


def test_starts_that_cannot_be(metalearn: Commands) -> None:
    trained(metalearn, "wide", model={"sizes": [5]})
    trained(metalearn, "none", method={"name": "scratch"})
    for start, word in (("nowhere", "nowhere"), ("wide", "another model"), ("none", "none")):
        file = write(metalearn.folder, "bad-start", sinusoid(method={"start": start}))
        refused(metalearn("train", file, "--out", "bad-start"), word)
        assert not (metalearn.folder / "bad-start").exists()


def test_a_comparison_starts_one_method_from_another(metalearn: Commands) -> None:
    data = sinusoid(method=None, run={"meta_steps": 5, "seeds": [0, 1]})
    items = [{"name": "maml", "label": "base"}, {"name": "reptile", "start": "base"}]
    done = metalearn(
        "compare", write(metalearn.folder, "chain", {**data, "methods": items}), "--out", "chain"
    )
    assert done.code == 0, done.err
    for seed in (0, 1):
        methods = metalearn.folder / "chain" / "methods"
        base, after = (
            read(methods / name / f"seed-{seed}" / "result.json") for name in ("base", "reptile")
        )
        assert after["cost"]["meta_train"]["labels"] > base["cost"]["meta_train"]["labels"] > 0


@pytest.mark.parametrize("executor", ["loop", "chunk", "auto"])
def test_executors_agree_and_auto_writes_down_what_it_chose(
    metalearn: Commands, executor: str
) -> None:
    run = {"executor": executor, "chunk": 3, "dtype": "float64"}
    folder = trained(metalearn, executor, run=run)
    other = metalearn.folder / "vmap64"
    other = other if other.exists() else trained(metalearn, "vmap64", run={"dtype": "float64"})
    chosen = yaml.safe_load((folder / "config.yaml").read_text())["run"]["executor"]
    assert chosen == (executor if executor != "auto" else "chunk")  # a short run of pieces of 3
    mine, its = meta_of(folder, 20), meta_of(other, 20)
    assert all(torch.allclose(mine[name], its[name], rtol=1e-10, atol=1e-12) for name in mine)
    assert read(folder / "result.json")["config_hash"] != ""


def test_describe_result_says_the_published_value_of_the_headline_step() -> None:
    from metalearn.config.build import build

    published = {"value": 0.9, "ci95": 0.1, "curve": {1: 0.67, 3: 0.4}, "source": "a table"}
    experiment = parse(sinusoid(published=published, evaluate={"headline_step": 1})).experiments[0]
    parts = build(experiment)
    state = parts.method.init(ml.fold_in(0, "init"))
    curve = ml.evaluate.learning_curve(
        parts.test_method, state.meta, parts.test, (0, 1, 3), 4, seed=1
    )
    head = describe_result(experiment, 0, parts, curve)["headline"]
    expected = (1, 0.67, 0.1, "a table")
    assert (head["step"], head["published"], head["published_ci95"], head["source"]) == expected
