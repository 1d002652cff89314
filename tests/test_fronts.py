"""The Pareto front of cost and score, decided by intervals and tested differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_folders import write_rows

from metalearn.evaluate.pareto import place_by_interval
from metalearn.results.comparison import collect


@pytest.mark.parametrize(
    ("cost", "others", "expected"),
    [
        ((10, 10), [((5, 5), (0.01, 0.05))], "off"),  # cheaper and surely better
        ((10, 10), [((5, 5), (-0.01, 0.05))], "open"),
        ((10, 10), [((5, 5), (-0.05, -0.01))], "on"),  # cheaper, surely worse
        ((10, 10), [((11, 12), (0.2, 0.3))], "on"),  # better, surely dearer
        ((10, 12), [((11, 13), (0.2, 0.3))], "open"),  # better, perhaps cheaper
        ((10, 10), [((10, 10), (0.01, 0.02))], "off"),  # as dear
        ((10, 10), [((1, 1), None)], "open"),  # cheaper, and perhaps better
        ((10, 10), [((11, 12), None)], "on"),  # surely dearer
        ((10, 10), [(None, (0.01, 0.02))], "open"),  # better, and perhaps cheaper
        ((10, 10), [(None, (-0.02, -0.01))], "on"),  # surely worse
        (None, [((5, 5), (0.01, 0.02))], None),
    ],
)
def test_the_front_by_intervals(cost: Any, others: Any, expected: str | None) -> None:
    assert place_by_interval(cost, others) == expected


@pytest.mark.parametrize(("seeds", "place"), [(2, "open"), (3, "on")])
def test_the_front_is_decided_by_enough_seeds(tmp_path: Path, seeds: int, place: str) -> None:
    write_rows(tmp_path, ["proto_net", "scratch"], seeds=seeds)
    assert {row["front"]["flops"] for row in collect(tmp_path)["total_cost"]} == {place}


def test_the_cost_of_tuning_alone_takes_no_method_off_the_front(tmp_path: Path) -> None:
    """scratch is worse than proto_net, and dearer by its tuning alone."""

    def costly_tuning(result: dict[str, Any]) -> None:
        if result["label"] == "scratch":
            result["cost"]["tune"]["flops"] = 1e15

    write_rows(tmp_path / "a", ["proto_net", "scratch"], seeds=3)
    write_rows(tmp_path / "b", ["proto_net", "scratch"], seeds=3, change=costly_tuning)
    places = [
        {row["label"]: row["front"]["flops"] for row in collect(tmp_path / name)["total_cost"]}
        for name in "ab"
    ]
    assert places[0]["scratch"] == "on" and places[1]["scratch"] == "open"


def test_only_a_tested_difference_takes_a_method_off_the_front(tmp_path: Path) -> None:
    """proto_net costs less than maml and is better, by an interval that no test corrected."""
    write_rows(tmp_path, ["proto_net", "maml", "scratch"], seeds=3)
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["maml", "scratch"]]}')
    found = collect(tmp_path)
    pair = next(one for one in found["paired"] if {one["a"], one["b"]} == {"proto_net", "maml"})
    assert not pair["contrast"] and not pair["ci95"][0] <= 0 <= pair["ci95"][1]
    fronts = {row["label"]: row["front"]["flops"] for row in found["total_cost"]}
    assert fronts["maml"] == "open"
