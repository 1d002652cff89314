"""Sweeps: W&B's file, checked with its experiment; workers that are killed, stopped, added; what
sweep.json says."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Commands, files_of, refused, sinusoid
from sweep_kills import at_work, sweep_of, sweep_with_kills, swept

from metalearn.report.sweep_page import importance, read_sweep
from metalearn.storage.lock import lock_folder
from metalearn.sweep.file import read
from metalearn.sweep.request import claim_folder

ROOT = Path(__file__).resolve().parents[1]


def sweep_file(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "sweep.json").read_text()))


def test_killed_workers_lose_nothing_and_make_nothing_twice(metalearn: Commands) -> None:
    file = sweep_of(metalearn.folder, 6)
    found = sweep_with_kills(metalearn, file, "killed", workers=3, kills=2)
    assert (found["killed"], found["taken_over"]) == (2, 2)
    assert [trial["number"] for trial in found["sweep"]["trials"]] == list(range(6))
    assert metalearn("sweep", file, "--out", "alone").code == 0
    # the same values, and the same results to the last digit
    assert sweep_file(metalearn.folder / "alone") == found["sweep"]
    assert not list((metalearn.folder / "killed" / "claims").glob("*.json"))


def test_stopped_by_a_signal_and_given_again(metalearn: Commands) -> None:
    file = sweep_of(metalearn.folder, 3)
    worker = metalearn.start("sweep", file, "--out", "stopped")
    folder = metalearn.folder / "stopped"
    assert worker.wait_for(lambda: at_work(folder, worker))
    worker.kill(signal.SIGTERM)
    ended = worker.wait()
    assert ended.code == 75 and "repeat the command" not in ended.out
    again = metalearn("sweep", file, "--out", "stopped")
    assert again.code == 0 and "resuming from step" in again.err
    assert [trial["state"] for trial in sweep_file(folder)["trials"]] == ["complete"] * 3


def test_a_worker_that_was_taken_for_dead_keeps_its_run(metalearn: Commands) -> None:
    """Its claim is gone, its lock is not: the trial is neither failed nor run twice, but waited
    for."""
    file = swept(metalearn.folder, "asleep", parameters={"method.inner_lr": {"values": [0.01]}})
    folder = metalearn.folder / "runs" / "asleep"
    claim_folder(read(str(file)), folder)
    (folder / "trials" / "0").mkdir(parents=True)
    with lock_folder(folder / "trials" / "0"):
        worker = metalearn.start("sweep", file, "--out", folder)
        ready = worker.wait_for(
            lambda: worker.err.exists() and "another process is working" in worker.err.read_text()
        )
    assert ready
    ended = worker.wait()
    assert ended.code == 0, ended
    assert [trial["state"] for trial in sweep_file(folder)["trials"]] == ["complete"]


def test_a_grid_is_gone_through_in_order_and_told_in_schema_1(metalearn: Commands) -> None:
    done = metalearn("sweep", swept(metalearn.folder, "grid"))
    assert done.code == 0 and "best: trial" in done.out, done.err
    folder = metalearn.folder / "runs" / "grid"
    found = sweep_file(folder)
    assert set(found) == {"schema", "metric", "best", "trials"} and found["schema"] == 1
    assert found["metric"] == {"name": "valid/loss", "goal": "minimize"}
    points = [(lr, steps) for lr in (0.01, 0.1) for steps in (1, 2)]
    assert [tuple(trial["parameters"].values()) for trial in found["trials"]] == points
    assert all(
        set(trial) == {"number", "parameters", "value", "state"} for trial in found["trials"]
    )
    assert found["best"] == min(found["trials"], key=lambda trial: trial["value"])["number"]
    for trial in found["trials"]:
        run = folder / "trials" / str(trial["number"])
        config = yaml.safe_load((run / "config.yaml").read_text())["method"]
        assert (config["inner_lr"], config["inner_steps"]) == points[trial["number"]]
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        looks = [row["loss"] for row in rows if row["kind"] == "valid" and row["split"] == "valid"]
        assert trial["value"] == min(looks) and (run / "result.json").exists()
    before = files_of(folder)
    assert metalearn("sweep", metalearn.folder / "grid.yaml").code == 0
    assert {name: data for name, data in files_of(folder).items() if "journal" not in name} == {
        name: data for name, data in before.items() if "journal" not in name
    }


def test_a_sweep_grows_and_other_sweeps_are_refused_its_folder(metalearn: Commands) -> None:
    keys: dict[str, Any] = {
        "method": "random",
        "parameters": {"method.inner_lr": {"min": 0.001, "max": 0.1}},
    }
    file = swept(metalearn.folder, "grows", run_cap=1, **keys)
    assert metalearn("sweep", file).code == 0
    first = sweep_file(metalearn.folder / "runs" / "grows")["trials"]
    assert metalearn("sweep", swept(metalearn.folder, "grows", run_cap=3, **keys)).code == 0
    assert sweep_file(metalearn.folder / "runs" / "grows")["trials"][:1] == first
    before = files_of(metalearn.folder / "runs" / "grows")
    keys["parameters"] = {"method.inner_lr": {"min": 0.001, "max": 0.2}}
    ended = metalearn("sweep", swept(metalearn.folder, "grows", run_cap=3, **keys))
    refused(ended, "parameters", "--out")
    keys["parameters"] = {"method.inner_lr": {"min": 0.001, "max": 0.1}}
    other = swept(metalearn.folder, "grows", sinusoid(run={"meta_steps": 6}), run_cap=3, **keys)
    refused(metalearn("sweep", other), "experiment file")
    refused(metalearn("sweep", other, "--out", metalearn.folder / "runs"), "not a sweep")
    assert files_of(metalearn.folder / "runs" / "grows") == before


def test_trials_that_fail_or_are_behind_say_so(metalearn: Commands) -> None:
    parameters = {
        "method.inner_lr": {"values": [0.01, 1e30, 0.02]},
        "method.inner_steps": {"value": 2},
    }
    early = {"type": "hyperband", "min_iter": 1, "eta": 10}
    wild = swept(metalearn.folder, "wild", parameters=parameters, early_terminate=early)
    assert metalearn("sweep", wild).code == 0
    rows = sweep_file(metalearn.folder / "runs" / "wild")["trials"]
    assert [row["state"] for row in rows][:2] == ["complete", "failed"] and rows[1]["value"] is None
    file = swept(metalearn.folder, "target", metric={"name": "loss", "target": 1e9})
    assert metalearn("sweep", file).code == 0
    # reached: no new trial begins
    assert len(sweep_file(metalearn.folder / "runs" / "target")["trials"]) == 1


def test_every_error_at_once_and_nothing_written(metalearn: Commands) -> None:
    parameters = {
        "method.inner_lr": {"min": 2, "max": 1.0},
        "method.inner_step": {"values": [1]},
        "task.shots": {"distribution": "gaussian"},
        "model": {"parameters": {"sizes": {"values": []}}},
        "a b": {"value": 1},
    }
    file = swept(
        metalearn.folder,
        "bad",
        parameters=parameters,
        method="annealing",
        metric={"name": "valid/los"},
        early_terminate={"type": "hyperband"},
        run_cap=0,
        colour="blue",
    )
    before = files_of(metalearn.folder)
    words = (
        "parameters.method.inner_lr",
        "parameters.method.inner_step",
        "did you mean 'inner_steps'",
        "a b",
    )
    more = (
        "gaussian",
        "model.parameters.sizes",
        "annealing",
        "valid/loss",
        "min_iter",
        "run_cap",
        "colour",
    )
    refused(metalearn("sweep", file), *words, *more)
    assert files_of(metalearn.folder) == before


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        (
            {"parameters": {"method.inner_lr": {"values": [0.1, "fast"]}}},
            "invalid value 'fast'",
        ),
        (
            {
                "parameters": {"method.inner_lr": {"min": -1.0, "max": 1.0}},
                "method": "random",
                "run_cap": 2,
            },
            "greater",
        ),
        (
            {"parameters": {"method.inner_lr": {"min": 0.1, "max": 1.0}}},
            "list of values for a grid",
        ),
        ({"method": "bayes"}, "run_cap"),
        ({"metric": {"name": "valid/accuracy", "goal": "maximize"}}, "no accuracy"),
        ({"metric": {"name": "valid/loss", "goal": "maximize"}}, "goal: minimize"),
        ({"metric": None, "method": "bayes", "run_cap": 2}, "metric"),
        ({"program": "nowhere.yaml"}, "nowhere.yaml"),
        ({"program": None}, "experiment file"),
        ({"parameters": None}, "parameters"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}, "a.b": {"value": 1}}}, "twice"),
        (
            {
                "early_terminate": {"type": "hyperband", "min_iter": 1},
                "metric": {"name": "test/loss"},
            },
            "compares validations",
        ),
    ],
)
def test_one_wrong_key(metalearn: Commands, keys: dict[str, Any], word: str) -> None:
    ended = metalearn("sweep", swept(metalearn.folder, "one", **keys), "--out", "never")
    refused(ended, word, "one.yaml")
    assert not (metalearn.folder / "never").exists()


def test_a_sweep_whose_trials_all_fail_ends_with_an_error(metalearn: Commands) -> None:
    parameters = {"method.inner_lr": {"values": [1e30]}, "method.inner_steps": {"value": 2}}
    file = swept(metalearn.folder, "hopeless", parameters=parameters)
    done = metalearn("sweep", file)
    assert done.code == 1 and "0 complete, 0 pruned, 1 failed" in done.out, done
    assert metalearn("sweep", file).code == 1  # nothing left to run is no success, either


def test_words_of_the_command(metalearn: Commands) -> None:
    file = swept(metalearn.folder, "words")
    refused(metalearn("sweep", file, "partition=gpu"), "--slurm")
    refused(metalearn("sweep", "nosuch"), "nosuch", "valid:")
    refused(metalearn("sweep", file, "--out", metalearn.folder / "words.yaml"), "is a file")


def test_no_label_of_a_test_task_chooses_unless_it_is_asked_for_and_then_it_is_said(
    metalearn: Commands,
) -> None:
    file = swept(
        metalearn.folder,
        "test",
        metric={"name": "test/loss"},
        parameters={"task.shots": {"values": [5]}},
    )
    done = metalearn("sweep", file)
    assert done.code == 0 and "selected on test tasks" in done.out
    result = json.loads(
        (metalearn.folder / "runs" / "test" / "trials" / "0" / "result.json").read_text()
    )
    assert (
        sweep_file(metalearn.folder / "runs" / "test")["trials"][0]["value"]
        == result["headline"]["value"]
    )


def test_workers_of_one_command(metalearn: Commands) -> None:
    file = sweep_of(metalearn.folder, 4)
    done = metalearn(
        "sweep", file, "--workers", "2", "--out", "several", env={"PYTHONPATH": str(ROOT)}
    )
    assert done.code == 0 and "4 trials: 4 complete" in done.out, done.err
    trials = sweep_file(metalearn.folder / "several")["trials"]
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]


def test_workers_as_jobs_of_a_cluster(metalearn: Commands) -> None:
    pytest.importorskip("submitit", reason="--slurm needs submitit: pip install submitit")
    file = sweep_of(metalearn.folder, 3)
    words = ("--out", "jobs", "--workers", "2", "--slurm", "cluster=local", "timeout_min=5")
    done = metalearn(
        "sweep", file, *words, env={"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    )
    assert done.code == 0 and done.out.startswith("jobs: "), done
    folder = metalearn.folder / "jobs"
    numbers = done.out.split("\n")[0].split()[1:]
    assert len(numbers) == 2
    while not all((folder / "jobs" / f"{number}_0_result.pkl").exists() for number in numbers):
        time.sleep(0.1)
    errors = "".join(path.read_text() for path in (folder / "jobs").glob("*.err"))
    assert [trial["state"] for trial in sweep_file(folder)["trials"]] == ["complete"] * 3, errors
    refused(metalearn("sweep", file, "--out", "no", "--slurm", "partition"), "must have the form")
    refused(
        metalearn("sweep", file, "--out", "no", "--slurm", "cluster=elsewhere"), "cluster=local"
    )
    assert not (metalearn.folder / "no").exists()


def test_wandb_without_an_account_is_a_clear_sentence(metalearn: Commands, tmp_path: Path) -> None:
    file = sweep_of(metalearn.folder, 3)
    env = {
        "HOME": str(tmp_path),
        "WANDB_API_KEY": "",
        "WANDB_MODE": "offline",
        "NETRC": str(tmp_path / "netrc"),
    }
    refused(metalearn("sweep", file, "--wandb", env=env), "wandb login", "omit --wandb")


def test_the_report_of_a_sweep(metalearn: Commands, tmp_path: Path) -> None:
    folder = tmp_path / "swept"
    names = ("method.inner_lr", "method.inner_steps", "model.sizes", "<script>alert(1)</script>")
    trials = []
    for number in range(12):
        rate, steps, sizes = 10 ** (-3 + number / 4), number % 3 + 1, [[8], [8, 8]][number % 2]
        value = None if number == 5 else abs(math.log10(rate) + 1.2) + 0.01 * steps
        state = "failed" if number == 5 else "pruned" if number == 1 else "complete"
        values = dict(zip(names, (rate, steps, sizes, "<b>bold</b>")))
        trials.append({"number": number, "parameters": values, "value": value, "state": state})
        (folder / "trials" / str(number)).mkdir(parents=True)
        looks = [
            {"kind": "valid", "split": "valid", "step": step, "loss": (value or 9) + 1 / step}
            for step in (1, 2, 4)
        ]
        text = "".join(json.dumps(look) + "\n" for look in looks) + '{"torn'
        (folder / "trials" / str(number) / "metrics.jsonl").write_text(text)
    best = min(
        (trial for trial in trials if trial["state"] == "complete"),
        key=lambda trial: trial["value"],
    )["number"]
    data = {
        "schema": 1,
        "metric": {"name": "valid/loss", "goal": "minimize"},
        "best": best,
        "trials": trials,
    }
    (folder / "sweep.json").write_text(json.dumps(data))
    done = metalearn("report", folder, "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 4 and f"Trial {best} is the best" in page
    assert "<script" not in page and "<b>bold" not in page and "&lt;b&gt;bold" in page
    assert "fraction of variance" in page and "1 stopped early" in page and "1 failed" in page
    assert importance(read_sweep(folder)) == read_sweep(folder).importance
    shares = read_sweep(folder).importance
    assert max(shares, key=lambda name: shares[name]) == "method.inner_lr"
    assert shares["method.inner_lr"] > 0.5
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    again = metalearn("report", folder, "--out", tmp_path / "again.html")
    assert again.code == 0 and (tmp_path / "again.html").read_text() == page
    (folder / "sweep.json").write_text(json.dumps({**data, "trials": [{"number": "x"}]}))
    ended = metalearn("report", folder, "--out", tmp_path / "never.html")
    refused(ended, "sweep.json", "trials.0.number")
    refused(
        metalearn("report", folder, tmp_path, "--out", tmp_path / "never.html"), "page of their own"
    )
    assert not (tmp_path / "never.html").exists()
