"""Every command, in processes of its own: what it writes, what it leaves alone, what it says, its
exit code.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commandline import Commands, commands_in, console, files_of, refused, sinusoid, write

import metalearn as ml
from metalearn.errors import ConfigError
from metalearn.storage import checkpoint
from metalearn.tree import named_leaves

SCHEMA = (
    "schema experiment label method seed config_hash git task episodes normalisation "
    "transductive checkpoint test"
)
PHASES = ["setup", "tune", "pretrain", "meta_train", "search", "retrain", "adapt", "predict"]
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
def metalearn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands_in(tmp_path_factory.mktemp("cli")) as commands:
        yield commands


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
    assert (
        set(result["episodes"]) == {"count", "seed", "fingerprint"}
        and len(result["episodes"]["fingerprint"]) == 64
    )
    points = ("steps", "accuracy", "accuracy_ci95", "loss", "loss_ci95", "diverged")
    assert set(points) <= set(result["test"]) and result["test"]["steps"] == [0, 1, 3]
    assert result["test"]["accuracy"] is None  # regression has none
    head = {"metric", "step", "value", "ci95", "published", "published_ci95", "source"}
    assert head <= set(result["headline"]) and result["headline"]["published"] == 0.5
    assert set(result["cost"]) == set(PHASES)
    for phase in PHASES:
        assert {*COST.split(), "energy_joules", "tasks"} <= set(result["cost"][phase])
    for phase in ("adapt", "predict"):
        assert (
            result["cost"][phase]["seconds_alone"] > 0
            and result["cost"][phase]["seconds_batched"] > 0
        )
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
        assert {name: (scores[name].shape, scores[name].dtype) for name in scores} == {
            name: ((20, 3), np.dtype("float32")) for name in ("accuracy", "loss")
        }
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
    refused(
        metalearn("train", file, "method.inner_lr=0.5", "--out", run), "first", "something else"
    )
    assert files_of(run) == before


def test_a_dry_run_prints_the_resolved_config_and_writes_nothing(metalearn: Commands) -> None:
    file = write(metalearn.folder, "dry", sinusoid())
    before = files_of(metalearn.folder)
    one = metalearn("train", file, "method.inner_lr=0.3", "--out", "dry", "--dry-run")
    assert one.code == 0 and yaml.safe_load(one.out)["method"]["inner_lr"] == 0.3
    several = metalearn(
        "compare", write(metalearn.folder, "dry", COMPARED), "--out", "dry", "--dry-run"
    )
    assert [data["method"]["label"] for data in yaml.safe_load_all(several.out)] == [
        "maml",
        "alone",
    ]
    refused(
        metalearn(
            "train", write(metalearn.folder, "dry", sinusoid(task={"shots": 0})), "--dry-run"
        ),
        "task.shots",
    )
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
    grown = metalearn("train", file, "run.seeds=[4, 2, 7]")
    assert (
        grown.code == 0
        and grown.err.count("left alone") == 2
        and (folder / "seed-7" / "result.json").exists()
    )


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
    assert (
        same["headline"]["value"] == result["headline"]["value"]
        and same["episodes"] == result["episodes"]
    )
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
    refused(metalearn("evaluate", metalearn.folder), "no run directory")
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
    said = loaded.method.learn(loaded.state.meta, episodes.support, episodes.query.x, (0, 2))
    assert said.predictions.shape == (3, 2, 5, 1)
    curve = ml.evaluate.learning_curve(
        loaded.method, loaded.state.meta, loaded.source, (0, 1, 3), 20, seed=1, chunk=10
    )
    assert curve.mean.tolist() == strict((run / "result.json").read_text())["test"]["loss"]
    with pytest.raises(ConfigError, match="no run directory"):
        ml.load_run(run.parent)


def test_stopped_by_a_signal_saved_and_continued_to_the_same_parameters(
    metalearn: Commands,
) -> None:
    long = {"meta_steps": 400, "checkpoint_every": 20, "validate": {"every": 100, "episodes": 8}}
    file, stopped = (
        write(metalearn.folder, "long", sinusoid(run=long)),
        metalearn.folder / "stopped",
    )
    while not stopped.exists():
        started = metalearn.start("train", file, "--out", "stopped")
        started.wait_for(lambda: len(checkpoint.steps_in(stopped / "checkpoints")) > 0)
        started.kill(signal.SIGTERM)
        ended = started.wait()
        if ended.code == 0:  # it was done before the signal came: again
            shutil.rmtree(stopped)
    assert ended.code == 75 and "metalearn resume stopped" in ended.err, ended
    assert not (stopped / "result.json").exists()
    state = ml.load_run(stopped).state
    assert 0 < int(state.step) < 400
    refused(metalearn("train", file, "--out", "stopped"), "metalearn resume stopped")
    assert metalearn("evaluate", stopped).code == 0  # of the newest checkpoint
    going_on = metalearn("resume", "stopped")
    assert going_on.code == 0 and f"going on from step {int(state.step)}" in going_on.err
    straight = metalearn.folder / "straight"
    assert metalearn("train", file, "--out", straight).code == 0
    mine, other = last_state(stopped), last_state(straight)
    assert set(mine) == set(other) == set(named_leaves(state))
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    spent = [
        strict((folder / "result.json").read_text())["cost"]["meta_train"]
        for folder in (stopped, straight)
    ]
    for count in ("gradient_steps", "examples", "labels", "tasks"):
        assert spent[0][count] == spent[1][count], count


def test_a_changed_config_is_continued_only_on_request(metalearn: Commands) -> None:
    file = write(metalearn.folder, "edit", sinusoid(run={"meta_steps": 100_000}))
    started = metalearn.start("train", file, "--out", "edit")
    folder = metalearn.folder / "edit"
    assert started.wait_for(lambda: len(checkpoint.steps_in(folder / "checkpoints")) > 0)
    started.kill()
    assert started.wait().code == -9
    text = (folder / "config.yaml").read_text()
    last = checkpoint.steps_in(folder / "checkpoints")[-1] + 5
    (folder / "config.yaml").write_text(text.replace("meta_steps: 100000", f"meta_steps: {last}"))
    refused(metalearn("resume", folder), "config.yaml", "--allow-change")
    done = metalearn("resume", folder, "--allow-change")
    assert done.code == 0 and checkpoint.steps_in(folder / "checkpoints")[-1] == last, done


def test_a_diverging_training_ends_with_3_and_says_what_to_try(metalearn: Commands) -> None:
    file = write(metalearn.folder, "wild", sinusoid(method={"inner_lr": 1e30, "inner_steps": 5}))
    done = metalearn("train", file, "--out", "wild")
    assert done.code == 3 and "method.inner_lr" in done.err and "Traceback" not in done.err
    assert not (metalearn.folder / "wild" / "result.json").exists()
    for name in ("metrics.jsonl", "nan.jsonl"):
        assert all(
            strict(line) for line in (metalearn.folder / "wild" / name).read_text().splitlines()
        )
    assert metalearn("resume", "wild").code == 3


def test_a_test_that_diverges_is_reported_and_has_no_nan(metalearn: Commands) -> None:
    file = write(
        metalearn.folder, "scratch", sinusoid(method={"name": "scratch", "inner_lr": 1e30})
    )
    done = metalearn("train", file, "--out", "scratch")
    assert done.code == 0, done.err
    result = strict((metalearn.folder / "scratch" / "result.json").read_text())
    assert result["test"]["diverged"][0] < 1 and result["test"]["diverged"][-1] == 1
    assert result["headline"]["value"] is None and result["test"]["loss"][-1] is None
    assert not math.isfinite(np.load(metalearn.folder / "scratch" / "scores.npz")["loss"][0, -1])
    assert ml.load_run(metalearn.folder / "scratch").method.step is None
    assert metalearn("evaluate", "scratch", "method.inner_lr=0.01").code == 0


def test_compare_skips_what_is_finished_and_writes_one_report(
    metalearn: Commands, pair: Path
) -> None:
    assert {path.name for path in (pair / "methods").iterdir()} == {"maml", "alone"}
    comparison = strict((pair / "comparison.json").read_text())
    keys = {
        "schema",
        "rows",
        "summary",
        "paired",
        "target",
        "break_even",
        "break_even_common",
        "checks",
    }
    assert keys <= set(comparison) and comparison["schema"] == 1 and len(comparison["rows"]) == 4
    assert len({row["episodes"]["fingerprint"] for row in comparison["rows"]}) == 1
    assert {row["label"] for row in comparison["summary"]} == {"maml", "alone"}
    assert list((pair / "figures").glob("*.svg")) and (pair / "report.html").stat().st_size > 10_000
    before = files_of(pair / "methods")
    again = metalearn("compare", metalearn.folder / "pair.yaml")
    assert (
        again.code == 0
        and again.err.count("finished already") == 4
        and files_of(pair / "methods") == before
    )
    refused(
        metalearn("compare", metalearn.folder / "pair.yaml", "methods.maml.inner_lr=1"),
        "methods/maml",
        "--out",
    )
    assert files_of(pair / "methods") == before


def test_report_on_runs_and_comparisons(metalearn: Commands, run: Path, pair: Path) -> None:
    done = metalearn("report", run, pair / "methods" / "alone" / "seed-0", "--out", "page.html")
    assert done.code == 0 and "page.html" in done.out, done.err
    page = (metalearn.folder / "page.html").read_text()
    assert page.startswith("<!") and "maml" in page and "alone" in page and "<svg" in page
    (pair / "comparison.json").unlink()
    assert (
        metalearn("report", pair, "--out", "second.html").code == 0
        and (pair / "comparison.json").exists()
    )
    refused(metalearn("report", "nowhere"), "nowhere")
    refused(metalearn("report", metalearn.folder / "page.html"), "page.html")


def test_list_tells_every_component_and_field(metalearn: Commands) -> None:
    done = metalearn("list", "--json")
    found = strict(done.out)
    tables = {
        "tasks",
        "models",
        "methods",
        "rules",
        "learned_rules",
        "estimators",
        "horizons",
        "spaces",
        "searchers",
    }
    tables |= {"sinks", "experiments", "sweeps"}
    assert set(found) == tables and done.code == 0
    for rows in found.values():
        for row in rows:
            fields = row.get("fields", {}).values()
            assert row["sentence"] and all(field["sentence"] for field in fields), row["name"]
    maml = next(row for row in found["methods"] if row["name"] == "maml")["fields"]
    assert maml["inner_lr"]["default"] == 0.01
    assert (maml["inner_lr"]["acts"], maml["inner_steps"]["acts"]) == ("both", "train")
    plain = metalearn("list", "models")
    assert plain.code == 0 and "conv4" in plain.out and "maml" not in plain.out
    refused(metalearn("list", "modles"), "did you mean 'models'")


def test_doctor_and_data(metalearn: Commands, tmp_path: Path) -> None:
    done = metalearn("doctor")
    assert done.code == 0 and torch.__version__ in done.out and "python" in done.out.lower(), done
    env = {"METALEARN_DATA": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    listed = metalearn("data", "list", env=env)
    assert (
        listed.code == 0
        and "glyphs" in listed.out
        and "not prepared" in listed.out
        and str(tmp_path) in listed.out
    )
    refused(metalearn("data", "prepare", "omniglott"), "did you mean 'omniglot'")
    refused(metalearn("data", "verify", "omniglot", env=env), "omniglot", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_help_answers_without_importing_torch(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'metalearn'; from metalearn.cli.main import main; main()"
    for words in (["--help"], ["train", "--help"], ["bench", "--help"], ["data", "--help"]):
        traced = [sys.executable, "-X", "importtime", "-c", code, *words]
        done = subprocess.run(traced, cwd=tmp_path, capture_output=True, text=True)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert done.returncode == 0 and "metalearn.cli.main" in imported, done
        assert not imported & {"torch", "numpy", "matplotlib", "optuna"}
        assert words[0] == "--help" or words[0] in done.stdout
    shown = console(tmp_path, "--help").out
    assert all(
        name in shown
        for name in ["train", "compare", "evaluate", "resume", "report", "data", "list", "doctor"]
    )
    assert console(tmp_path, "tarin").code == 2
