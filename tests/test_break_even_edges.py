"""Comparisons with known up-front cost, cost of a task and success: comparison.json holds the
analytic count and verdict at every edge."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pages import check_page
from run_folders import groups_of, write_run

from metalearn.errors import ConfigError
from metalearn.evaluate import targets
from metalearn.report.page import write_report
from metalearn.results.break_even.sensitivity import sensitivity
from metalearn.results.comparison import collect

TASKS = 200


class Row(NamedTuple):
    """A row of a comparison whose tasks all cost the same."""

    up_front: float
    each: float  # FLOPs of a solved task: all cost over the solved
    share: float = 1.0
    seeds: int = 3
    score: float = 1.0  # of a solved task; 0 of the others


def write(root: Path, label: str, row: Row) -> None:
    """Run directories in which `share` of the tasks is solved, under every seed the same."""

    def change(result: dict[str, Any]) -> None:
        cost = result["cost"]
        for phase in ("tune", "meta_train"):
            cost[phase] |= {"flops": 0, "seconds": 0.0}
        cost["pretrain"] |= {"flops": row.up_front, "seconds": 1.0}
        # the headline is step 10 of 20
        cost["adapt"] |= {"flops": 2 * row.each * (row.share or 1.0), "flops_at_start": 0}

    for seed in range(row.seeds):
        place = root / "methods" / label / f"seed-{seed}"
        write_run(place, label, "fine_tune", seed, episodes=TASKS, change=change)
        scores = dict(np.load(place / "scores.npz"))
        solved = np.arange(TASKS) < round(row.share * TASKS)
        scores["accuracy"][:] = row.score * solved[:, None]
        np.savez(place / "scores.npz", **scores)


def compared(tmp_path: Path, a: Row, b: Row) -> dict[str, Any]:
    """The break-even row in FLOPs of the contrast of `a` and `b`."""
    write(tmp_path, "a", a)
    write(tmp_path, "b", b)
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["a", "b"]]}')
    found = collect(tmp_path, target={"metric": "accuracy", "value": 0.5})["break_even"]
    return dict(next(row for row in found if row["axis"] == "flops"))


@pytest.mark.parametrize(
    ("a", "b", "verdict", "tasks", "why"),
    [
        (Row(1000, 2), Row(0, 12), "pays", 100, ""),
        (Row(1000, 2), Row(500, 7), "pays", 100, ""),
        (Row(1000, 2, 0.9), Row(0, 12, 0.9), "pays", 100, ""),
        (Row(1000, 5), Row(1000, 5), "same", None, "cost the same"),  # equal costs
        (Row(1000, 5.5), Row(0, 5), "never", None, "no less per solved task"),
        (Row(1000, 5), Row(0, 5), "undecided", None, "cheaper per solved task is undecided"),
        (Row(0, 1), Row(0, 5), "always", 1, ""),  # zero up-front
        (Row(0, 5), Row(0, 5), "same", None, ""),
        (Row(3, 1), Row(0, 5), "always", 1, ""),  # repaid by the first task
        (Row(1000, 2), Row(999, 2.0002), "same", None, "within 10%"),
        (Row(1000, 2, 0.5), Row(0, 12, 0.5), "undecided", 100, "possibly fewer than 50%"),
        (Row(1000, 2, 0.9), Row(0, 12, 0.8), "undecided", 100, "possibly above 10 points"),
        (Row(1000, 2, 0.95), Row(0, 12, 0.7), "not_reached", None, "no common level"),
        (Row(1000, 2, 0.3), Row(0, 12, 0.3), "not_reached", None, "fewer than 50%"),
        (Row(1000, 2, 0.0), Row(0, 12), "not_reached", None, "solved 0%"),  # no task solved
        (Row(1000, 2, 0.0), Row(0, 12, 0.0), "not_reached", None, "solved 0%"),
        (Row(1000, 2, seeds=1), Row(0, 12, seeds=1), "undecided", 100, "1 seed: a verdict needs"),
        (Row(1000, 2, seeds=5), Row(0, 12), "pays", 100, ""),  # 3 seeds against 5
        (Row(1000, 2, seeds=5), Row(0, 12, seeds=1), "undecided", 100, "b has 1 seed"),
        (Row(1000, 2, seeds=1), Row(0, 12, 0.75), "undecided", None, "by 25 points: no common"),
        (Row(1000, 2, seeds=1), Row(0, 12, 0.3), "undecided", None, "b solved 30% of its tasks"),
    ],
)
def test_the_analytic_verdict(
    tmp_path: Path, a: Row, b: Row, verdict: str, tasks: int | None, why: str
) -> None:
    found = compared(tmp_path, a, b)
    assert (found["verdict"], found["tasks"]) == (verdict, tasks), found["why"]
    assert why in found["why"] and found["contrast"]
    if tasks is not None:
        assert (found["a"], found["b"]) == ("a", "b")
    if a.seeds != b.seeds:
        assert found["seeds"] == [a.seeds, b.seeds]


@pytest.mark.parametrize("place", ["pretrain", "adapt"])
@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_cost_that_is_no_number(tmp_path: Path, place: str, value: float | None) -> None:
    """Not finite: the file is refused; null: not measured, so undecided."""
    write(tmp_path, "a", Row(1000, 2))
    file = tmp_path / "methods/a/seed-1/result.json"
    result = json.loads(file.read_text())
    result["cost"][place]["flops"] = value
    file.write_text(json.dumps(result))
    if value is not None:
        with pytest.raises(ConfigError, match=f"cost.{place}.flops"):
            collect(tmp_path)
        return
    write(tmp_path, "b", Row(0, 12))
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["a", "b"]]}')
    found = collect(tmp_path, target={"metric": "accuracy", "value": 0.5})["break_even"]
    assert found[0]["verdict"] == "undecided" and "not measured: the cost of a" in found[0]["why"]


def test_lines_of_solved_tasks_end_at_the_plain_fraction_in_both_units(tmp_path: Path) -> None:
    """The steps of seed 0 take a tenth of the time of those of seed 1."""
    for seed, speed in enumerate((0.1, 1.0)):

        def change(result: dict[str, Any], speed: float = speed) -> None:
            result["cost"]["adapt"]["seconds_batched"] *= speed

        write_run(tmp_path / f"methods/maml/seed-{seed}", "maml", "maml", seed, change=change)
    target = {"metric": "accuracy", "value": 0.85}
    row = collect(tmp_path, target=target)["solved"][0]
    runs = groups_of(tmp_path)[0].runs
    last = [targets.reaches(run.scores["accuracy"][:, -1], 0.85, higher=True) for run in runs]
    fraction = float(np.mean(last))
    ends = [row["within"][axis]["share"][-1] for axis in ("flops", "seconds")]
    assert 0.2 < fraction < 0.9 and ends == pytest.approx([fraction, fraction])


def report(root: Path, target: float) -> Path:
    """The page, for a target that every run names."""
    for config in root.glob("methods/*/*/config.yaml"):
        named = f"evaluate: {{target: {{metric: accuracy, value: {target}}}}}\n"
        config.write_text(config.read_text() + named)
    return write_report([root], root / "report.html")


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_level_of_a_pair_is_on_the_page(tmp_path: Path, seeds: int) -> None:
    """All tasks of b score 0.7 and those of a 1: 70 % is the hardest level that both reach."""
    write(tmp_path, "a", Row(1000, 2, seeds=seeds))
    write(tmp_path, "b", Row(0, 12, seeds=seeds, score=0.7))
    write(tmp_path, "c", Row(0, 12, 0.75, seeds=seeds))
    target = {"metric": "accuracy", "value": 0.9}
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["a", "b"]]}')
    found = collect(tmp_path, target=target)["break_even_common"]
    rows = {(row["a"], row["b"]): row for row in found if row["axis"] == "flops"}
    assert rows["a", "b"]["level"] == 0.7 and rows["a", "b"]["tasks"] == 100
    assert rows["a", "c"]["level"] is None and rows["a", "c"]["tasks"] is None
    page = report(tmp_path, 0.9)
    text = page.read_text()
    assert all(row["verdict"] == "undecided" for row in found)
    assert "the level was chosen on these tasks" in rows["a", "b"]["why"]
    verdict = "not reached" if seeds == 3 else "undecided"  # the matrix is at the target
    basis = f"(seeds: {seeds} and {seeds}; {TASKS} tasks)"
    assert f'title="a against b: {verdict}, at 90 % {basis}">' in text
    assert f'title="a against c: an estimate, not tested, at 90 % {basis}">' in text
    table = text[text.index("Estimates at the highest level") :].split("</table>")[0]
    assert "estimate, level chosen on these tasks" in table and "<strong>" not in table
    words = check_page(page).text
    assert "by 25 points" in words and "from the target down in steps of 5 points" in words


def test_verdicts_are_at_one_level_with_tuning_and_without_answers(tmp_path: Path) -> None:
    write(tmp_path, "a", Row(1e15, 2e12))
    write(tmp_path, "b", Row(0, 12e12))
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["a", "b"]]}')
    named = "evaluate: {target: {metric: accuracy, value: 0.6}, targets: [0.4, 0.6, 0.8]}\n"
    for config in tmp_path.glob("methods/*/*/config.yaml"):
        config.write_text(config.read_text() + named)
    rows = [row for row in collect(tmp_path)["break_even"] if row["axis"] == "flops"]
    found = [(row["level"], row["primary"], row["verdict"]) for row in rows]
    assert found == [(0.4, False, "undecided"), (0.6, True, "pays"), (0.8, False, "undecided")]
    assert all(row["contrast"] and row["tasks"] == 100 and row["ci95"] for row in rows)
    assert "verdicts are at the level next to the target" in rows[0]["why"]
    for row in rows:
        assert all(one["verdict"] == "undecided" for one in row["variants"])
        expected = "pays" if row["primary"] else "undecided"
        assert {one["verdict"] for one in row["by_queries"]} == {expected}
    words = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    # in FLOPs and in seconds
    tests = "Pairs tested here (“not reached” is decided by a test as well)"
    assert f"{tests}: 1 in FLOPs and 1 in seconds; at most about 0.05 of these" in words


def test_not_reached_counts_as_a_test(tmp_path: Path) -> None:
    """It is decided by the interval of a fraction, though the row has no interval of tasks."""
    write(tmp_path, "a", Row(1e15, 2e12))
    write(tmp_path, "b", Row(0, 12e12, share=0.2))
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["a", "b"]]}')
    page = check_page(report(tmp_path, 0.6)).text
    assert "fewer than 50%" in page
    assert "is decided by a test as well): 1 in FLOPs and 1 in seconds" in page


def test_never_is_printed_once(tmp_path: Path) -> None:
    write(tmp_path, "a", Row(1e12, 6e12))
    write(tmp_path, "b", Row(0, 5e12))
    write(tmp_path, "c", Row(0, 12e12))
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["a", "b"], ["a", "c"]]}')
    text = report(tmp_path, 0.5).read_text()
    for start, end in (("By number of queries", "</table>"), ("Sensitivity of the", "</table>")):
        part = text[text.index(start) :]
        part = part[: part.index(end)]
        assert re.search("<td>(<strong>)?never<", part)
        assert not re.search(r"never\s*<small>never", part)


def test_sensitivity_starts_at_the_hardest_level_that_estimates_reach(tmp_path: Path) -> None:
    write(tmp_path, "a", Row(1000, 2, seeds=1))
    write(tmp_path, "b", Row(0, 12, seeds=1, score=0.7))
    write(tmp_path, "c", Row(0, 12, 0.75, seeds=1))
    target = {"metric": "accuracy", "value": 0.9}
    pairs = [("a", "b"), ("a", "c")]
    found = sensitivity(groups_of(tmp_path), target, [0.4, 0.6, 0.9], pairs)
    assert [(row["level"], row["choices"][0]["tasks"]) for row in found] == [
        (0.6, 100),
        (0.4, None),
    ]
