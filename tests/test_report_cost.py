"""What a report says of cost: the ledger, targets, break-even, searches; and what it says it cannot
tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pages import check_page
from run_folders import (
    METHODS,
    groups_of,
    searching,
    the_check,
    write_regression,
    write_rows,
    write_run,
)

from metalearn.report import numbers, questions
from metalearn.report.page import write_report
from metalearn.report.sections import read_sections
from metalearn.report.shift import settings
from metalearn.results.comparison import collect
from metalearn.results.factors import run_factors


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("comparison"), list(METHODS), seeds=3)


def test_searches_are_held_to_their_controls_and_to_their_noise(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(0.5, 0.05, (3, 5, 16))
    write_rows(tmp_path, ["scratch", "maml"], seeds=3)
    searching(
        tmp_path,
        "evolved",
        "evolution",
        score=truth + generator.normal(0, 0.1, truth.shape),
        truth=truth,
    )
    check = "random search beside every searcher"
    assert the_check(tmp_path, check)["why"].endswith("evolved")
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "Missing controls: the mean random architecture" in page
    assert "Kendall’s τ" in page
    searching(tmp_path, "random", "random")
    searching(tmp_path, "any", "random", count=1)
    assert the_check(tmp_path, check)["passed"]
    assert the_check(tmp_path, "at least 3 search seeds")["passed"]
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "random search at equal budget" not in page and "over mean random" in page
    assert (tmp_path / "figures" / "selection.svg").exists()


# the page


def test_ten_questions_head_the_sections_and_the_open_ones_say_why(comparison: Path) -> None:
    page = check_page(write_report([comparison], comparison / "report.html"))
    places = [page.text.index(question.title) for question in questions.QUESTIONS]
    assert len(places) == 10 and places == sorted(places)
    # searches, their noise, other settings, a shift
    assert page.text.count("Not available for this run:") == 4
    for words in (
        "1 of 16 checks failed: equal tuning trials",
        "the others were not at the target at the end of the curve",
        "break-even" and "not reached",
        "The ledger by phase",
        "latency",
        "throughput",
        "MFLOP",
    ):
        assert words in page.text, words


def test_the_page_says_that_all_checks_passed(tmp_path: Path) -> None:
    write_rows(tmp_path, ["fine_tune", "scratch"], seeds=3)  # with as many trials
    page = check_page(write_report([tmp_path], tmp_path / "report.html"))
    assert "all 16 checks passed" in page.text and "all 16 passed, 3 do not apply" in page.text


def test_without_a_target_the_page_says_so(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"])
    for file in tmp_path.rglob("metrics.jsonl"):
        file.write_text("")
    assert collect(tmp_path)["break_even"] == [] and collect(tmp_path)["target"] is None
    page = check_page(write_report([tmp_path], tmp_path / "report.html"))
    assert page.text.count("there is no target") == 2


def test_another_source_and_another_shape_are_shown(tmp_path: Path) -> None:
    write_rows(tmp_path / "a", ["maml", "scratch"])
    run = tmp_path / "a/methods/maml/seed-0"
    head = {"metric": "accuracy", "step": 10, "value": 0.71, "ci95": 0.01}
    (run / "evaluations").mkdir()
    stored = json.loads((run / "result.json").read_text())
    other = {
        **stored,
        "task": {**stored["task"], "source": "omniglot"},
        "headline": {**stored["headline"], **head},
    }
    (run / "evaluations/1.json").write_text(json.dumps(other))
    (run / "evaluations/odd.json").write_text("{")

    def five(result: dict[str, Any]) -> None:
        result["task"]["shots"] = 5

    for name in ("maml", "scratch"):
        write_run(tmp_path / f"b/methods/{name}/seed-0", name, name, change=five)
    page = check_page(write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "report.html")).text
    assert "omniglot another source 71.0 ± 1.0" in page
    assert "5-way 5-shot glyphs maml" in page and "5-shot sinusoid" not in page
    for name in ("maml", "pretrained"):
        write_regression(tmp_path / f"c/methods/{name}/seed-0", name)
    three = settings(read_sections([tmp_path / name for name in "abc"]))
    assert len(three) == 2  # sinusoids come in one shape


def test_another_shape_has_the_interval_of_its_margin_and_names_what_else_differs(
    tmp_path: Path,
) -> None:
    """maml beats reptile; at 5 shots it was trained for fewer steps, as all were."""

    def five(result: dict[str, Any]) -> None:
        result["task"]["shots"] = 5

    for place, change, steps in (("a", id, 600), ("b", five, 400)):
        for label in ("maml", "reptile"):
            for seed in range(3):
                folder = tmp_path / place / f"methods/{label}/seed-{seed}"
                write_run(folder, label, label, seed, change=change)
                config = folder / "config.yaml"
                written = yaml.safe_load(config.read_text())
                written["run"] |= {"meta_steps": steps, "threads": steps}
                written["task"]["shots"] = 1 if place == "a" else 5
                if label == "maml":
                    written["method"]["inner_steps"] = steps // 100
                config.write_text(yaml.safe_dump(written))
    sections = read_sections([tmp_path / "a", tmp_path / "b"])
    first, second = settings(sections)
    (pair,) = sections[0].results["paired"]
    assert first["ci95"] == [100 * end for end in pair["ci95"]]  # maml - reptile
    assert first["ci95"][0] < first["margin"] < first["ci95"][1]
    assert first["differences"] == []
    assert second["differences"] == [
        "method.inner_steps 4 instead of 6 (maml)",
        "run.meta_steps 400 instead of 600 (all)",
    ]
    page = check_page(write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html")).text
    assert "run.meta_steps 400 instead of 600 (all)" in page


def test_regressions_have_targets_and_break_even_too(tmp_path: Path) -> None:
    for seed in range(3):
        for label in ("maml", "pretrained"):
            write_regression(tmp_path / f"methods/{label}/seed-{seed}", label, seed=seed)
            config = tmp_path / f"methods/{label}/seed-{seed}/config.yaml"
            config.write_text(
                config.read_text() + "evaluate: {target: {metric: loss, value: 0.6}}\n"
            )
    found = collect(tmp_path)
    assert found["target"]["metric"] == "loss" and len(found["break_even"]) == 2
    assert found["break_even"][0]["verdict"] in (
        "always",
        "undecided",
        "not_reached",
        "pays",
        "never",
    )
    page = check_page(write_report([tmp_path], tmp_path / "report.html"))
    assert "a loss of 0.6 or better" in page.text


def test_parts_are_compared_on_the_tasks_that_both_met(tmp_path: Path) -> None:
    """A row of fewer tasks: the difference is the paired one, not that of two means over different
    tasks."""
    write_rows(tmp_path, ["maml", "scratch"])
    write_run(tmp_path / "methods/few/seed-0", "few", "fine_tune", episodes=40)
    paired = collect(tmp_path)["paired"]
    factors = collect(tmp_path)["factors"]
    entry = next(one for one in paired if {one["a"], one["b"]} == {"few", "scratch"})
    means = {group.label: group.value() for group in groups_of(tmp_path)}
    one = next(row for row in factors if {row["a"], row["b"]} == {"few", "scratch"})
    assert one["difference"] == entry["difference"] and len(factors) == 3
    assert abs(100 * (means["few"] - means["scratch"] - entry["difference"])) > 0.01  # type: ignore[operator]


def test_an_architecture_is_fixed_searched_or_drawn(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch"])
    searching(tmp_path, "evolved", "evolution", seeds=1)
    searching(tmp_path, "mean", "random", count=1, seeds=1)
    cells = {group.label: run_factors(group.first).architecture for group in groups_of(tmp_path)}
    assert cells["evolved"] == "searched" and cells["mean"] == "drawn at random"
    assert cells["scratch"] not in ("searched", "drawn at random")


def test_numbers_for_people() -> None:
    shown = [
        numbers.operations(value)
        for value in (0, 850, 12_345, 4.56e6, 9.999e8, 1.2e9, 3e12, 2.5e15, 1e19)
    ]
    assert shown == ["0", "850", "12.3 k", "4.56 M", "1 G", "1.2 G", "3 T", "2.5 P", "1e+04 P"]
    assert numbers.amount(12_345, "flops") == "12.3 kFLOP"
    assert numbers.amount(7, "flops") == "7 FLOP"
    assert numbers.amount(0.0123, "seconds") == "12.3 ms"
