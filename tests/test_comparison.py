"""comparison.json: what it holds, and checks that fail on purpose."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import check_page
from run_folders import METHODS, groups_of, the_check, write_regression, write_rows, write_run

from metalearn.errors import ConfigError
from metalearn.report.page import write_report
from metalearn.results.comparison import collect, read_comparison, write_comparison


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("comparison"), list(METHODS), seeds=3)


def test_comparison_is_schema_1(comparison: Path) -> None:
    found = json.loads(
        write_comparison(comparison).read_text(), parse_constant=lambda word: pytest.fail(word)
    )
    assert list(found) == [
        "schema",
        "rules",
        "rows",
        "summary",
        "paired",
        "contrasts",
        "contrast_choice",
        "target",
        "levels",
        "break_even",
        "break_even_common",
        "decision_map",
        "decision_map_seconds",
        "sensitivity",
        "checks",
        "curves",
        "cost_curves",
        "solved",
        "break_even_lines",
        "total_cost",
        "equal_compute",
        "factors",
        "controls",
        "selection",
        "tuning",
        "inductive",
        "protocol",
    ]
    expected = (1, "accuracy", 30)
    assert (found["schema"], found["target"]["metric"], len(found["break_even"])) == expected
    assert len(found["rows"]) == 18 and len(found["paired"]) == 15
    on_disk = json.loads((comparison / "methods/maml/seed-1/result.json").read_text())
    assert on_disk in found["rows"]
    for line in found["summary"]:
        assert {"label", "value", "ci95_tasks", "ci95_seeds", "auc", "iqm"} <= set(line)
    # three methods made 4 trials, the others none
    failed = [check["name"] for check in found["checks"] if not check["passed"]]
    assert failed == ["equal tuning trials in each stage"]
    assert not list(comparison.glob(".*"))


def test_summary_is_what_the_scores_say(comparison: Path) -> None:
    found = {line["label"]: line for line in collect(comparison)["summary"]}
    values = [
        json.loads((comparison / f"methods/maml/seed-{s}/result.json").read_text())["headline"][
            "value"
        ]
        for s in range(3)
    ]
    assert found["maml"]["value"] == pytest.approx(np.mean(values))
    assert found["maml"]["ci95_seeds"] == pytest.approx(
        4.302652729 * np.std(values, ddof=1) / math.sqrt(3)
    )
    scores = [
        np.load(comparison / f"methods/maml/seed-{s}/scores.npz")["accuracy"][:, 4]
        for s in range(3)
    ]
    over_tasks = np.mean(scores, 0)
    assert found["maml"]["ci95_tasks"] == pytest.approx(
        1.963939 * over_tasks.std(ddof=1) / math.sqrt(600), rel=1e-4
    )
    assert found["proto_net"]["auc"] == pytest.approx(found["proto_net"]["value"], abs=1e-6)
    assert found["maml"]["auc"] < found["maml"]["auc_linear"]  # the early steps weigh more


def test_pairs_find_the_better_method(comparison: Path) -> None:
    pair = next(e for e in collect(comparison)["paired"] if {e["a"], e["b"]} == {"maml", "scratch"})
    assert pair["difference"] > 0.3 and pair["ci95"][0] > 0.25 and pair["p"] <= 0.001


def _edit(**parts: Any) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        for key, value in parts.items():
            result[key] = (
                {**result[key], **value} if isinstance(value, dict) and result[key] else value
            )

    return change


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("same new tasks", _edit(task={"shots": 5}), "differ"),
        (
            "same test episodes",
            _edit(episodes={"fingerprint": "e" * 64}),
            "eeeeeeeeeeee: maml seed 0",
        ),
        ("same normalisation policy", _edit(normalisation="running"), "running: maml"),
        ("few tasks diverged", _edit(test={"diverged": [0, 0, 0, 0, 0.04, 0.1]}), "maml 4.00%"),
        (
            "tuned values inside their range",
            _edit(tuned={"inner_lr": 0.99, "on_edge": ["inner_lr"]}),
            "inner_lr 0.99",
        ),
        ("at least 600 test episodes", _edit(episodes={"count": 599}), "599"),
    ],
)
def test_a_check_fails_on_purpose(tmp_path: Path, name: str, change: Any, why: str) -> None:
    write_rows(tmp_path, ["proto_net", "scratch"])
    assert the_check(tmp_path, name)["passed"]
    write_run(tmp_path / "methods/maml/seed-0", "maml", "maml", change=change)
    assert not the_check(tmp_path, name)["passed"]
    assert why in the_check(tmp_path, name)["why"]
    text = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "✗ failed" in text and name in text


def test_seeds_below_three_fail(tmp_path: Path, comparison: Path) -> None:
    assert the_check(comparison, "at least 3 seeds")["passed"]
    assert not the_check(write_rows(tmp_path, ["maml"], seeds=2), "at least 3 seeds")["passed"]


def test_a_leak_at_step_0_fails(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "proto_net"])
    assert the_check(tmp_path, "step 0 is chance")["passed"]
    file = tmp_path / "methods/maml/seed-0/scores.npz"
    scores = dict(np.load(file))
    scores["accuracy"][:, 0] += 0.02  # standard error 0.0037
    np.savez(file, **scores)
    assert not the_check(tmp_path, "step 0 is chance")["passed"]
    scores["accuracy"][:, 0] = 0.2  # always the same class: chance exactly, and no variance
    np.savez(file, **scores)
    assert the_check(tmp_path, "step 0 is chance")["passed"]


def test_missing_training_curves_fail(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"])
    found = the_check(tmp_path, "train-task against validation-task curves")
    assert found["passed"] and re.search(r"maml \+\d\.\d points", found["why"])
    (tmp_path / "methods/maml/seed-0/metrics.jsonl").write_text("")
    assert not the_check(tmp_path, "train-task against validation-task curves")["passed"]


def test_an_unfinished_row_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"])
    (tmp_path / "methods/maml/seed-0/result.json").unlink()
    assert (
        the_check(tmp_path, "every row is finished")["why"] == "not finished: methods/maml/seed-0"
    )
    (tmp_path / "methods/scratch/seed-0/result.json").unlink()
    with pytest.raises(ConfigError, match="no finished run"):
        collect(tmp_path)


def test_pairs_need_the_same_episodes(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch"])
    write_run(
        tmp_path / "methods/maml/seed-0",
        "maml",
        "maml",
        change=_edit(episodes={"fingerprint": "e" * 64}),
    )
    (pair,) = collect(tmp_path)["paired"]
    assert pair["difference"] is None and "same test episodes" in pair["why"]


def test_undefined_numbers_are_none_and_counted(tmp_path: Path) -> None:
    for label, exploding in (("maml", 8), ("pretrained", 0)):
        write_regression(tmp_path / f"methods/{label}/seed-0", label, exploding=exploding)
    text = write_comparison(tmp_path).read_text()
    assert "NaN" not in text and "Infinity" not in text
    found = json.loads(text)
    row = next(row for row in found["rows"] if row["label"] == "maml")
    assert row["test"]["loss"][5] is None and row["test"]["diverged"][5] == pytest.approx(8 / 600)
    line = next(line for line in found["summary"] if line["label"] == "maml")
    assert (
        line["iqm"] is not None and line["value"] is not None
    )  # the headline is step 1, before they explode


def test_a_comparison_reads_whatever_it_writes(tmp_path: Path) -> None:
    """Candidates that explode have scores far above what a file may hold."""
    write_rows(tmp_path, ["maml", "scratch"])
    score = np.array([[1.0, -3e35, 0.5], [0.2, -1e37, 0.1]])
    place = tmp_path / "methods/maml/seed-0/selection.npz"
    np.savez(place, score=score, truth=score / 2)
    found = json.loads(write_comparison(tmp_path).read_text())
    assert found["selection"][0]["gain"] is None  # beyond what files hold
    groups = groups_of(tmp_path)
    assert read_comparison(tmp_path, groups) == found
    check_page(write_report([tmp_path], tmp_path / "report.html"))
