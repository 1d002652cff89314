"""Every command, in processes of its own: what it writes, what it leaves alone, what it says, its
exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commandline import Commands, console, files_of, refused, sinusoid, write

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.storage import checkpoint

SCHEMA = (
    "schema experiment label method seed config_hash git task episodes normalisation "
    "transductive checkpoint test"
)
PHASES = ["setup", "compile", "tune", "pretrain", "meta_train"]
PHASES += ["search", "retrain", "adapt", "predict"]
COST = (
    "flops flops_elementwise flops_architecture seconds device peak_bytes gradient_steps "
    "examples labels candidates"
)
RUN_DIR = {
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "timing.jsonl",
    "scores.npz",
    "result.json",
}
COMPARED: dict[str, Any] = {
    **sinusoid(method=None, experiment="pair", run={"meta_steps": 6, "seeds": [0, 1]}),
    "methods": [{"name": "maml"}, {"name": "scratch", "label": "alone"}],
}


def strict(text: str) -> Any:
    """JSON without the NaN and Infinity that Python's reader lets through."""

    def no_nan(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    return json.loads(text, parse_constant=no_nan)


def last_state(folder: Path) -> dict[str, torch.Tensor]:
    step = checkpoint.steps_in(folder / "checkpoints")[-1]
    return checkpoint.read(checkpoint.path_of(folder / "checkpoints", step))


@pytest.fixture(scope="module")
def run(metalearn: Commands) -> Path:
    """A finished run, made by the installed console script in a fresh process."""
    target = {"metric": "loss", "value": 1.0}
    file = write(
        metalearn.folder, "first", sinusoid(evaluate={"target": target}, published={"value": 0.5})
    )
    done = console(metalearn.folder, "train", file, "--out", "first")
    assert done.code == 0, done.err
    assert "maml seed 0: loss" in done.out and "run directory: first" in done.out
    return metalearn.folder / "first"


@pytest.fixture(scope="module")
def pair(metalearn: Commands) -> Path:
    """A finished comparison."""
    file = write(metalearn.folder, "pair", COMPARED)
    done = metalearn("compare", file)
    assert done.code == 0, done.err
    return metalearn.folder / "runs" / "pair"


def test_a_run_directory_and_schema_1(run: Path) -> None:
    assert {path.name for path in run.iterdir()} >= RUN_DIR
    result = strict((run / "result.json").read_text())
    assert set(f"{SCHEMA} headline cost".split()) <= set(result) and result["schema"] == 1
    assert set(result["task"]) == {"source", "split", "ways", "shots", "queries", "data_sha256"}
    assert set(result["episodes"]) == {"count", "seed", "fingerprint"}
    assert len(result["episodes"]["fingerprint"]) == 64
    points = ("steps", "accuracy", "accuracy_ci95", "loss", "loss_ci95", "diverged")
    assert set(points) <= set(result["test"]) and result["test"]["steps"] == [0, 1, 3]
    assert result["test"]["accuracy"] is None  # regression has none
    head = {"metric", "step", "value", "ci95", "published", "published_ci95", "source"}
    assert head <= set(result["headline"]) and result["headline"]["published"] == 0.5
    assert set(result["cost"]) == set(PHASES)
    for phase in PHASES:
        assert {*COST.split(), "energy_joules", "tasks"} <= set(result["cost"][phase])
    for phase in ("adapt", "predict"):
        assert result["cost"][phase]["seconds_alone"] > 0
        assert result["cost"][phase]["seconds_batched"] > 0
    spent = result["cost"]["meta_train"]
    # By hand, 5 points through 1-8-1: forward 160 (80 a layer), a gradient 400, its derivative 640;
    # 80 tasks of 1,440.
    assert (spent["gradient_steps"], spent["tasks"], spent["labels"], spent["flops"]) == (
        160,
        80,
        800,
        115_200,
    )
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert [strict(line) for line in (run / name).read_text().splitlines()]
    with np.load(run / "scores.npz") as scores:
        expected = {name: ((20, 3), np.dtype("float32")) for name in ("accuracy", "loss", "nll")}
        assert {name: (scores[name].shape, scores[name].dtype) for name in scores} == expected
        assert scores["loss"].mean(0) == pytest.approx(result["test"]["loss"], rel=1e-5)
    steps = [strict(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 20
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert (resolved["run"]["executor"], resolved["run"]["threads"]) == ("vmap", 1)


def test_a_finished_run_is_reported_and_left_alone(metalearn: Commands, run: Path) -> None:
    before = files_of(run)
    file = metalearn.folder / "first.yaml"
    again, resumed = metalearn("train", file, "--out", run), metalearn("resume", run)
    assert (again.code, resumed.code) == (0, 0)
    assert "finished" in again.err and "finished" in resumed.err and "first" in again.err
    assert files_of(run) == before
    refused(metalearn("train", file, "method.inner_lr=0.5", "--out", run), "first", "other files")
    assert files_of(run) == before


def test_a_dry_run_prints_the_resolved_config_and_writes_nothing(metalearn: Commands) -> None:
    file = write(metalearn.folder, "dry", sinusoid())
    before = files_of(metalearn.folder)
    one = metalearn("train", file, "method.inner_lr=0.3", "--out", "dry", "--dry-run")
    assert one.code == 0 and yaml.safe_load(one.out)["method"]["inner_lr"] == 0.3
    several = metalearn(
        "compare", write(metalearn.folder, "dry", COMPARED), "--out", "dry", "--dry-run"
    )
    expected = ["maml", "alone"]
    assert [data["method"]["label"] for data in yaml.safe_load_all(several.out)] == expected
    ended = metalearn(
        "train", write(metalearn.folder, "dry", sinusoid(task={"shots": 0})), "--dry-run"
    )
    refused(ended, "task.shots")
    (metalearn.folder / "dry.yaml").unlink()
    after = files_of(metalearn.folder)
    assert {name for name in after if not name.startswith(".")} == set(before) - {"dry.yaml"}


def test_what_an_out_may_hold(metalearn: Commands) -> None:
    folder = metalearn.folder / "taken"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    file = write(metalearn.folder, "taken", sinusoid())
    both = write(metalearn.folder, "both", COMPARED)
    for words in (("train", file), ("train", file, "run.seeds=[0, 1]"), ("compare", both)):
        refused(metalearn(*words, "--out", "taken"), "taken", "--out")
    refused(metalearn("train", file, "--out", "taken.yaml"), "taken.yaml")
    refused(metalearn("train", file, "--out", "taken/thesis.txt/below"), "thesis.txt")
    assert files_of(folder) == {"thesis.txt": b"mine"}


def test_several_seeds(metalearn: Commands) -> None:
    file = write(metalearn.folder, "seeds", sinusoid(run={"seeds": [4, 2], "meta_steps": 4}))
    assert metalearn("train", file).code == 0
    folder = metalearn.folder / "runs" / "tiny"
    assert {path.name for path in folder.iterdir()} == {"seed-4", "seed-2"}
    results = [strict((folder / f"seed-{seed}" / "result.json").read_text()) for seed in (4, 2)]
    assert [result["seed"] for result in results] == [4, 2]
    assert results[0]["episodes"] == results[1]["episodes"]
    assert results[0]["headline"]["value"] != results[1]["headline"]["value"]
    more_seeds = metalearn("train", file, "run.seeds=[4, 2, 7]")
    assert more_seeds.code == 0
    assert more_seeds.err.count("skipped") == 2
    assert (folder / "seed-7" / "result.json").exists()


def test_train_and_compare_name_each_other(metalearn: Commands) -> None:
    one, two = write(metalearn.folder, "one", sinusoid()), write(metalearn.folder, "two", COMPARED)
    refused(metalearn("train", two), "metalearn compare", "two.yaml")
    refused(metalearn("compare", one), "metalearn train", "one.yaml")


def test_evaluate_writes_beside_and_never_over(metalearn: Commands, run: Path) -> None:
    before = files_of(run)
    assert metalearn("evaluate", run).code == 0
    other = metalearn(
        "evaluate",
        run,
        "task.shots=3",
        "evaluate.episodes=30",
        "evaluate.seed=9",
        "method.inner_lr=0.2",
    )
    assert other.code == 0, other.err
    same, second = (strict((run / "evaluations" / f"{n}.json").read_text()) for n in (1, 2))
    result = strict(before["result.json"].decode())
    assert same["headline"]["value"] == result["headline"]["value"]
    assert same["episodes"] == result["episodes"]
    assert second["task"]["shots"] == 3 and second["episodes"]["count"] == 30
    assert second["episodes"]["fingerprint"] != result["episodes"]["fingerprint"]
    waves = metalearn(
        "evaluate", run, "task.source=sinusoid", "task.phase=[0, 6.28]", "--out", "elsewhere"
    )
    assert waves.code == 0 and "elsewhere/1.json" in waves.out, waves
    after = files_of(run)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"evaluations/1.json", "evaluations/2.json"}


def test_evaluate_refuses_what_would_change_the_training(metalearn: Commands, run: Path) -> None:
    wrong = (
        "method.inner_steps=3",
        "run.meta_steps=1",
        "model.sizes=[3]",
        "method.name=anil",
        "method.start=x",
    )
    refused(metalearn("evaluate", run, *wrong), *wrong)
    refused(metalearn("evaluate", run, "evaluate.headline_step=tuned"), "evaluate.headline_step")
    refused(metalearn("evaluate", run, "task.source=glyphs"), "task")
    refused(metalearn("evaluate", metalearn.folder), "is not a run directory")
    refused(metalearn("evaluate", "nowhere"), "nowhere")


def test_evaluate_tests_the_checkpoint_that_is_asked_for(metalearn: Commands, run: Path) -> None:
    values = {}
    for which in ("last", "best", "ensemble"):
        done = metalearn("evaluate", run, f"evaluate.checkpoint={which}", "--out", f"which-{which}")
        assert done.code == 0, done.err
        values[which] = strict((metalearn.folder / f"which-{which}" / "1.json").read_text())
        assert values[which]["checkpoint"] == which
    rows = [strict(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = {row["step"]: row["loss"] for row in rows if row.get("split") == "valid"}
    best = min(valid, key=lambda step: valid[step])
    assert strict((run / "result.json").read_text())["checkpoint_step"] == best
    assert (values["last"]["test"] == values["best"]["test"]) == (best == 20)


def test_load_run_of_a_finished_run(run: Path) -> None:
    loaded = ml.load_run(run)
    step = strict((run / "result.json").read_text())["checkpoint_step"]
    assert loaded.config.name == "tiny" and int(loaded.state.step) == step
    episodes = loaded.source.sample(ml.fold_in(5, "own"), 3)
    learned = loaded.method.learn(loaded.state.meta, episodes.support, episodes.query.x, (0, 2))
    assert learned.predictions.shape == (3, 2, 5, 1)
    curve = ml.evaluate.learning_curve(
        loaded.method, loaded.state.meta, loaded.source, (0, 1, 3), 20, seed=1, chunk=10
    )
    assert curve.mean.tolist() == strict((run / "result.json").read_text())["test"]["loss"]
    with pytest.raises(ConfigError, match="is not a run directory"):
        ml.load_run(run.parent)
