"""Numbers that a page does not print, with the reason: too few tasks, candidates or seeds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_folders import groups_of, write_run

from metalearn.report.matrices import break_even_matrix, solved_shares, uncounted
from metalearn.report.numbers import compiling
from metalearn.report.page import _origin
from metalearn.report.questions.equal_compute import equal_compute
from metalearn.report.render import few_solved, named, render
from metalearn.report.work import work
from metalearn.results.checks import _check_edges
from metalearn.results.cost_checks import _check_equal_tuning
from metalearn.results.iso_compute import equal_compute as equal_compute_rows
from metalearn.storage.environment import checkout

SHARES = [("maml", 0.9), ("scratch", 0.85), ("reptile", 0.7)]


def solved(level: float = 0.8) -> dict[str, Any]:
    rows = [{"label": name, "shares": [{"level": level, "share": share}]} for name, share in SHARES]
    return {"solved": rows}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"ci95": [1.0, 900.0]}, "the up-front costs are not distinguished"),
        ({"ci95": [20.0, None]}, "the costs per solved task are not distinguished"),
        ({"b": "reptile"}, "the fractions of solved tasks are 20 points apart"),
        ({"tasks": 1, "ci95": [1.0, 1.0]}, ""),  # cheaper from the first task on
        ({"ci95": None}, ""),  # too few seeds for an interval
        ({"tasks": None, "ci95": [None, None]}, ""),
    ],
)
def test_an_estimate_is_a_count_only_if_both_differences_are_known(
    changes: dict[str, Any], why: str
) -> None:
    row = {"a": "maml", "b": "scratch", "axis": "flops", "level": 0.8, "contrast": False}
    row |= {"verdict": "undecided", "tasks": 70, "ci95": [40.0, 110.0], **changes}
    shares = solved_shares(solved())
    assert uncounted(row, shares) == why
    labels: Any = [SimpleNamespace(label=name, test_tasks=200) for name, _ in SHARES]
    matrix = break_even_matrix(labels, [row], "flops", "accuracy", shares)
    (cell,) = (one for line in matrix.cells for one in line if one.title)
    assert cell.text == ("–" if why or row["tasks"] is None else str(row["tasks"]))
    assert cell.title.endswith(f"; no count: {why}" if why else cell.title)


def made(root: Path, method: str, change: Any = id, seed: int = 0) -> Any:
    write_run(
        root / f"methods/{method}/seed-{seed}", method, method, seed, episodes=20, change=change
    )
    return groups_of(root)


def test_a_headline_step_at_the_end_of_the_curve_is_on_an_edge(tmp_path: Path) -> None:
    def last(result: dict[str, Any]) -> None:
        result["tuned"] = {"headline_step": 20, "on_edge": []}
        result["headline"]["step"] = 20

    assert _check_edges(made(tmp_path, "scratch")).passed
    for seed in (0, 1):
        groups = made(tmp_path, "maml", last, seed)
    found = _check_edges(groups)
    assert not found.passed
    assert found.why.endswith("better: headline step 20, the last of the curve: maml")


def test_a_tuned_value_on_an_edge_is_named_once_for_its_seeds(tmp_path: Path) -> None:
    def edge(result: dict[str, Any]) -> None:
        result["tuned"] = {"inner_lr": 0.99, "headline_step": 10, "on_edge": ["inner_lr"]}

    made(tmp_path, "scratch", seed=0)
    for seed in (1, 2):
        groups = made(tmp_path, "scratch", edge, seed)
    assert "better: scratch seeds 1, 2 inner_lr 0.99" in _check_edges(groups).why
    for seed in (0, 1):
        groups = made(tmp_path / "all", "scratch", edge, seed)
    found = _check_edges(groups).why
    assert "better: scratch inner_lr 0.99" in found and found.count("inner_lr") == 1


def test_a_cost_of_a_solved_task_needs_ten() -> None:
    group: Any = SimpleNamespace(test_tasks=250, runs=[1])
    assert few_solved({"share": 0.004}, group) == "1 solved"
    assert few_solved({"share": 0.04}, group) == ""


def test_equal_trials_state_their_unequal_flops(tmp_path: Path) -> None:
    def cheap(result: dict[str, Any]) -> None:
        result["tuning"]["stages"][0]["flops"] = 1e9

    made(tmp_path, "scratch")
    found = _check_equal_tuning(made(tmp_path, "fine_tune", cheap))
    assert found.name == "equal tuning trials in each stage" and found.passed
    assert found.why.endswith("; FLOPs of all trials: 1e+09 (fine_tune) to 4e+09 (scratch)")


def test_labels_of_tuning_are_in_no_row(tmp_path: Path) -> None:
    def tuned(result: dict[str, Any]) -> None:
        result["cost"]["tune"]["labels"] = 100

    (group,) = made(tmp_path, "fine_tune", tuned)
    assert work(group)["labels"] == 20_000


def test_equal_compute_says_what_a_method_lacks(tmp_path: Path) -> None:
    for method in ("maml", "scratch"):
        groups = made(tmp_path, method)
    results: Any = {"equal_compute": equal_compute_rows(groups, 600)}
    for row in results["equal_compute"]["rows"]:
        row["values"][:3] = [None] * 3
    found = equal_compute.data(SimpleNamespace(groups=groups, results=results, up=True), [])
    assert found["without_score"] == {"maml": "", "scratch": "no validation score"}
    assert found["shown_budgets"] == [3]  # the budgets before are empty
    context = {"groups": groups, "results": results, "up": True, **found}
    text = render(
        "questions/equal_compute.html.j2", colors=dict.fromkeys(("maml", "scratch")), **context
    )
    assert text.count('<th scope="col">') == 2
    assert "<td>– <small>no validation score</small></td>" in text


def test_two_candidates_have_no_rank_correlation() -> None:
    one = {"label": "nas", "tau": 1.0, "spearman": 1.0, "regret": 0.25, "regret_of_chance": 0.5}
    one |= {"gain": 0.125, "optimism": None, "searches": 50}
    shown = []
    for count in (2, 4):
        results = {"selection": [{**one, "candidates": count}], "tuning": []}
        context = {"results": results, "groups": [SimpleNamespace(label="nas")], "figures": {}}
        text = render("questions/noise.html.j2", colors={"nas": ""}, searches=[], **context)
        assert f"50 <small>of {count} candidates each</small>" in text
        shown.append("<td>1</td><td>1</td><td>0.25</td><td>0.5</td><td>0.125</td>" in text)
    assert shown == [False, True]


def test_a_phase_that_compiles_nothing_has_a_dash() -> None:
    assert [compiling(seconds) for seconds in (None, 0.00014, 0.2)] == ["–", "–", "200 ms"]


def test_many_rows_are_a_count() -> None:
    labels = [f"m{number}" for number in range(9)]
    groups: Any = [SimpleNamespace(label=label) for label in labels]
    assert named(labels, groups) == "all methods"
    assert named(labels[:8], groups) == "8 of 9 methods" and named(labels[:2], groups) == "m0, m1"


def test_a_command_has_no_path_of_this_machine() -> None:
    file = f"{checkout()}/experiments/demo.yaml"
    argv = ["metalearn", "compare", file, "--out=/elsewhere/x"]
    run: Any = SimpleNamespace(environment={"argv": argv}, name="a", result={"git": "a" * 40})
    found = _origin([run])
    assert found["commands"] == ["metalearn compare experiments/demo.yaml --out=/elsewhere/x"]
    assert found["trained_by"] == ["a" * 12] and found["reported_by"] != "a" * 12
    context = {**found, "up": True, "groups": [], "trained_by": ["one"], "reported_by": "two"}
    text = render("runs.html.j2", **context)
    assert "Trained by commit one, reported by commit two." in text
    assert "reported by" not in render("runs.html.j2", **{**context, "reported_by": "one"})
