"""The check that new tasks were timed alone on the machine: rounds that took far longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import check_page
from run_folders import groups_of, the_check, write_rows, write_run

from metalearn.evaluate.cost_block import EACH
from metalearn.report.page import write_report
from metalearn.results.break_even.counts import NO_TIMING
from metalearn.results.comparison import collect
from metalearn.results.design.timing import COLUMNS, Kind, round_ratios, seconds_problems

NAME = "new tasks were timed alone on the machine"


def write(
    root: Path, label: str, rounds: list[list[float]], kind: Kind = "seconds_alone", **flops: float
) -> None:
    """Write seeds with these rounds; `flops`: those of `adapt` per task, by name of the seed."""
    for seed, own in enumerate(rounds):

        def change(result: dict[str, Any], seed: int = seed, own: list[float] = own) -> None:
            for phase in EACH:
                busy = 1.0 if phase == "adapt" else 0.0
                kinds = {name: [0.01] * len(own) for name in COLUMNS} | {kind: own}
                result["cost"][phase]["rounds"] = {
                    kind: [busy * value for value in values] for kind, values in kinds.items()
                }
            result["cost"]["adapt"]["flops"] = flops.get(f"seed_{seed}", 1e6)

        write_run(root / f"methods/{label}/seed-{seed}", label, "maml", seed, change=change)


def test_the_slowest_round_is_named_with_its_ratio(tmp_path: Path) -> None:
    write(tmp_path, "fine_tune", [[0.16, 0.15], [0.15, 0.14], [0.18]])
    write(tmp_path, "scratch", [[0.17, 0.14], [0.15, 0.14], [0.16]])
    check = the_check(tmp_path, NAME)
    assert check["passed"] and "5 interleaved rounds" in check["why"]
    assert check["why"].endswith("slowest round: fine_tune, 1.2 times the median of its method")


def test_a_round_of_more_than_twice_the_median_fails(tmp_path: Path) -> None:
    """Measured: 4.4 times the median, while other processes had 0.5 % of the cores."""
    write(tmp_path, "fine_tune", [[0.156, 0.679], [0.150, 0.135], [0.149]])
    write(tmp_path, "scratch", [[0.17, 0.14], [0.15, 0.14], [0.16]])
    check = the_check(tmp_path, NAME)
    assert not check["passed"] and "scratch" not in check["why"]
    expected = "(fine_tune 4.5, “learning one task alone”: the number is doubtful, and no verdict"
    assert f"more than 2 times the median of its method {expected}" in check["why"]


@pytest.mark.parametrize("kind", ["seconds_batched", "seconds_alone"])
def test_a_slow_round_allows_no_verdict_where_its_seconds_enter(tmp_path: Path, kind: Kind) -> None:
    """Verdicts use the seconds of a task in a batch; those of one task alone are marked."""
    write(tmp_path, "fine_tune", [[0.156, 0.679], [0.150, 0.135], [0.149]], kind)
    write(tmp_path, "scratch", [[0.17, 0.14], [0.15, 0.14], [0.16]], kind)
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["fine_tune", "scratch"]]}')
    groups = groups_of(tmp_path)
    in_batch = kind == "seconds_batched"
    expected = {"fine_tune": "a round took 4.5 times the median"} if in_batch else {}
    assert seconds_problems(groups) == expected
    found = collect(tmp_path, target={"metric": "accuracy", "value": 0.5})
    row = next(one for one in found["break_even"] if one["axis"] == "seconds")
    assert (NO_TIMING in row["why"]) == in_batch
    assert ("fine_tune" in found["decision_map_seconds"]["unsettled"]) == in_batch
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert ("no verdict in seconds of this method" in page) == in_batch
    assert page.count("slow round") == 1


def test_load_during_one_row_allows_no_verdict_of_any(tmp_path: Path) -> None:
    """Rounds are interleaved, so that load during those of one row is load for all."""

    def busy(result: dict[str, Any]) -> None:
        result["timing"] = {"rounds": 5, "others": 0.4}

    write_run(tmp_path / "methods/maml/seed-0", "maml", "maml", change=busy)
    write_rows(tmp_path, ["scratch"])
    why = "other processes used 40% of the cores"
    assert seconds_problems(groups_of(tmp_path)) == {"maml": why, "scratch": why}


def test_seeds_with_other_flops_have_a_median_each(tmp_path: Path) -> None:
    """The second architecture takes three times as long; then one of its two rounds is slow."""
    write(tmp_path / "a", "searched", [[0.1, 0.1], [0.3, 0.33], [0.1]], seed_1=3e6)
    assert round_ratios(groups_of(tmp_path / "a")[0])["seconds_alone"] == pytest.approx(1.1)
    write(tmp_path / "b", "searched", [[0.1, 0.1], [0.3, 0.9], [0.1]], seed_1=3e6)
    assert round_ratios(groups_of(tmp_path / "b")[0])["seconds_alone"] == pytest.approx(3)


def test_without_rounds_or_with_a_search_per_task_there_is_no_ratio(tmp_path: Path) -> None:
    """Each round searches for another task, and searches take unequal time."""

    def change(result: dict[str, Any]) -> None:
        for phase in EACH:
            result["cost"][phase]["rounds"] = {"seconds_alone": [0.1, 0.1, 0.9]}

    write_run(tmp_path / "a/methods/nas/seed-0", "nas", "maml", change=change)

    def without(result: dict[str, Any]) -> None:
        for phase in EACH:
            del result["cost"][phase]["rounds"]

    write_run(tmp_path / "b/methods/maml/seed-0", "maml", "maml", change=without)
    assert round_ratios(groups_of(tmp_path / "a")[0]) == {}
    assert round_ratios(groups_of(tmp_path / "b")[0]) == {}
