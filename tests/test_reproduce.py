"""`metalearn reproduce`: published numbers, run, compared and recorded."""

from __future__ import annotations

import json
import math

import pytest
from commandline import Commands, files_of, refused, sinusoid, write

from metalearn.compare.reproduce import Cell, chosen, table
from metalearn.errors import ConfigError
from metalearn.results.published import read_results


def cell(
    value: float, metric: str = "accuracy", published: float = 0.9, ci95: float = 0.01
) -> Cell:
    return Cell("x", "maml", 1, metric, published, 0.005, value, ci95, 600, 1, "A paper, table 1")


def test_a_verdict_says_whether_the_intervals_meet_and_how_far_apart_they_are() -> None:
    assert cell(0.912).verdict == cell(0.886).verdict == "agrees"
    assert cell(0.92).verdict == "better by 2.2 %"
    assert cell(0.81).verdict == "worse by 10.0 %"
    assert cell(0.81, "loss").verdict == "better by 10.0 %"
    assert cell(1.8, "loss").verdict == "worse by 100.0 %"
    assert cell(math.nan).verdict == "diverged"
    assert (
        "| 0.9 ± 0.005 (A paper, table 1) | 0.81 ± 0.01 | 600, 1 | worse by 10.0 % |"
        in table([cell(0.81)])[-1]
    )


def test_every_experiment_with_a_published_number_is_chosen_and_no_other() -> None:
    names = {plan.name for plan in chosen([])}
    assert {"maml_sinusoid", "maml_sinusoid_pretrained", "maml_omniglot_5w1s"} <= names
    assert not names & {"demo", "compare_sinusoid"}
    with pytest.raises(ConfigError) as error:
        chosen(["demo", "nothing_of_the_kind"])
    assert [place for place, _ in error.value.problems] == ["demo", "nothing_of_the_kind"]


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
    assert [seed["seed"] for seed in found["per_seed"]] == [0, 1] and len(found["interval"]) == 2
    assert found["config_hash"] == results[0]["config_hash"] and found["schedule"] == "full"
    before = files_of(metalearn.folder / "all" / "one")
    again = metalearn("reproduce", "one.yaml", "--out", "all")
    assert (
        again.code == 0
        and "left alone" in again.err
        and files_of(metalearn.folder / "all" / "one") == before
    )


def test_what_cannot_be_reproduced_is_refused_before_anything_runs(metalearn: Commands) -> None:
    write(metalearn.folder, "bare", sinusoid(experiment="bare"))
    write(metalearn.folder, "good", sinusoid(experiment="good", published={"value": 1.0}))
    refused(
        metalearn("reproduce", "bare.yaml", "good.yaml", "missing", "--out", "none"),
        "bare.yaml",
        "missing",
    )
    assert not (metalearn.folder / "none").exists()
