"""Decision maps, counts by number of queries and likelihoods of comparisons that are recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import groups_of, write_rows

from metalearn.errors import ConfigError
from metalearn.evaluate.decision.packed import pack_map, unpack_map
from metalearn.report.figures.decision import map_text
from metalearn.report.recorded.comparison import contrasts_text
from metalearn.report.results_page import page
from metalearn.results.comparison import write_comparison
from metalearn.results.published import (
    LIKELIHOOD,
    MAPS,
    cell_result,
    comparison_result,
    single_cell,
)

RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "results"
Json = dict[str, Any]
LISTS = ("queries", "winner", "settled", "stops_after")
ALONG: Json = {  # the second number of tasks has no winner, the third one a checkpoint
    "axis": "flops",
    "tasks": [1, 10, 100],
    "targets": [0.5, 0.9],
    "queries": [1, 75],
    "winner": [[["b", None, "a"], [None, None, None]], [["a", "a", "b"], ["b", "b", "b"]]],
    "stops_after": [[[None, None, 200], [None] * 3], [[400, None, None], [None] * 3]],
    "settled": [[[True, False, False], [True, True, False]], [[True] * 3, [False] * 3]],
    "along": {"a": [200, 400]},
    "as_tested": 75,
    "metric": "accuracy",
    "left_out": {"c": "unknown"},
    "unsettled": "",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("comparison")
    write_rows(root, ["maml", "proto_net", "scratch"], seeds=3, episodes=60)
    write_comparison(root)
    return root


def read(root: Path) -> Json:
    return dict(json.loads((root / "comparison.json").read_text()))


def record(root: Path, **changes: Any) -> Json:
    """The result file of a comparison after changes of its comparison.json; None: no such key."""
    before = (root / "comparison.json").read_text()
    contents = {**json.loads(before), **changes}
    changed = {name: value for name, value in contents.items() if value is not None}
    (root / "comparison.json").write_text(json.dumps(changed))
    try:
        return comparison_result(root, "make some", "2,000 steps")
    finally:
        (root / "comparison.json").write_text(before)


def drawn(folder: Path, stored: Json, template: str) -> str:
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / "some.json").write_text(json.dumps(stored))
    (folder / "RESULTS.md.j2").write_text(template)
    return page(folder)


def at_queries(grid: Json, queries: int) -> Json:
    place = grid["queries"].index(queries)
    return {**grid, **{name: grid[name][place : place + 1] for name in LISTS if name in grid}}


def test_a_packed_map_has_every_cell(finished: Path) -> None:
    assert unpack_map(pack_map(ALONG)) == ALONG
    assert pack_map(ALONG)["cells"][0] == ["0 -? 1@200?", "- - -?"]
    found = read(finished)["decision_map"]
    packed = pack_map(found)
    assert unpack_map(packed) == {name: found[name] for name in found if name != "share"}
    assert len(json.dumps(packed)) < len(json.dumps(found)) / 4


def test_a_record_draws_the_map_of_its_comparison(finished: Path, tmp_path: Path) -> None:
    stored, found = record(finished), read(finished)
    assert {name for name in stored if name in MAPS} == {"decision_map", "decision_map_seconds"}
    for asked, queries in (("", 75), (", 100", 100)):
        text = drawn(tmp_path, stored, f"{{{{ decision_map('some'{asked}) }}}}")
        expected = map_text(at_queries(found["decision_map"], queries))
        assert f"```\n{expected}\n```" in text
        assert text.count("cheapest in flops") == 1 and "Left out" not in text


def test_the_map_of_free_pretraining_follows_that_with_its_cost(
    finished: Path, tmp_path: Path
) -> None:
    shares = {"share": [[[0.5] * 3] * 2] * 2}
    free_map = {**ALONG, **shares, "left_out": {}, "pretraining": "free"}
    stored = record(finished, decision_map={**ALONG, **shares}, decision_map_free=free_map)
    text = drawn(tmp_path, stored, "{{ decision_map('some') }}")
    paid, _, free = text.partition("The cheapest method without the cost of pretraining")
    assert map_text(at_queries(ALONG, 75)) in paid
    assert map_text(at_queries({**ALONG, "left_out": {}, "pretraining": "free"}, 75)) in free
    assert "90 %  b    b    b" in paid and "Left out: c (unknown)." in paid
    assert "Left out" not in free and text.count("```") == 4


def test_a_record_without_a_map_prints_none(finished: Path, tmp_path: Path) -> None:
    stored = record(finished, **dict.fromkeys(MAPS))
    assert not any(name in MAPS for name in stored)
    assert drawn(tmp_path, stored, "{{ decision_map('some') }}") == ""


def test_a_damaged_map_is_refused(finished: Path, tmp_path: Path) -> None:
    stored = record(finished)
    stored["decision_map"]["cells"][0][0] = "0 one"
    with pytest.raises(ConfigError, match="cells"):
        drawn(tmp_path, stored, "")


def count(queries: int | None, tasks: int | None, **more: Any) -> Json:
    scope = {"with_tuning": True, "with_answering": True, "queries": queries, "with_given": True}
    ends = None if tasks is None else [tasks / 2, 2 * tasks]
    entry = {"a": "maml", "b": "scratch", "verdict": "undecided", "tasks": tasks, "ci95": ends}
    return {**scope, **entry, **more}


def with_counts(*entries: Json, **more: Any) -> Json:
    by_queries = [one for one in entries if one["queries"] is not None]
    variants = [one for one in entries if one["queries"] is None]
    row = {"a": "maml", "b": "scratch", "axis": "flops", "level": 0.8, "primary": True}
    row |= {"by_queries": by_queries, "variants": variants} | more
    pair = {"a": "maml", "b": "scratch", "difference": 0.1, "ci95": None}
    return {"metric": "accuracy", "contrasts": [pair], "break_even": [row]}


def lines_of(one: Json) -> list[str]:
    """The lines of the table by number of queries."""
    _, _, table = contrasts_text(one).partition("| higher up-front cost | against ")
    return table.splitlines()[2:]


def test_contrasts_have_a_count_for_each_number_of_queries() -> None:
    none = count(1, None)
    never = count(100, None, verdict="never", ci95=[None, None])
    pays, tested = count(10_000, 20, verdict="pays"), count(None, 300)
    text = contrasts_text(with_counts(none, never, pays, tested))
    assert "| level | 1 query | 100 queries | 10,000 queries | as tested |" in text
    line = "| maml | scratch | 80 % | – | **never** | **20 (10 to 40)** | 300 (150 to 600) |"
    assert line in text
    assert not lines_of(with_counts(none, never, count(None, None)))
    assert not lines_of(with_counts(none, pays, tested, axis="seconds"))
    swapped = count(100, 7, a="scratch", b="maml", ci95=None)
    assert "| 7, roles swapped |" in lines_of(with_counts(count(1, 5), swapped, tested))[0]


def test_counts_at_the_level_next_to_the_target_come_before_estimates() -> None:
    one = with_counts(count(1, 5), count(None, 9))
    other = with_counts(count(1, 6), count(None, 8), level=0.6, primary=False)
    one["break_even"] += other["break_even"]
    assert [line.split(" | ")[2] for line in lines_of(one)] == ["80 %"]
    one["break_even"][0]["by_queries"] = [count(1, None)]
    one["break_even"][0]["variants"] = []
    assert [line.split(" | ")[2] for line in lines_of(one)] == ["60 %"]
    for row in one["break_even"]:  # as before rules 6
        row.pop("primary")
        row["by_queries"] = [count(1, 5)]
    assert [line.split(" | ")[2] for line in lines_of(one)] == ["80 %", "60 %"]


def test_counts_with_free_pretraining_are_shown_where_they_differ() -> None:
    """Records since rules 9 have those as tested among the numbers of queries."""
    one = with_counts()
    counts = [count(1, 5), count(None, 9)]
    free = [{**entry, "with_given": False} for entry in counts]
    one["break_even"][0]["by_queries"] = [*counts, *free]
    assert len(lines_of(one)) == 1
    free[1]["tasks"] = 4
    paid_line, free_line = lines_of(one)
    assert "| scratch | 80 % | 5 (3 to 10) | 9 (5 to 18) |" in paid_line
    assert "| scratch (pretraining by others excluded) | 80 %" in free_line and "| 4 (" in free_line
    for entry in counts:
        entry["tasks"] = None
    assert len(lines_of(one)) == 1 and "excluded" in lines_of(one)[0]


def test_a_stored_comparison_has_the_counts_of_its_contrasts() -> None:
    stored = json.loads((RESULTS / "compare_omniglot-5_shots.json").read_text())
    counted = [
        row
        for row in stored["break_even"]
        if row["axis"] == "flops"
        and row["primary"]
        and any(one["tasks"] is not None for one in row["by_queries"])
    ]
    lines = lines_of(stored)
    assert len(lines) == len(counted) == 4
    for line, row in zip(lines, counted, strict=True):
        assert line.startswith(f"| {row['a']} | {row['b']} | 80 % | ")
        assert [cell.split()[0] for cell in line.split(" | ")[3:6]] == [
            f"{one['tasks']:,}" for one in row["by_queries"]
        ]


def write_likely(root: Path) -> Path:
    """A method with likelihoods, whose second seed has the wider interval, and one without."""

    def add(result: Json) -> None:
        wider = 0.01 * (1 + result["seed"])
        values = {"nll": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "nll_ci95": [wider] * 6}
        values |= {"nll_left_out": [0.05] * 6, "calibration_error": [0.08] * 6}
        result["test"] |= values | {"calibration_floor": [0.021] * 6}

    write_rows(root, ["maml"], seeds=2, episodes=20, change=add)
    write_rows(root, ["scratch"], seeds=2, episodes=20)
    write_comparison(root)
    return root


def test_rows_have_the_likelihood_and_the_calibration_error(tmp_path: Path) -> None:
    stored = comparison_result(write_likely(tmp_path / "run"), "make some", "short")
    rows = {row["label"]: row for row in stored["rows"]}
    assert rows["maml"]["nll"] == pytest.approx(0.5)  # of step 10, the fifth point
    assert rows["maml"]["nll_ci95"] == pytest.approx(0.015)
    assert rows["maml"]["calibration_error"] == pytest.approx(0.08)
    assert rows["scratch"]["nll"] is None and "nll" in rows["scratch"]
    text = drawn(tmp_path, stored, "{{ comparison('some') }}")
    assert "| each seed | NLL, nats | calibration error, % | FLOPs before |" in text
    cells = "| 0.500 ± 0.015 (without 5 % of the tasks) | 8.0 (floor 2.1) |"
    assert cells in next(line for line in text.splitlines() if line.startswith("| maml"))
    assert "| – | – |" in next(line for line in text.splitlines() if line.startswith("| scratch"))


def test_rows_of_a_record_without_likelihoods_have_no_column(
    finished: Path, tmp_path: Path
) -> None:
    stored = record(finished)
    old = [{name: row[name] for name in row if name not in LIKELIHOOD} for row in stored["rows"]]
    for rows in (stored["rows"], old):
        text = drawn(tmp_path, {**stored, "rows": rows}, "{{ comparison('some') }}")
        assert "| each seed | FLOPs before |" in text


def test_published_numbers_have_likelihoods_if_their_runs_do(tmp_path: Path) -> None:
    groups = {one.label: one for one in groups_of(write_likely(tmp_path))}
    found = cell_result(groups["maml"], 5, 0.9, "some")
    assert found["nll"] == pytest.approx(0.4) and found["nll_ci95"] == pytest.approx(0.02)
    assert found["calibration_error"] == pytest.approx(0.08)
    assert not set(cell_result(groups["scratch"], 5, 0.9, "some")) & set(LIKELIHOOD)
    for run in groups["maml"].runs:
        run.result["single"] = {"step": 5, "value": 0.8, "ci95": 0.01}
    alone = single_cell(found, groups["maml"])
    assert alone is not None and not set(alone) & set(LIKELIHOOD)
