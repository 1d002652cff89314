"""What checks, protocol and page state about tuning: values, trials and seeds as recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import groups_of, the_check, write_rows

from metalearn.report.page import _describe_up_front, write_report
from metalearn.report.render import _format_tuned
from metalearn.results import iso_compute
from metalearn.results.comparison import compare
from metalearn.results.design.tuning import describe_trials
from metalearn.results.searches import tuning_trials


def edit(root: Path, label: str, **changes: Any) -> None:
    """Replace fields of result.json in all seeds of a row."""
    for file in root.glob(f"methods/{label}/seed-*/result.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_chosen_step_is_no_tuned_hyperparameter(tmp_path: Path) -> None:
    """Of an untuned run, `tuned` has the headline step alone; validation has a cost in it too."""
    write_rows(tmp_path, ["maml", "scratch"], seeds=2)
    file = tmp_path / "methods/maml/seed-0/result.json"
    cost = json.loads(file.read_text())["cost"]
    cost["tune"] |= {"seconds": 0.091, "flops": 1e6}
    tuned = {"headline_step": 10, "on_edge": [], "from_seed": 0}
    edit(tmp_path, "maml", tuned=tuned, cost=cost)
    maml, scratch = groups_of(tmp_path)
    assert _describe_up_front(maml, "seconds")[0] == "91 ms of validation"
    assert _describe_up_front(scratch, "seconds")[0] == "14.2 s of tuning and validation"
    assert [_format_tuned(group.runs[1]) for group in (maml, scratch)] == [
        "–",
        "inner_lr 0.05 (by seed 0)",
    ]
    name = "tuned values inside their range"
    assert the_check(tmp_path, name)["why"] == "runs tuned within a range: 2, none on its edge"
    for config in tmp_path.glob("methods/scratch/*/config.yaml"):
        data = yaml.safe_load(config.read_text())
        data["method"]["tune"] = {"inner_lr": {"values": [0.05, 0.1]}}
        config.write_text(yaml.safe_dump(data))
    assert "no method was tuned within a range" in the_check(tmp_path, name)["why"]


def test_trials_are_those_that_were_made(tmp_path: Path) -> None:
    """All values of a finite set are as good as the trials of the budget, and the page says so."""
    write_rows(tmp_path, ["fine_tune", "scratch"])
    for config in tmp_path.glob("methods/*/*/config.yaml"):
        config.write_text(config.read_text() + "budget: {trials: 9}\n")
    stage = {"acts_in": "new tasks", "fields": ["inner_lr"], "flops": 1e9}

    def record(label: str, *counts: int) -> None:
        stages = [stage | {"trials": n, "scores": [0.5] * n} for n in counts]
        edit(tmp_path, label, tuning={"trials": 9, "once": False, "seed": 0, "stages": stages})

    record("fine_tune", 9)
    record("scratch", 2)
    runs = [group.first for group in groups_of(tmp_path)]
    assert [tuning_trials(run) for run in runs] == [9, 2]
    assert [describe_trials(run) for run in runs] == ["9", "2 (all values)"]
    found = the_check(tmp_path, "equal tuning trials in each stage")
    assert found["passed"] and "(2 (all values): scratch; 9: fine_tune)" in found["why"]
    text = {one["topic"]: one["text"] for one in compare(groups_of(tmp_path))["protocol"]}
    assert text["budget of tuning"] == "9 trials: fine_tune; 2 trials (all values): scratch"
    record("fine_tune", 9, 9)
    assert describe_trials(groups_of(tmp_path)[0].first) == "9 + 9"
    assert the_check(tmp_path, "equal tuning trials in each stage")["passed"]
    config = tmp_path / "methods/scratch/seed-0/config.yaml"
    config.write_text(config.read_text().replace("tune:", "other:"))
    found = the_check(tmp_path, "equal tuning trials in each stage")
    assert not found["passed"] and "0: scratch; 9 + 9: fine_tune" in found["why"]


def test_best_trials_are_compared_with_the_test_of_the_seeds_that_tuned(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch"], seeds=3)
    (row,) = compare(groups_of(tmp_path))["tuning"]
    runs = groups_of(tmp_path)[0].runs
    assert row["seeds"] == [0] and row["tested"] != row["tested_same_seeds"]
    assert row["tested_same_seeds"] == pytest.approx(runs[0].result["headline"]["value"])
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    difference = 100 * (row["best"] - row["tested_same_seeds"])
    assert f"<td>{difference:+.3g}</td>".replace("-", "−") in page
    shutil.rmtree(tmp_path / "methods/scratch/seed-0")
    (row,) = compare(groups_of(tmp_path))["tuning"]
    assert row["seeds"] == [0] and row["tested_same_seeds"] is None
    assert write_report([tmp_path], tmp_path / "report.html").exists()


def test_equal_compute_ends_with_the_values_tuned_after_training(tmp_path: Path) -> None:
    """Only a seed that tuned has a score with them; before, and without one, it is `untuned`."""
    write_rows(tmp_path, ["fine_tune", "maml", "scratch"], seeds=3)
    groups = {group.label: group for group in groups_of(tmp_path)}
    tuned = groups["fine_tune"].first.result["tuning"]["stages"][0]["best_so_far"][-1]
    last = groups["fine_tune"].first.valid("valid")[-1]["accuracy"]
    assert (
        iso_compute.last_score_within(groups["fine_tune"].first, 1e18, 600).value == tuned != last
    )

    def row(label: str) -> Any:
        found = compare(groups_of(tmp_path))["equal_compute"]
        return next(one for one in found["rows"] if one["label"] == label)

    found = row("fine_tune")
    assert found["tuned_after_training"] == ["inner_lr"] and not row("maml")["tuned_after_training"]
    assert (found["values"][-1], found["seeds"][-1], found["untuned"][-1]) == (tuned, 1, False)
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "fine_tune (inner_lr; seeds in the last column: 1)" in page
    training = 2000 * 16 * 3e6
    run = groups["fine_tune"].first
    spent = iso_compute.last_score_within(run, training / 2 + 600 * 10 * 3e6 + 300 * 3e6, 600)
    assert spent.value == {line["step"]: line["accuracy"] for line in run.valid("valid")}[1000]
    shutil.rmtree(tmp_path / "methods/fine_tune/seed-0")
    found = row("fine_tune")
    assert (found["seeds"][-1], found["untuned"][-1]) == (2, True)
    assert found["values"][-1] != tuned
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "<small>untuned</small>" in page
