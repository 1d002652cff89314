"""Commands on runs that were stopped, changed or diverged, and reports of runs."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from commandline import Commands, console, files_of, refused, sinusoid, write
from test_cli import last_state, strict
from test_cli import pair as pair  # fixtures
from test_cli import run as run

import metalearn as ml
from metalearn.storage import checkpoint
from metalearn.storage.files import write_json
from metalearn.storage.schema import read_result
from metalearn.tree import named_leaves


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
    assert going_on.code == 0 and f"resuming from step {int(state.step)}" in going_on.err
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
    assert "no checkpoint was saved before it, the seeds of its tasks in" in done.err
    assert metalearn("resume", "wild").code == 3


def test_a_trained_run_whose_test_is_not_finite_ends_with_3_and_is_kept(
    metalearn: Commands,
) -> None:
    """Training makes one small step, the test many that overflow."""
    data = sinusoid(method={"inner_lr": 4, "inner_steps": 1}, evaluate={"steps": [0, 60]})
    done = metalearn("train", write(metalearn.folder, "late", data), "--out", "late")
    assert done.code == 3, done
    assert "after 60 steps is not finite, 100.0% of the test tasks diverged" in done.err
    assert "the result is in" in done.err and "loss not finite" in done.out
    result = strict((metalearn.folder / "late" / "result.json").read_text())
    assert result["headline"]["value"] is None
    again = metalearn("train", metalearn.folder / "late.yaml", "--out", "late")
    assert again.code == 0 and "already finished" in again.err  # a finished run


def test_a_test_that_diverges_is_reported_and_has_no_nan(metalearn: Commands) -> None:
    file = write(
        metalearn.folder, "scratch", sinusoid(method={"name": "scratch", "inner_lr": 1e30})
    )
    done = metalearn("train", file, "--out", "scratch")
    assert done.code == 0 and "warning: scratch seed 0: loss after" in done.err, done.err
    result = strict((metalearn.folder / "scratch" / "result.json").read_text())
    assert result["test"]["diverged"][0] < 1 and result["test"]["diverged"][-1] == 1
    assert result["headline"]["value"] is None and result["test"]["loss"][-1] is None
    assert not math.isfinite(np.load(metalearn.folder / "scratch" / "scores.npz")["loss"][0, -1])
    assert ml.load_run(metalearn.folder / "scratch").method.step is None
    assert metalearn("evaluate", "scratch", "method.inner_lr=0.01").code == 0
    # finite, and beyond what readers take: written as not finite, so that a report can be made
    result["test"]["loss"][-1] = 1e32
    write_json(metalearn.folder / "scratch" / "result.json", result)
    assert read_result(metalearn.folder / "scratch")["test"]["loss"][-1] is None


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
    assert again.code == 0
    assert again.err.count("already finished") == 4
    assert files_of(pair / "methods") == before
    ended = metalearn("compare", metalearn.folder / "pair.yaml", "methods.maml.inner_lr=1")
    refused(ended, "methods/maml", "--out")
    assert files_of(pair / "methods") == before


def test_report_on_runs_and_comparisons(metalearn: Commands, run: Path, pair: Path) -> None:
    done = metalearn("report", run, pair / "methods" / "alone" / "seed-0", "--out", "page.html")
    assert done.code == 0 and "page.html" in done.out, done.err
    page = (metalearn.folder / "page.html").read_text()
    assert page.startswith("<!") and "maml" in page and "alone" in page and "<svg" in page
    (pair / "comparison.json").unlink()
    assert metalearn("report", pair, "--out", "second.html").code == 0
    assert (pair / "comparison.json").exists()
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
    tables |= {"trackers", "losses", "report", "experiments", "sweeps"}
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
    assert listed.code == 0
    assert "glyphs" in listed.out
    assert "not prepared" in listed.out
    assert str(tmp_path) in listed.out
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
