"""experiments/RESULTS.md: made of result files by one command, with verdicts by one rule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_folders import write_rows

from metalearn.errors import ConfigError
from metalearn.report import results_page
from metalearn.report.results_page import page, write_page
from metalearn.results.comparison import write_comparison
from metalearn.results.published import (
    _with_mean_ranks,
    comparison_result,
    describe_left_out,
    read_results,
    verdict,
)

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def cell(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "schema": 1,
        "kind": "cell",
        "command": "metalearn reproduce x",
        "experiment": "x",
        "label": "maml",
        "metric": "accuracy",
        "step": 1,
        "value": 0.95,
        "per_seed": [{"seed": 0, "value": 0.94}, {"seed": 1, "value": 0.96}],
        "ci95_tasks": 0.01,
        "ci95_seeds": 0.03,
        "tasks": 600,
        "published": 0.987,
        "published_ci95": 0.004,
        "source": "Finn et al. 2017, table 1",
        "schedule": "full",
    }
    return {**found, **changes}


def test_the_page_is_what_the_command_writes() -> None:
    assert (EXPERIMENTS / "RESULTS.md").read_text(encoding="utf-8") == page(EXPERIMENTS)


def test_a_number_of_the_tasks_that_converged_says_so() -> None:
    seeds = [{"seed": 0, "value": 0.4, "diverged": 0.0017}, {"seed": 1, "value": 0.5}]
    assert describe_left_out(cell(per_seed=seeds)) == ""
    shown = describe_left_out(cell(per_seed=seeds, converged_only=True))
    assert "diverged" in shown and "0.17 %" in shown


TEN_SEEDS = {"per_seed": [{"seed": seed, "value": 0.96} for seed in range(10)]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "below"),  # .98 against .983
        ({"value": 0.96, "ci95_seeds": 0.028}, "reproduced"),  # over seeds
        ({"value": 0.96, "ci95_tasks": 0.028, "ci95_seeds": None}, "reproduced"),
        ({"published_ci95": 0.008}, "reproduced"),
        ({"value": 1.05}, "above"),
        ({"interval": [0.93, 0.985]}, "reproduced"),
        ({"interval": [0.9, 1.0]}, "too wide to tell"),
        ({"value": 0.6, "published": 0.9, "ci95_seeds": 0.35}, "too wide to tell"),
        ({"value": 0.93, "ci95_seeds": None, "ci95_tasks": 0.5}, "too wide to tell"),
        ({"metric": "loss", "value": 0.4, "published": 0.35, "ci95_seeds": 0.06}, "reproduced"),
        (
            {"metric": "loss", "value": 0.4, "published": 0.35, "ci95_seeds": 0.08},
            "too wide to tell",
        ),
        # seeds and tasks together reach further than the wider of both
        ({"value": 0.96, "ci95_seeds": 0.02, "ci95_tasks": 0.02, **TEN_SEEDS}, "reproduced"),
        ({"value": 0.96, "ci95_seeds": 0.02, "ci95_tasks": 0.0, **TEN_SEEDS}, "below"),
        ({"schedule": "reduced"}, "reduced schedule"),
        ({"value": None}, "not run"),
    ],
)
def test_a_verdict_by_one_rule(changes: dict[str, Any], expected: str) -> None:
    assert verdict(cell(**changes)) == expected


def folder_with(tmp_path: Path, **files: dict[str, Any]) -> Path:
    """An `experiments` folder with one published experiment, and a template of every part."""
    (tmp_path / "results").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(data))
    shutil.copy(EXPERIMENTS / "maml_sinusoid.yaml", tmp_path)
    (tmp_path / "RESULTS.md.j2").write_text("{{ published }}{{ schedule('maml_sinusoid') }}")
    return tmp_path


def test_a_row_for_each_cell_and_for_what_was_not_run(tmp_path: Path) -> None:
    text = write_page(folder_with(tmp_path, one=cell())).read_text()
    row = next(line for line in text.splitlines() if line.startswith("| x | maml"))
    assert "0.987 ± 0.004 (Finn" in row and "| 0.95 | ± 0.01 | ± 0.03 | 0.940, 0.960 |" in row
    assert row.endswith("**below** |")
    assert text.count("not run: `metalearn reproduce maml_sinusoid`") == 3  # steps 1, 5, 10
    assert "| maml | maml | 70000 | 25 tasks | 600 | 0 |" in text
    assert "Not run, each one command" in text and "| 70,000 steps of 25 tasks | training" in text
    known = folder_with(tmp_path / "known", one=cell(experiment="maml_sinusoid"))
    assert "not run" not in page(known)


def test_a_damaged_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="published"):
        page(folder_with(tmp_path, one=cell(published="high")))


def test_a_finished_comparison_becomes_a_result_file(tmp_path: Path) -> None:
    root = write_rows(tmp_path / "run", ["maml", "fine_tune", "scratch"], seeds=3, episodes=60)
    comparison = json.loads(write_comparison(root).read_text())
    found = comparison_result(root, "make some", "2,000 steps")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "some.json").write_text(json.dumps(found))
    assert read_results(tmp_path / "results")["some"] == json.loads(json.dumps(found))
    rows = {row["label"]: row for row in found["rows"]}
    line = next(line for line in comparison["summary"] if line["label"] == "maml")
    assert rows["maml"]["interval"] == line["interval"] and len(rows["maml"]["per_seed"]) == 3
    assert rows["maml"]["flops_before"] == 2000 * 16 * 3e6
    assert rows["maml"]["flops_task"] == 10 * 3e6  # at the headline step
    assert len(found["contrasts"]) == len(comparison["contrasts"]) > 0
    (tmp_path / "RESULTS.md.j2").write_text("{{ comparison('some') }}{{ contrasts('some') }}")
    text = " ".join(page(tmp_path).split())
    assert "`make some`: glyphs, 5-way 1-shot, 15 queries per class; 60 test tasks, 3 seeds" in text
    assert "| maml − fine_tune | " in text


def test_a_comparison_has_the_interval_over_seeds_and_tasks_if_it_is_stored(tmp_path: Path) -> None:
    stored = json.loads((EXPERIMENTS / "results" / "compare_tables.json").read_text())
    folder = folder_with(tmp_path, some=stored)
    (folder / "RESULTS.md.j2").write_text("{{ comparison('some') }}")
    text = page(folder)
    low, high = (f"{100 * end:.1f}" for end in stored["rows"][0]["interval"])
    assert "| 95 %, seeds and tasks |" in text and f"| {low} to {high} |" in text
    assert "over seeds |" not in text
    stored["rows"] = [{**row, "interval": None} for row in stored["rows"]]
    (folder / "results" / "some.json").write_text(json.dumps(stored))
    assert "| over tasks | over seeds |" in page(folder)


def test_a_source_that_a_row_lacks_has_no_ranks() -> None:
    """Of a loss, a missing score would be the best one."""
    rows = [
        {"label": "a", "by_source": {"x": 1.0, "y": 2.0, "z": None}},
        {"label": "b", "by_source": {"x": 3.0, "z": 1.0}},
    ]
    first: Any = SimpleNamespace(metric="loss")
    assert [row["mean_rank"] for row in _with_mean_ranks(rows, first)] == [1, 2]
    alone = _with_mean_ranks([{**row, "by_source": {"z": None}} for row in rows], first)
    assert "mean_rank" not in alone[0]


def test_failed_checks_of_a_comparison_are_listed(tmp_path: Path) -> None:
    stored = json.loads((EXPERIMENTS / "results" / "compare_tables.json").read_text())
    (tmp_path / "results").mkdir()
    (tmp_path / "RESULTS.md.j2").write_text("{{ comparison('some') }}")
    for names, expected in ((["one", "two"], "that failed: one; two."), ([], "")):
        stored["failed_checks"] = names
        (tmp_path / "results" / "some.json").write_text(json.dumps(stored))
        text = page(tmp_path)
        assert ("failed" in text) == bool(names) and expected in text


def test_learning_curves_have_five_points_of_a_method() -> None:
    steps = list(range(0, 101, 10))
    curve = {"steps": steps, "values": [step / 100 for step in steps]}
    results = {"a": cell(step=1, validation=curve), "b": cell(step=5, validation=curve)}
    results["a0"] = cell(step=0, label="maml, best checkpoint alone", validation=curve)
    results["c"] = cell(
        experiment="y", metric="loss", validation={"steps": [1, 2], "values": [3, 2]}
    )
    results["d"] = cell(experiment="z", validation=None)
    lines = results_page._curves(results).splitlines()
    assert lines[2:] == [
        "| x | maml | 0: 0.000 | 20: 0.200 | 50: 0.500 | 80: 0.800 | 100: 1.00 |",
        "| y | maml | 1: 3.00 | 2: 2.00 | – | – | – |",
    ]


def test_a_difference_has_the_interval_of_independent_tasks() -> None:
    a, b = cell(value=0.6, ci95_tasks=0.03), cell(value=0.5, ci95_tasks=0.04, published=0.9)
    assert results_page._difference(a, b) == "+10.0 ± 5.0 points (published: +8.7)"


def test_the_spread_of_seeds_has_its_median() -> None:
    seeds = [{"seed": number, "value": value} for number, value in enumerate((0.9, 0.2, 0.4, 0.3))]
    assert results_page._spread(cell(per_seed=seeds)) == "0.200 to 0.900 with median 0.350"
