"""`metalearn reproduce`: published numbers, run, compared and recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commandline import Commands, files_of, refused, sinusoid, write

from metalearn.compare import reproduce as reproduce_module
from metalearn.compare.reproduce import published_plans, reproduce, table
from metalearn.config.experiment import Experiment, load, parse
from metalearn.errors import ConfigError, Diverged
from metalearn.results.published import read_results


def test_a_row_has_the_verdict_and_why_it_was_not_run() -> None:
    cell = {
        "experiment": "x",
        "label": "maml",
        "step": 1,
        "metric": "accuracy",
        "tasks": 600,
        "published": 0.9,
        "published_ci95": 0.005,
        "source": "A paper, table 1",
        "seeds": 1,
        "value": 0.81,
        "ci95_tasks": 0.01,
        "ci95_seeds": None,
        "verdict": "below",
    }
    shown = "| 0.9 ± 0.005 (A paper, table 1) | 0.81 ± 0.01 | 600, 1 | below |"
    assert shown in table([cell])[-1]
    copies = {**cell, "schedule_why": "pixels: JPEG copies"}
    assert table([copies])[-1].endswith("| below: pixels: JPEG copies |")
    absent = {**cell, "value": None, "verdict": "not run", "why": "no images"}
    del absent["tasks"]
    assert table([absent])[-1].endswith("| - | - | not run: no images |")


def test_every_experiment_with_a_published_number_is_chosen_and_no_other() -> None:
    names = {plan.name for plan in published_plans([])}
    assert {"maml_sinusoid", "maml_sinusoid_pretrained", "maml_omniglot_5w1s"} <= names
    assert not names & {"demo", "compare_sinusoid"}
    with pytest.raises(ConfigError) as error:
        published_plans(["demo", "nothing_of_the_kind"])
    assert [place for place, _ in error.value.problems] == ["demo", "nothing_of_the_kind"]
    sentences = [text for _, text in error.value.problems]
    assert sentences[0].endswith("run it with metalearn compare demo")
    assert sentences[1].endswith("more: metalearn list experiments")


def test_runs_are_made_once_held_against_the_paper_and_recorded(metalearn: Commands) -> None:
    published = {"value": 2.0, "ci95": 0.1, "curve": {0: 4.0}, "source": "A paper"}
    one = sinusoid(experiment="one", published=published, run={"meta_steps": 3, "seeds": [0, 1]})
    two = sinusoid(experiment="two", published={"value": 1.0}, run={"meta_steps": 2})
    for name, data in (("one", one), ("two", two)):
        write(metalearn.folder, name, data)
    done = metalearn("reproduce", "one.yaml", "two.yaml", "--out", "all")
    assert done.code == 0, done.err
    record = json.loads((metalearn.folder / "all" / "reproduced.json").read_text())
    rows = record["rows"]
    assert [(row["experiment"], row["step"], row["published"], row["seeds"]) for row in rows] == [
        ("one", 0, 4.0, 2),
        ("one", rows[1]["step"], 2.0, 2),
        ("two", rows[2]["step"], 1.0, 1),
    ]
    results = [
        json.loads((metalearn.folder / f"all/one/seed-{seed}/result.json").read_text())
        for seed in (0, 1)
    ]
    assert rows[1]["value"] == pytest.approx(
        sum(result["headline"]["value"] for result in results) / 2
    )
    assert (metalearn.folder / "all" / "reproduced.md").read_text() in done.out
    files = read_results(metalearn.folder / "all" / "results")
    assert sorted(files) == ["one-0", f"one-{rows[1]['step']}", f"two-{rows[2]['step']}"]
    found = files[f"one-{rows[1]['step']}"]
    assert found["value"] == pytest.approx(rows[1]["value"]) and found["published"] == 2.0
    assert [seed["seed"] for seed in found["per_seed"]] == [0, 1]
    assert found["interval"] is None  # an interval over new seeds needs 3
    assert found["config_hash"] == results[0]["config_hash"] and found["schedule"] == "full"
    before = files_of(metalearn.folder / "all" / "one")
    again = metalearn("reproduce", "one.yaml", "--out", "all")
    assert again.code == 0
    assert "skipped" in again.err
    assert files_of(metalearn.folder / "all" / "one") == before


def test_other_seeds_of_an_earlier_list_are_no_part_of_a_number(metalearn: Commands) -> None:
    """A run with one seed, whose folder is that of all seeds, and seeds that the file had once."""
    data = {"experiment": "seeds", "published": {"value": 2.0}}
    for seeds in ([4], [5, 6], [6, 7]):
        write(metalearn.folder, "seeds", sinusoid(**data, run={"meta_steps": 1, "seeds": seeds}))
        done = metalearn("reproduce", "seeds.yaml", "--out", "few")
        assert done.code == 0, done.err
        record = json.loads((metalearn.folder / "few/reproduced.json").read_text())
        assert [one["seed"] for one in record["rows"][0]["per_seed"]] == seeds


def test_a_departure_stands_beside_the_verdict_and_not_in_the_hash() -> None:
    published = {"value": 2.0, "ci95": 0.1}
    plain, remark = (
        parse(sinusoid(experiment="one", published=published | extra)).experiments[0]
        for extra in ({}, {"departures": "no clamp"})
    )
    assert plain.hash() == remark.hash() and remark.published.departures == "no clamp"


def test_an_ensemble_has_a_row_for_its_best_checkpoint_alone(metalearn: Commands) -> None:
    run = {"meta_steps": 6, "seeds": [0, 1], "validate": {"every": 2, "episodes": 4, "keep": 3}}
    parts: dict[str, Any] = {"published": {"value": 2.0, "source": "A paper"}, "run": run}
    file = sinusoid(experiment="several", **parts)
    file["evaluate"] = {**file.get("evaluate", {}), "checkpoint": "ensemble"}
    write(metalearn.folder, "several", file)
    done = metalearn("reproduce", "several.yaml", "--out", "ensemble")
    assert done.code == 0, done.err
    rows = json.loads((metalearn.folder / "ensemble" / "reproduced.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["maml", "maml, best checkpoint alone"]
    assert rows[1]["verdict"] == "reduced schedule" and rows[0]["schedule"] == "full"
    assert rows[0]["value"] != rows[1]["value"]
    for seed in (0, 1):
        run_folder = metalearn.folder / f"ensemble/several/seed-{seed}"
        alone = metalearn("evaluate", run_folder, "evaluate.checkpoint=best", "--out", f"{seed}")
        assert alone.code == 0, alone.err
        tested = json.loads((metalearn.folder / f"{seed}" / "1.json").read_text())
        assert rows[1]["per_seed"][seed]["value"] == pytest.approx(tested["headline"]["value"])
    assert len(read_results(metalearn.folder / "ensemble" / "results")) == 2


def test_what_cannot_be_reproduced_is_refused_before_anything_runs(metalearn: Commands) -> None:
    write(metalearn.folder, "bare", sinusoid(experiment="bare"))
    write(metalearn.folder, "good", sinusoid(experiment="good", published={"value": 1.0}))
    ended = metalearn("reproduce", "bare.yaml", "good.yaml", "missing", "--out", "none")
    refused(ended, "bare.yaml", "missing")
    assert not (metalearn.folder / "none").exists()


def test_without_names_data_that_are_absent_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"published": {"value": 1.0, "reduced": "3 steps"}, "run": {"meta_steps": 3}}
    good = load(str(write(tmp_path, "good", sinusoid(experiment="good", **options))))
    task = {"source": "mini_imagenet", "path": "nowhere"}
    absent: dict[str, Any] = {"experiment": "absent", "task": task, "published": {"value": 0.5}}
    absent["method"] = {"name": "maml"}
    plans = [load(str(write(tmp_path, "absent", absent))), good]
    monkeypatch.setattr(reproduce_module, "published_plans", lambda names: plans)
    rows = reproduce([], tmp_path / "all")
    assert [row["verdict"] for row in rows] == ["not run", "reduced schedule"]
    assert "nowhere does not exist" in rows[0]["why"] and rows[1]["schedule_why"] == "3 steps"
    assert json.loads((tmp_path / "all" / "reproduced.json").read_text())["rows"] == rows
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        reproduce(["absent"], tmp_path / "all")


def test_a_number_without_one_of_its_seeds_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeds that did not diverge would be a choice among seeds."""
    options = {"published": {"value": 1.0}, "run": {"meta_steps": 3, "seeds": [0, 1, 2]}}
    file = write(tmp_path, "three", sinusoid(experiment="three", **options))
    run_one = reproduce_module.run_one

    def diverges(one: Experiment, folder: Path) -> Any:
        if one.run.seeds == (1,):
            raise Diverged("seed 1")
        return run_one(one, folder)

    monkeypatch.setattr(reproduce_module, "run_one", diverges)
    with pytest.raises(Diverged, match="three diverged"):
        reproduce([str(file)], tmp_path / "all")
    (row,) = json.loads((tmp_path / "all" / "reproduced.json").read_text())["rows"]
    assert row["verdict"] == "not run" and "seed 1, 2" in row["why"]
    assert not (tmp_path / "all" / "results").exists()


def test_an_experiment_that_tests_the_training_of_another_comes_after_it(
    metalearn: Commands,
) -> None:
    published = {"value": 2.0, "source": "A paper"}
    trained = sinusoid(experiment="trained", published=published, run={"meta_steps": 3})
    tested = sinusoid(experiment="tested", published={"value": 1.0}, run={"meta_steps": 0})
    tested["method"] = {**tested["method"], "start": "trained"}
    tested["evaluate"] = {**tested.get("evaluate", {}), "task": {"shots": 3}}
    for data in (trained, tested):
        write(metalearn.folder, data["experiment"], data)
    done = metalearn("reproduce", "tested.yaml", "trained.yaml", "--out", "both")
    assert done.code == 0, done.err
    rows = json.loads((metalearn.folder / "both" / "reproduced.json").read_text())["rows"]
    assert [row["experiment"] for row in rows] == ["trained", "tested"]
    costs = [
        json.loads((metalearn.folder / f"both/{name}/result.json").read_text())["cost"]
        for name in ("trained", "tested")
    ]
    assert costs[1]["meta_train"]["flops"] == costs[0]["meta_train"]["flops"] > 0
    again = metalearn("evaluate", "both/trained", "evaluate.task.shots=3", "--out", "again")
    assert again.code == 0, again.err
    found = json.loads((metalearn.folder / "again" / "1.json").read_text())
    assert found["headline"]["value"] == pytest.approx(rows[1]["value"])


def test_experiments_that_start_from_each_other_are_refused(metalearn: Commands) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        data = sinusoid(experiment=name, published={"value": 2.0}, run={"meta_steps": 0})
        data["method"] = {**data["method"], "start": other}
        write(metalearn.folder, name, data)
    ended = metalearn("reproduce", "one.yaml", "two.yaml", "--out", "none")
    refused(ended, "two: method.start", "no finished run for 'one'")
    assert not (metalearn.folder / "none").exists()


def test_a_start_is_that_of_the_same_folder_seed_and_config(metalearn: Commands) -> None:
    published = {"value": 2.0, "source": "A paper"}
    trained = sinusoid(experiment="base", published=published, run={"meta_steps": 4})
    tested = sinusoid(experiment="probe", published=published, run={"meta_steps": 0})
    tested["method"] = {**tested["method"], "start": "base"}
    for data in (trained, tested):
        write(metalearn.folder, data["experiment"], data)
    # a run of that name with this seed in the folder above is another one
    train = ("train", "base.yaml", "run.seeds=[0,1]", "run.meta_steps=1", "--out", "out/base")
    assert metalearn(*train).code == 0
    words = ("reproduce", "base.yaml", "probe.yaml", "--out", "out/in")
    assert metalearn(*words).code == 0
    costs = [
        json.loads((metalearn.folder / f"out/in/{name}/result.json").read_text())["cost"]
        for name in ("base", "probe")
    ]
    assert costs[1]["meta_train"]["flops"] == costs[0]["meta_train"]["flops"] > 0
    # the start is trained otherwise now
    write(metalearn.folder, "base", {**trained, "run": {**trained["run"], "meta_steps": 5}})
    shutil.rmtree(metalearn.folder / "out/in/base")
    refused(metalearn(*words), "out/in/probe", "another network than base trains now")
    assert not (metalearn.folder / "out/in/base").exists()
    # nor has it a network of this seed
    write(metalearn.folder, "probe", {**tested, "run": {**tested["run"], "seeds": [3]}})
    words = ("reproduce", "base.yaml", "probe.yaml", "--out", "out/seeds")
    refused(metalearn(*words), "probe: method.start", "base is not trained with seed 3")


def test_a_start_that_was_not_named_is_reproduced_first() -> None:
    names = ["proto_net_omniglot_20w1s", "reptile_omniglot_5w5s", "reptile_omniglot_5w1s"]
    plans = reproduce_module.with_starts(published_plans(names))
    assert [plan.name for plan in plans] == ["proto_net_omniglot_5w1s", names[0], *names[:0:-1]]
    assert len(reproduce_module.with_starts(published_plans([]))) == len(published_plans([]))
