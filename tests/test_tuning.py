"""Tuning: which values are tried, what a budget of trials or FLOPs allows, what is recorded."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Commands, commands_in, refused, sinusoid, write
from kills import planted
from run_folders import groups_of, the_check, write_rows

from metalearn.algorithms import MAML
from metalearn.config.experiment import parse
from metalearn.config.sections import TuneRange
from metalearn.config.tuning import value_at, with_values
from metalearn.errors import ConfigError
from metalearn.report.page import write_report
from metalearn.results.comparison import compare
from metalearn.rng import fold_in
from metalearn.run.tuning.points import trial_points

LOG = TuneRange(min=0.001, max=1, distribution="log_uniform")
OUTER = TuneRange(min=0.0001, max=0.1, distribution="log_uniform")
RATES = {"inner_lr": LOG, "outer.lr": OUTER}
ASKED = {"inner_lr": {"min": 0.001, "max": 0.1, "distribution": "log_uniform"}}


@pytest.fixture(scope="module")
def metalearn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands_in(tmp_path_factory.mktemp("tuning")) as commands:
        yield commands


def tried(
    ranges: dict[str, TuneRange], count: int, label: str = "a", own: Any = None
) -> list[dict[str, Any]]:
    points = trial_points(own or MAML(inner_lr=0.03), ranges, fold_in(0, "tune", label))
    return list(itertools.islice(points, count))


# which values


@pytest.mark.parametrize("power", [2, 3, 4])
def test_points_cover_every_part_of_every_range(power: int) -> None:
    """Behind the default, 2^m points: one in each of 2^m equal parts of the logarithm of each."""
    first, *spread = tried(RATES, 1 + 2**power)
    assert first == {"inner_lr": 0.03, "outer.lr": 0.001}  # what the file has
    for name, span in RATES.items():
        low, high = math.log(span.min or 0), math.log(span.max or 0)
        parts = [2**power * (math.log(one[name]) - low) / (high - low) for one in spread]
        assert sorted(int(part) for part in parts) == list(range(2**power)), name


def test_rows_get_other_points_and_more_trials_the_same_first_ones() -> None:
    nine, other = tried(RATES, 9), tried(RATES, 9, label="b")
    assert tried(RATES, 33)[:9] == nine == tried(RATES, 9)
    assert nine[0] == other[0] and not {str(one) for one in nine[1:]} & {str(o) for o in other[1:]}


def test_a_default_outside_of_the_range_is_no_trial() -> None:
    assert all(
        one["inner_lr"] >= 0.001 for one in tried({"inner_lr": LOG}, 4, own=MAML(inner_lr=9))
    )


def test_no_values_come_twice_and_finite_ranges_end() -> None:
    ranges = {
        "first_order": TuneRange(values=(False, True)),
        "inner_steps": TuneRange(min=1, max=6, distribution="log_uniform"),
    }
    found = tried(ranges, 100)
    assert len(found) == 12 == len({str(one) for one in found})
    assert found[0] == {"first_order": False, "inner_steps": 1}
    assert {type(one["inner_steps"]) for one in found} == {int}
    assert [one["first_order"] for one in tried({"first_order": ranges["first_order"]}, 9)] == [
        False,
        True,
    ]
    assert len(tried({"inner_lr": TuneRange(min=0.1, max=0.10001)}, 9)) < 9  # and does not hang


# fields of components inside a method


def test_a_field_of_a_component_is_named_by_its_path() -> None:
    ranges = {"min": 0.001, "max": 0.1, "distribution": "log_uniform"}
    for tune in ({"outer": {"lr": ranges}}, {"outer.lr": ranges}):
        data = sinusoid(method={"name": "maml", "tune": tune}, budget={"trials": 2})
        found = parse(data).experiments[0]
        assert list(found.tune) == ["outer.lr"] and found.tune["outer.lr"].max == 0.1
        assert parse(found.resolved()).experiments[0].resolved() == found.resolved()
    changed = with_values(MAML(inner_lr=0.2), {"outer.lr": 0.5})
    assert value_at(changed, "outer.lr") == 0.5 and changed.inner_lr == 0.2


@pytest.mark.parametrize(
    ("tune", "place", "text"),
    [
        ({"outer": {"lrr": {"min": 1, "max": 2}}}, "outer.lrr", "unknown field of adam"),
        ({"outer": {"lr": {"min": -1, "max": 2}}}, "outer.lr", "invalid value"),
        ({"inner_lr.x": {"min": 1, "max": 2}}, "inner_lr.x", "has no fields"),
        ({"outer": {}}, "outer", "set either"),
        ({"outer": {"values": [{"name": "sgd"}]}, "outer.lr": [0.1]}, "outer.lr", "part of outer"),
    ],
)
def test_paths_that_cannot_be_tuned(tune: Any, place: str, text: str) -> None:
    data = sinusoid(method={"name": "maml", "tune": tune}, budget={"trials": 2})
    with pytest.raises(ConfigError) as caught:
        parse(data)
    assert [where for where, _ in caught.value.problems] == [f"method.tune.{place}"]
    assert text in caught.value.problems[0][1]


# the budget


def test_a_budget_is_trials_or_flops() -> None:
    for budget, words in (
        ({"trials": 3, "flops": 1e9}, "sets both trials"),
        ({"flops": -1}, "greater than 0"),
        ({}, "set trials or flops"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse(sinusoid(method={"name": "maml", "tune": ASKED}, budget=budget))
    plain = parse(sinusoid()).experiments[0]
    assert plain.hash() == "d76f22f6b83eb4254b9c7965dd68dce4e0853d825ad979165b412ffdc5a54379"


def run(metalearn: Commands, name: str, method: Any, **sections: Any) -> dict[str, Any]:
    file = write(metalearn.folder, name, sinusoid(method=None, **sections) | {"method": method})
    done = metalearn("train", file, "--out", name)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads((metalearn.folder / name / "result.json").read_text())
    return found


def test_flops_allow_the_trials_that_fit_and_one_at_least(metalearn: Commands) -> None:
    method = {"name": "maml", "tune": ASKED}
    one = run(metalearn, "one", method, budget={"flops": 1})["tuning"]["stages"][0]
    assert one["trials"] == 1 and one["flops"] > 1
    some = run(metalearn, "some", method, budget={"flops": 3.5 * one["flops"]})["tuning"]
    assert some["stages"][0]["trials"] == 3 and some["stages"][0]["flops"] == 3 * one["flops"]
    assert some["flops"] == 3.5 * one["flops"] and some["trials"] is None


def test_fields_of_training_and_of_new_tasks_have_half_the_flops_each(metalearn: Commands) -> None:
    method = {
        "name": "fine_tune",
        "inner_lr": 0.01,
        "tune": {**ASKED, "outer": {"lr": {"min": 0.001, "max": 0.1}}},
    }
    counted = run(metalearn, "counted", method, budget={"trials": 1})["tuning"]["stages"]
    whole = sum(stage["flops"] for stage in counted)
    budget = {"flops": 4.2 * whole}
    early, late = run(metalearn, "halves", method, budget=budget)["tuning"]["stages"]
    assert (early["acts_in"], late["acts_in"]) == ("training", "new tasks")
    assert early["fields"] == ["outer.lr"] and late["fields"] == ["inner_lr"]
    for stage, one in zip((early, late), counted):
        assert stage["trials"] == int(2.1 * whole / one["flops"])


def test_the_record_holds_every_score_and_the_best_so_far(metalearn: Commands) -> None:
    found = run(metalearn, "record", {"name": "scratch", "tune": ASKED}, budget={"trials": 5})
    stage = found["tuning"]["stages"][0]
    assert found["tuning"]["seed"] == 0 and found["tuning"]["trials"] == 5
    assert stage["trials"] == 5 == len(stage["scores"]) == len(set(stage["scores"]))
    assert stage["best_so_far"] == list(itertools.accumulate(stage["scores"], min))  # losses
    trials = json.loads((metalearn.folder / "record/tune/trials.json").read_text())
    assert [-one["score"] for one in trials] == stage["scores"]
    best = min(range(5), key=lambda number: stage["scores"][number])
    assert found["tuned"]["inner_lr"] == trials[best]["parameters"]["inner_lr"]
    values = sorted(one["parameters"]["inner_lr"] for one in trials)
    edge = found["tuned"]["inner_lr"] in (values[0], values[-1])
    assert found["tuned"]["on_edge"] == (["inner_lr"] if edge else [])
    assert run(metalearn, "none", {"name": "maml"})["tuning"] is None


def test_seeds_that_tune_for_themselves_try_other_points(metalearn: Commands) -> None:
    """The interval over seeds then holds the luck of tuning, too."""
    data = sinusoid(method=None, budget={"trials": 3}, run={"seeds": [0, 1]})
    file = write(metalearn.folder, "seeds", data | {"method": {"name": "scratch", "tune": ASKED}})
    assert metalearn("train", file, "--out", "seeds").code == 0
    points = [
        [one["parameters"]["inner_lr"] for one in json.loads(path.read_text())]
        for path in sorted((metalearn.folder / "seeds").glob("*/tune/trials.json"))
    ]
    assert len(points) == 2 and points[0][0] == points[1][0]
    assert not set(points[0][1:]) & set(points[1][1:])


def valid_lines(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "valid"]


def test_a_trial_looks_at_validation_tasks_alone_and_is_scored_there(metalearn: Commands) -> None:
    sections = {"run": {"meta_steps": 4, "validate": {"every": 2, "episodes": 8}}}
    run(metalearn, "looks", {"name": "maml", "tune": ASKED}, budget={"trials": 2}, **sections)
    run(metalearn, "plain", {"name": "maml"}, **sections)
    home = metalearn.folder / "looks"
    found = json.loads((home / "tune/trials.json").read_text())
    assert [line["split"] for line in valid_lines(home)] == ["train", "valid"] * 2
    # the values of the file: the same training and the same looks as of a run that tunes nothing
    own = [line for line in valid_lines(metalearn.folder / "plain") if line["split"] == "valid"]
    assert valid_lines(home / "tune/0") == own and len(own) == 2
    for number, trial in enumerate(found):
        losses = [line["loss"] for line in valid_lines(home / f"tune/{number}")]
        assert trial["score"] == -min(losses)
        learned = trial["cost"]["tasks"]
        trained = json.loads((home / "result.json").read_text())["cost"]["meta_train"]["tasks"]
        assert learned == trained + 2 * 8  # two looks, no task more


def test_the_trial_that_wins_gives_the_headline_step(metalearn: Commands) -> None:
    """The step, and the FLOPs, of a run that has the values in its file; learned once."""
    sections: dict[str, Any] = {"evaluate": {"headline_step": "tuned", "steps": [0, 1, 3, 5]}}
    tuned = run(
        metalearn, "won", {"name": "scratch", "tune": ASKED}, budget={"trials": 3}, **sections
    )
    rate = tuned["tuned"]["inner_lr"]
    fixed = run(metalearn, "fixed", {"name": "scratch", "inner_lr": rate}, **sections)
    assert tuned["tuned"]["headline_step"] == fixed["tuned"]["headline_step"] > 0
    each = tuned["tuning"]["stages"][0]["flops"] / 3
    apart = tuned["cost"]["tune"]["flops"] - fixed["cost"]["tune"]["flops"]
    assert apart == 2 * each > 0  # three trials here, one look for the step there


def test_a_killed_search_ends_with_the_same_trials(metalearn: Commands) -> None:
    data = sinusoid(
        method={"name": "maml", "tune": {**ASKED, "outer": {"lr": [0.001, 0.01]}}},
        budget={"trials": 4},
    )
    file, folders = write(metalearn.folder, "kill", data), []
    for name in ("undisturbed", "killed"):
        folder = metalearn.folder / name
        folders.append(folder)
        if name == "killed":
            for number in (0, 1):
                before = planted("trials.json", number)
                args = ("resume", folder) if number else ("train", file, "--out", folder)
                assert metalearn(*args, before=before).code == -9
            assert metalearn("resume", folder).code == 0
        else:
            assert metalearn("train", file, "--out", folder).code == 0
    kept = []
    for folder in folders:
        trials = json.loads((folder / "tune/trials.json").read_text())
        values = [(one["parameters"], one["score"], one["cost"]["flops"]) for one in trials]
        found = json.loads((folder / "result.json").read_text())
        kept.append((values, found["test"], found["tuned"], found["tuning"]))
    assert kept[0] == kept[1] and len(kept[0][0]) == 4


def test_a_trial_of_other_values_is_trained_anew(metalearn: Commands) -> None:
    """A folder of a trial that an older version left: its values are not these."""
    method = {"name": "maml", "inner_lr": 0.05, "tune": ASKED}
    file = write(metalearn.folder, "stale", sinusoid(method=method, budget={"trials": 2}))
    folder = metalearn.folder / "stale"
    assert metalearn("train", file, "--out", folder, before=planted("trials.json", 0)).code == -9
    config = folder / "tune/0/config.yaml"
    config.write_text(config.read_text().replace("inner_lr: 0.05", "inner_lr: 0.07"))
    environment = folder / "tune/0/environment.json"
    facts = json.loads(environment.read_text()) | {"config_hash": "x"}
    environment.write_text(json.dumps(facts))
    assert metalearn("resume", folder).code == 0
    assert yaml.safe_load(config.read_text())["method"]["inner_lr"] == 0.05


# the page


def test_the_page_shows_the_score_against_trials(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch", "fine_tune", "maml"], seeds=3)
    found = {row["label"]: row for row in compare(groups_of(tmp_path))["tuning"]}
    assert set(found) == {"scratch", "fine_tune"} and found["scratch"]["flops"] == 4e9
    best = found["scratch"]["best_so_far"]
    assert best == pytest.approx([best[2] - 0.1, best[2] - 0.1, best[2], best[2]])
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "Best score on validation tasks after each number of trials" in page
    assert (tmp_path / "figures" / "tuning.svg").exists()


def test_unequal_compute_fails(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch", "fine_tune"])
    configs = [tmp_path / f"methods/{name}/seed-0/config.yaml" for name in ("scratch", "fine_tune")]
    for config in configs:
        config.write_text(config.read_text() + "budget: {flops: 4.5e+9}\n")
    assert the_check(tmp_path, "equal tuning compute")["passed"]
    configs[0].write_text(configs[0].read_text().replace("4.5e+9", "9.0e+9"))
    found = the_check(tmp_path, "equal tuning compute")
    assert not found["passed"] and "4.5e+09 FLOPs: fine_tune; 9e+09 FLOPs: scratch" in found["why"]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([(1, 0.9e9, None)], ""),
        ([(1, 0.4e9, None)], "spent 4e+08 of 1e+09 FLOPs"),  # another trial was possible
        ([(1, 40e9, None)], "spent 4e+10 of 1e+09 FLOPs"),  # the first trial exceeds the budget
        ([(4, 0.6e9, 0.5e9)], ""),  # one more of the most expensive was not possible
        ([(4, 0.6e9, None)], "spent 6e+08 of 1e+09 FLOPs"),
        ([(5, 0.5e9, None), (5, 0.5e9, None)], ""),  # half of the budget each
        ([(5, 0.9e9, None), (5, 0.1e9, None)], "for inner_lr spent 9e+08 of 5e+08 FLOPs"),
        ([], "were not recorded"),
        ([(1, None, None)], "were not recorded"),
    ],
)
def test_equal_compute_is_what_was_spent(tmp_path: Path, stages: list[Any], words: str) -> None:
    write_rows(tmp_path, ["scratch", "fine_tune"])
    for label in ("scratch", "fine_tune"):
        folder = tmp_path / f"methods/{label}/seed-0"
        config, file = folder / "config.yaml", folder / "result.json"
        config.write_text(config.read_text() + "budget: {flops: 1.0e+9}\n")
        result = json.loads(file.read_text())
        names = ("trials", "flops", "largest_flops")
        if label == "scratch":
            made = [{"fields": ["inner_lr"], **dict(zip(names, one))} for one in stages]
            result["tuning"]["stages"] = made
        else:
            result["tuning"]["stages"][0] |= {"trials": 1, "flops": 1e9}
        file.write_text(json.dumps(result))
    found = the_check(tmp_path, "equal tuning compute")
    assert found["passed"] == (not words) and words in found["why"]
    assert not words or ("scratch" in found["why"] and "fine_tune" not in found["why"])


def test_a_list_of_values_that_was_tried_whole_equals_the_budget(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch"])
    config = tmp_path / "methods/scratch/seed-0/config.yaml"
    written = yaml.safe_load(config.read_text())
    for values, passed in (([0.1, 0.2, 0.3, 0.4], True), ([0.1, 0.2, 0.3, 0.4, 0.5], False)):
        written["method"]["tune"] = {"inner_lr": {"values": values}}
        config.write_text(yaml.safe_dump({**written, "budget": {"flops": 1e12}}))
        assert the_check(tmp_path, "equal tuning compute")["passed"] == passed


def test_a_folder_with_a_budget_of_flops_is_refused_where_both_are_given(
    metalearn: Commands,
) -> None:
    file = write(metalearn.folder, "both", sinusoid(method={"name": "maml", "tune": ASKED}))
    ended = metalearn("train", file, "budget.trials=2", "budget.flops=1e9", "--out", "both")
    refused(ended, "budget", "sets both trials (2) and flops (1e+09)")
