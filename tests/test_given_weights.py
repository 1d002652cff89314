"""Weights that somebody else has trained: what comparisons and reports say of their price."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from metalearn.report.page import write_report
from metalearn.results.break_even.decision_map import find_candidates
from metalearn.results.comparison import collect
from metalearn.results.costs import missing_phases, total_seconds, up_front_cost
from metalearn.results.records import Group, load

GIVEN = {
    "backbone": "mine",
    "licence": "MIT",
    "trained_on": "photographs",
    "overlap": "it covers most test classes",
    "parameters": 3_371_008,
    "size": 128,
    "frozen": True,
    "pretrain_flops": "unknown",
    "pretrain_source": "",
}


def priced(flops: Any = "unknown", source: str = "") -> Any:
    """Edits a result.json: nothing was spent here before the first task, and weights are given."""

    def change(result: dict[str, Any]) -> None:
        for phase in ("tune", "meta_train"):
            result["cost"][phase] |= {"flops": 0, "seconds": 0.0}
        own = {"flops": 0, "seconds": 0.0}
        result["cost"]["pretrain"] |= {"flops": flops, "seconds": "unknown", "own": own}
        result["provenance"] = {**GIVEN, "pretrain_flops": flops, "pretrain_source": source}

    return change


def compared(folder: Path, flops: Any = "unknown", source: str = "") -> dict[str, Any]:
    for seed in range(3):
        write_run(folder / f"methods/maml/seed-{seed}", "maml", "maml", seed)
        lite = folder / f"methods/lite/seed-{seed}"
        write_run(lite, "lite", "fine_tune", seed, change=priced(flops, source))
    for config in folder.rglob("config.yaml"):
        config.write_text(config.read_text() + "evaluate: {targets: [0.4]}\n")
    return collect(folder)


def groups(folder: Path, label: str) -> Group:
    return Group(label, [load(folder / f"methods/{label}/seed-{seed}") for seed in range(3)])


def in_flops(found: dict[str, Any]) -> dict[str, Any]:
    (row,) = (row for row in found["break_even"] if row["axis"] == "flops")
    return dict(row)


def test_an_unknown_price_decides_nothing_and_the_free_count_stands_beside_it(
    tmp_path: Path,
) -> None:
    row = in_flops(compared(tmp_path))
    assert row["verdict"] == "undecided" and row["tasks"] is None
    price = "the cost of the pretraining of lite was not published"
    assert row["why"] == price
    free = row["variants"][-1]
    assert free["with_given"] is False and free["with_tuning"] is True
    assert free["verdict"] != "undecided" or free["tasks"] is not None
    run = groups(tmp_path, "lite").first
    assert up_front_cost(run, "flops") is None
    assert up_front_cost(run, "flops", pretraining=False) == 0
    assert up_front_cost(run, "seconds", pretraining=False) == 0
    assert missing_phases(run) == [] and total_seconds(run) is not None
    both = [groups(tmp_path, label) for label in ("maml", "lite")]
    assert find_candidates(both, "accuracy", [0.4], "flops").left_out == {"lite": price}


def test_a_declared_price_counts_and_free_to_us_it_does_not(tmp_path: Path) -> None:
    row = in_flops(compared(tmp_path, 1e18, "a paper, table 2"))
    free = row["variants"][-1]
    assert "unknown" not in row["why"]
    run = groups(tmp_path, "lite").first
    assert up_front_cost(run, "flops") == 1e18
    assert up_front_cost(run, "flops", pretraining=False) == 0
    assert (row["a"], row["verdict"], row["tasks"]) != (free["a"], free["verdict"], free["tasks"])


def test_rows_without_given_weights_have_no_such_count(tmp_path: Path) -> None:
    for seed in range(3):
        for label in ("maml", "scratch"):
            write_run(tmp_path / f"methods/{label}/seed-{seed}", label, label, seed)
    target = {"metric": "accuracy", "value": 0.4, "why": "named"}
    found = collect(tmp_path, target=target)
    assert {len(row["variants"]) for row in found["break_even"]} == {2}


@pytest.mark.parametrize("flops", ["unknown", 1e18])
def test_the_page_names_licence_overlap_and_price(tmp_path: Path, flops: Any) -> None:
    compared(tmp_path, flops, "a paper, table 2")
    text = write_report([tmp_path], tmp_path / "report.html").read_text("utf-8")
    for part in ("Weights trained by others", "MIT", "3,371,008", GIVEN["overlap"]):
        assert str(part) in text
    assert (">not published<" in text) == (flops == "unknown")
    assert ("a paper, table 2" in text) == (flops != "unknown")
    assert "pretraining excluded" in text
