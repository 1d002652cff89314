"""`recommend` and verdicts where costs are zero or unknown, seeds are missing, or tasks differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import groups_of, write_rows
from small import pictures

from metalearn.algorithms import PMF
from metalearn.cli.recommend import paragraph, recommendation
from metalearn.evaluate.decision.totals import Candidate
from metalearn.evaluate.flops import cached_count
from metalearn.models import Conv4
from metalearn.results.break_even.decision_map import Candidates
from metalearn.results.break_even.missing import describe_missing
from metalearn.results.break_even.recommendation import Question, recommend
from metalearn.results.break_even.target import target_levels
from metalearn.results.comparison import collect
from metalearn.results.summary import _reliability
from metalearn.rng import fold_in
from metalearn.tasks import Mixture, RealTables
from metalearn.tree import take

TARGET = {"metric": "accuracy", "value": 0.4}


def forget_flops(result: dict[str, Any]) -> None:
    result["cost"]["meta_train"]["flops"] = None


def verdicts(found: dict[str, Any], label: str) -> set[str]:
    """Those of the contrast of a row and scratch."""
    pair = {label, "scratch"}
    return {row["verdict"] for row in found["break_even"] if {row["a"], row["b"]} == pair}


def test_seeds_without_a_result_leave_verdicts_and_the_map_open(tmp_path: Path) -> None:
    """Three of five seeds end; the two that diverged are no part of what is measured."""
    write_rows(tmp_path, ["maml", "proto_net", "scratch"], seeds=5, episodes=200)
    before = collect(tmp_path, target=TARGET)
    for seed in (1, 3):
        (tmp_path / f"methods/maml/seed-{seed}/result.json").unlink()
    found = collect(tmp_path, target=TARGET)
    why = "maml has no result of seed 1, 3"
    assert {describe_missing(group) for group in groups_of(tmp_path)} == {why, ""}
    assert before["decision_map"]["unsettled"] == "" and found["decision_map"]["unsettled"] == why
    assert np.asarray(before["decision_map"]["settled"]).any()
    assert not np.asarray(found["decision_map"]["settled"]).any()
    assert verdicts(before, "maml") == verdicts(before, "proto_net") == {"not_reached"}
    assert verdicts(found, "maml") == {"undecided"} and verdicts(found, "proto_net") == {
        "not_reached"
    }
    assert any(row["why"] == why for row in found["break_even"])
    text = paragraph(*recommendation(tmp_path, "10", None, "0.4", "flops"))
    assert f"The data are inconclusive: {why}." in text


def test_without_a_known_cost_nothing_is_said_of_accuracies(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "proto_net"], seeds=3, change=forget_flops)
    text = paragraph(*recommendation(tmp_path, "10", None, "0.4", "flops"))
    assert "there is no recommendation: the cost of no method is known." in text
    assert "maml (" in text and "proto_net (" in text and text.count("Left out") == 1
    for claim in ("half of the test tasks", "inconclusive", "is the same for"):
        assert claim not in text


def test_queries_are_those_of_the_test_without_a_map_in_flops(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "proto_net"], seeds=3, change=forget_flops)
    found, comparison = recommendation(tmp_path, "10", None, "0.4", "seconds")
    assert comparison["decision_map"] is None and found.label is not None
    assert found.question.queries == 75


def candidates(*costs: tuple[str, float, float]) -> list[Candidate]:
    ones, solved = np.ones(3), np.ones((1, 3, 50), bool)
    return [Candidate(name, up * ones, each * ones, 0 * ones, solved) for name, up, each in costs]


def asked(monkeypatch: pytest.MonkeyPatch, members: list[Candidate], tasks: int) -> Any:
    made = Candidates(members, {}, "")
    place = "metalearn.results.break_even.recommendation.find_candidates"
    monkeypatch.setattr(place, lambda *_: made)
    grid = "metalearn.results.break_even.recommendation.target_grid"
    monkeypatch.setattr(grid, lambda *_: [0.9])
    return recommend([], {"metric": "accuracy", "value": 0.9}, [], Question(tasks, 1, 0.9, "flops"))


def test_the_border_beyond_the_map_is_that_of_the_next_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """b is the cheapest up to 2e7 tasks, c up to 3e8, then a."""
    rows = candidates(("b", 0, 3.0), ("c", 2e7, 2.0), ("a", 3.2e8, 1.0))
    beyond = asked(monkeypatch, rows, 10**9)
    assert beyond.label == "a" and (beyond.border.what, beyond.border.label) == ("tasks", "c")
    assert beyond.border.value == pytest.approx(3e8)
    within = asked(monkeypatch, rows, 10**6)
    assert within.label == "b" and (within.border.what, within.border.label) == ("tasks", "c")
    assert within.border.value == pytest.approx(2e7)


def test_no_ratio_to_a_total_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch, candidates(("knn", 0, 0), ("other", 5.0, 1.0)), 10)
    comparison = {"target": TARGET, "checks": []}
    text = paragraph(found, comparison)
    assert "knn is the cheapest: 0 FLOP" in text
    assert "The runner-up is other: 15 FLOP." in text and "inf" not in text


def test_a_line_of_equal_cost_up_front_is_drawn_without_a_cost_per_task(tmp_path: Path) -> None:
    def free(result: dict[str, Any]) -> None:
        for phase in ("adapt", "predict"):
            result["cost"][phase] |= {"flops": 0.0}
        result["test"]["adapt_flops"] = [0.0 for _ in result["test"]["steps"]]

    write_rows(tmp_path, ["maml"], seeds=3)
    write_rows(tmp_path, ["proto_net"], seeds=3, change=free)
    lines = {one["label"]: one for one in collect(tmp_path, target=TARGET)["break_even_lines"]}
    assert lines["proto_net"]["up_front"] > 0 == lines["proto_net"]["per_solved"]


# how many tasks and queries there are


def test_tables_are_as_many_sets_of_classes_as_their_classes_allow() -> None:
    """All classes of a table are one set; of ten digits, three are any of 120."""
    whole = RealTables(ways=10, shots=3, queries=2).build("test")
    assert whole.class_sets == 5 < whole.spec.class_sets == 184_756
    some = RealTables(tables=("digits", "iris"), ways=3, shots=2, queries=2)
    assert some.build("test").class_sets == 121
    assert Mixture([some, some]).build("test").class_sets == 242


def test_tasks_of_several_sizes_have_no_number_of_queries(tmp_path: Path) -> None:
    """Neither a reliability nor levels that one task can reach."""

    def padded(result: dict[str, Any]) -> None:
        result["task"]["ranges"] = {}

    write_rows(tmp_path / "one", ["maml"], seeds=3)
    write_rows(tmp_path / "more", ["maml"], seeds=3, change=padded)
    (one,), (more,) = groups_of(tmp_path / "one"), groups_of(tmp_path / "more")
    scores = np.random.default_rng(0).binomial(75, 0.5, (3, 100)) / 75
    assert _reliability(one, scores) is not None and _reliability(more, scores) is None
    for group in (one, more):
        group.first.config.setdefault("evaluate", {})["targets"] = [0.405]
    assert target_levels([one], TARGET) == [31 / 75] and target_levels([more], TARGET) == [0.405]


def test_a_query_of_pmf_does_not_pay_for_the_support_set_again() -> None:
    """Twice the queries are twice the FLOPs of predictions."""
    source = pictures()
    learner = Conv4(filters=4, norm="none").build(source.spec)
    method = PMF().build(learner, source.spec)
    meta, episode = method.init(fold_in(0)).meta, take(source.sample(fold_in(1), 1), 0)
    adapted = method.adapt(meta, episode.support, 1, fold_in(2))  # type: ignore[misc]

    def flops(x: Any) -> float:
        count = cached_count(lambda at: method.predict(meta, adapted, episode.support, at), x)
        return float(count.matrix)

    x = episode.query.x
    assert flops(x.repeat(2, 1, 1, 1)) == 2 * flops(x) > 0
