"""Answers with and without the cost of pretraining elsewhere, by number of queries, and borders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import check_page
from test_break_even_edges import Row, write
from test_given_weights import compared

from metalearn.cli.recommend import paragraph, recommendation
from metalearn.compare.comparison import Comparison
from metalearn.errors import ConfigError
from metalearn.evaluate.breakeven import break_evens
from metalearn.evaluate.comparable import MethodCosts
from metalearn.evaluate.decision.totals import Candidate
from metalearn.evaluate.targets import Reached
from metalearn.report.figures import FIGURES
from metalearn.report.figures.decision import map_text
from metalearn.report.page import write_report
from metalearn.results.break_even.counts import QUERY_LEVEL
from metalearn.results.break_even.decision_map import Candidates
from metalearn.results.break_even.recommendation import Question, recommend
from metalearn.results.comparison import collect, write_comparison
from metalearn.results.costs import prediction_cost_parts
from metalearn.results.records import group, load, run_directories


def names_in(grid: dict[str, Any]) -> set[str | None]:
    return {name for part in grid["winner"] for row in part for name in row}


def test_the_free_map_has_the_method_that_the_other_leaves_out(tmp_path: Path) -> None:
    found = compared(tmp_path)
    paid, free = found["decision_map"], found["decision_map_free"]
    assert "lite" in paid["left_out"] and "lite" not in names_in(paid)
    assert free["left_out"] == {} and "lite" in names_in(free) and free["pretraining"] == "free"
    # nothing was spent on it here before the first task, so it is the cheapest of a few tasks
    assert free["winner"][0][0][0] == "lite"
    assert found["decision_map_seconds_free"]["axis"] == "seconds"


def test_without_published_weights_there_is_one_map(tmp_path: Path) -> None:
    write(tmp_path, "a", Row(1000, 2))
    write(tmp_path, "b", Row(0, 12))
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["a", "b"]]}')
    found = collect(tmp_path, target={"metric": "accuracy", "value": 0.5})
    assert "decision_map" in found and not [name for name in found if name.endswith("_free")]
    for row in found["break_even"]:
        assert [one["with_given"] for one in row["by_queries"]] == [True] * 4


def test_every_answer_is_there_with_and_without_the_price(tmp_path: Path) -> None:
    compared(tmp_path)
    write_comparison(tmp_path)
    found = Comparison(tmp_path)
    assert "pretraining free" in found.break_even().splitlines()[0]
    assert "without the cost of pretraining by others" in found.decision_map(pretraining=False)
    assert "without the cost of pretraining by others" not in found.decision_map()
    with pytest.raises(ConfigError, match="unknown axis"):
        found.decision_map("decision_map_free")  # type: ignore[arg-type]
    text = paragraph(*recommendation(tmp_path, "1", "1", "0.4", "flops"))
    assert "Without the cost of pretraining by others (lite), lite is the cheapest" in text
    left_out = "Left out, as the cost of their pretraining was not published: lite."
    assert text.index(left_out) < text.index("Without the cost") and text.count("Left out") == 1
    assert "which no method whose cost is known reaches" in text
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "without the cost of pretraining by others, which their user" in page
    assert "*: without the cost of its pretraining by others" in page
    assert "Not in this comparison.json" not in page
    lines = {line["label"]: line for line in found.data["break_even_lines"]}
    assert lines["lite"]["pretraining"] == "free" and "pretraining" not in lines["maml"]


def test_a_declared_price_is_in_the_first_map_alone(tmp_path: Path) -> None:
    found = compared(tmp_path, 1e18, "a paper, table 2")
    assert found["decision_map"]["left_out"] == {}
    assert found["decision_map"]["winner"][0][0][0] == "maml"
    assert found["decision_map_free"]["winner"][0][0][0] == "lite"


def test_counts_by_queries_are_there_without_pretraining(tmp_path: Path) -> None:
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["maml", "lite"]]}')
    found = compared(tmp_path)
    (row,) = (one for one in found["break_even"] if one["axis"] == "flops")
    scopes = [(one["queries"], one["with_given"]) for one in row["by_queries"]]
    assert scopes == [(n, given) for given in (True, False) for n in (1, 100, 10_000, None)]
    paid, free = row["by_queries"][:4], row["by_queries"][4:]
    assert all(one["tasks"] is None and "not published" in one["why"] for one in paid)
    assert all("not published" not in one["why"] for one in free)
    assert any(one["tasks"] is not None for one in free)


# verdicts by queries


def costs(label: str, up: float, each: np.ndarray) -> MethodCosts:
    solved = np.ones(each.shape, bool)
    return MethodCosts(label, (0, 1, 2), np.full(3, up), Reached(solved, each), label, ())


def test_several_verdicts_on_one_question_need_stricter_intervals() -> None:
    """A difference of 1.1 with a half width of 1.0 at 95 %, which is 1.25 at 98.75 %."""
    noise = np.random.default_rng(0).normal(0, 1, 400)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    cheap = np.tile(100 + noise, (3, 1))
    dear = np.full((3, 400), 101.1)
    pair = [costs("a", 10.0, cheap), costs("b", 0.0, dear)]
    (one,) = break_evens(pair)
    (of_four,) = break_evens(pair, level=QUERY_LEVEL)
    assert abs(QUERY_LEVEL - 0.9875) < 1e-12
    assert "cheaper per solved task is undecided" not in one.why
    assert of_four.verdict == "undecided" and "98.75 % interval" in of_four.why
    assert one.tasks == of_four.tasks and one.ci95 == of_four.ci95


def test_a_pair_is_ordered_at_the_level_of_its_verdict() -> None:
    """The up-front costs of a and b differ at 95 %, not at 98.75 %; a task of b costs half."""
    u = np.asarray([-1, -0.5, 0, 0.5, 1])
    pair = [
        MethodCosts(name, (0, 1, 2, 3, 4), up, Reached(ones > 0, each * ones), name, ())
        for name, up, each in (("a", 101.2 + u, 2.0), ("b", 100 - 0.9 * u, 1.0))
        for ones in [np.ones((5, 100))]
    ]
    (one,), (of_four,) = break_evens(pair), break_evens(pair, level=QUERY_LEVEL)
    assert (one.a, one.verdict) == ("a", "never")
    assert of_four.a == "b" and "per solved task is undecided" not in of_four.why


def test_an_earlier_comparison_has_no_free_map_to_show(tmp_path: Path) -> None:
    compared(tmp_path)
    file = write_comparison(tmp_path)
    contents = json.loads(file.read_text())
    del contents["decision_map_free"], contents["decision_map_seconds_free"]
    file.write_text(json.dumps({**contents, "rules": 8}))
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "does not contain decision_map_free, decision_map_seconds_free" in page


def test_verdicts_by_queries_follow_the_price_of_a_query(tmp_path: Path) -> None:
    """a costs 1e15 up front and 1e13 less per task: 100 tasks at a price of 0 per query."""
    write(tmp_path, "a", Row(1e15, 2e12))
    write(tmp_path, "b", Row(0, 12e12))
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["a", "b"]]}')
    target = {"metric": "accuracy", "value": 0.5}
    (row,) = (r for r in collect(tmp_path, target=target)["break_even"] if r["axis"] == "flops")
    assert [one["verdict"] for one in row["by_queries"]] == ["pays"] * 4
    assert all(one["tasks"] == pytest.approx(100, abs=1) for one in row["by_queries"])
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "98.75 %" in page and "pays from" in page


# the map from result.json files against the formula


def test_the_map_of_known_costs_is_the_formula_cell_by_cell(tmp_path: Path) -> None:
    rows = {"a": Row(4e12, 2e9), "b": Row(1e11, 6e9, 0.8), "c": Row(0, 5e10, 0.55, score=0.9)}
    for label, row in rows.items():
        write(tmp_path, label, row)
    found = collect(tmp_path, target={"metric": "accuracy", "value": 0.5})["decision_map"]
    folders, _ = run_directories(tmp_path)
    prices = {
        one.label: prediction_cost_parts(one.first, "flops") for one in group(map(load, folders))
    }
    seen = set()
    for q, queries in enumerate(found["queries"]):
        for a, target in enumerate(found["targets"]):
            for n, tasks in enumerate(found["tasks"]):
                totals = {}
                for label, row in rows.items():
                    fixed, each = prices[label] or (0.0, 0.0)
                    task = row.each * row.share + fixed + queries * each
                    if row.score >= target - 1e-9 and row.share >= 0.5:
                        totals[label] = row.up_front + tasks * task / row.share
                expected = min(totals, key=totals.__getitem__) if totals else None
                assert found["winner"][q][a][n] == expected, (queries, target, tasks)
                seen.add(expected)
    assert seen == {"a", "b", "c"} or seen == {"a", "b", "c", None}


# borders


def asked(monkeypatch: pytest.MonkeyPatch, members: list[Candidate], question: Question) -> Any:
    place = "metalearn.results.break_even.recommendation"
    levels = [0.9, 0.95]

    def found(groups: Any, metric: Any, at: Any, *rest: Any) -> Candidates:
        kept = [
            one._replace(
                solved=np.concatenate([one.solved[:1] if t < 0.91 else one.solved[1:] for t in at])
            )
            for one in members
        ]
        return Candidates(kept, {}, "")

    monkeypatch.setattr(f"{place}.find_candidates", found)
    monkeypatch.setattr(f"{place}.target_grid", lambda *_: levels)
    return recommend([], {"metric": "accuracy", "value": 0.9}, [], question)


def candidate(label: str, up: float, adapt: float, query: float, hard: bool) -> Candidate:
    ones, solved = np.ones(3), np.ones((2, 3, 50), bool)
    solved[1] = hard
    return Candidate(label, up * ones, adapt * ones, query * ones, solved)


def test_each_number_of_the_question_has_its_border(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task costs 1 + 10 q by `few` and 500 + 0.1 q by `many`."""
    members = [candidate("few", 0, 1, 10, False), candidate("many", 0, 500, 0.1, True)]
    found = asked(monkeypatch, members, Question(500, 1, 0.9, "flops"))
    assert found.label == "few"
    assert [(one.what, one.label) for one in found.borders] == [
        ("queries", "many"),
        ("target", "many"),
    ]
    assert found.borders[0].value == 51  # the first whole number above 499 / 9.9
    text = paragraph(found, {"target": {"metric": "accuracy"}, "checks": []})
    assert "changes at 51 queries each, where many becomes the cheapest; at a target" in text
    assert "at a target of 95 %, where many is the cheapest." in text


def test_a_far_border_of_tasks_does_not_hide_that_of_the_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = [candidate("cheap", 0, 1, 0, False), candidate("dear", 1e6, 0.5, 0, True)]
    found = asked(monkeypatch, members, Question(500, 1, 0.9, "flops"))
    assert [one.what for one in found.borders] == ["tasks", "target"]
    assert found.borders[0].value == pytest.approx(2e6)
    text = paragraph(found, {"target": {"metric": "accuracy"}, "checks": []})
    assert "at 2,000,000 tasks, where dear" in text and "95 %, where dear is" in text
    assert "2,000 times as much" in text and "e+0" not in text


def test_a_border_is_a_whole_number_at_which_the_other_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = [candidate("a", 0, 0, 11, True), candidate("b", 0, 3, 1, True)]
    found = asked(monkeypatch, members, Question(10, 1, 0.9, "flops"))
    assert found.label == "b" and "queries" not in [one.what for one in found.borders]
    members = [candidate("a", 0, 0, 2, True), candidate("b", 0, 3.04, 1, True)]
    found = asked(monkeypatch, members, Question(10, 3, 0.9, "flops"))
    borders = {one.what: (one.value, one.label) for one in found.borders}
    assert found.label == "a" and borders["queries"] == (4, "b")
    found = asked(monkeypatch, members, Question(10, 400, 0.9, "flops"))
    borders = {one.what: (one.value, one.label) for one in found.borders}
    assert found.label == "b" and borders["queries"] == (3, "a")


def test_one_of_a_thing_is_singular(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [candidate("a", 0, 1, 0, True), candidate("b", 1, 1, 0, True)]
    found = asked(monkeypatch, members, Question(1, 1, 0.9, "flops"))
    text = paragraph(found, {"target": {"metric": "accuracy"}, "checks": []})
    assert text.startswith("For 1 new task with 1 query each ")


# the terminal


def test_the_text_of_one_number_of_queries_has_one_panel(tmp_path: Path) -> None:
    found = compared(tmp_path)["decision_map_free"]
    whole, one = map_text(found), map_text(found, found["as_tested"])
    assert whole.count("per task") == len(found["queries"]) and one.count("per task") == 1
    assert "(as tested)" in one


def test_rows_that_are_alike_are_printed_at_their_ends() -> None:
    targets = [0.4, 0.5, 0.6, 0.7, 0.8]
    grid = {
        "axis": "flops",
        "metric": "accuracy",
        "tasks": [1, 10],
        "targets": targets,
        "queries": [1],
        "as_tested": 1,
        "winner": [[["a", "b"], *[["a", "a"]] * 4]],
        "settled": [[[True, True]] * 5],
    }
    lines = map_text(grid).splitlines()[2:6]
    assert lines == ["  80 %  A    A", "   ...  the same", "  50 %  A    A", "  40 %  A    B"]
    grid["winner"] = [[*[["a", "b"]] * 2, *[["a", "a"]] * 3]]
    assert "the same" not in map_text(grid)


def test_figures_of_free_pretraining_have_four_panels(tmp_path: Path) -> None:
    compared(tmp_path)
    write_comparison(tmp_path)
    found = Comparison(tmp_path)
    for name in ("decision-free", "decision-seconds-free", "break-even-queries"):
        assert name in FIGURES and len(found.plot(name).axes) == 4
    with pytest.raises(ConfigError, match="several panels"):
        found.plot("break-even-queries", ax=found.plot("break-even").axes[0])
