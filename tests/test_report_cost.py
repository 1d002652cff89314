"""What a report says of cost: the ledger, targets, break-even, searches; and what it says it cannot
tell.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import METHODS, STEPS, cost_block, write_regression, write_rows, write_run
from test_report import check_page

from metalearn import clock
from metalearn.config.experiment import parse
from metalearn.evaluate.cost_block import total_seconds, up_front_cost
from metalearn.report import numbers, questions, work
from metalearn.report.page import write_report
from metalearn.report.sections import read_sections
from metalearn.report.shift import settings
from metalearn.results import costs, iso_compute, records
from metalearn.results.comparison import collect
from metalearn.results.curves import cost_curve
from metalearn.results.factors import cell_of
from metalearn.results.records import Group
from metalearn.results.target import target_of
from metalearn.run.run import run_one


def groups_of(root: Path) -> list[Group]:
    return records.group(records.load(path) for path in records.run_directories(root)[0])


def the_check(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        check for check in collect(root)["checks"] if check["name"] == name
    )
    return found


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("comparison"), list(METHODS), seeds=3)


#
# a real run's ledger


def test_the_phases_of_a_run_add_up_to_its_seconds(tmp_path: Path) -> None:
    """Tuning by whole trainings, validation, checkpoints, a test: each second is in one phase."""
    clock.unbilled()  # the imports of this process are somebody else's
    data = {
        "task": {"source": "sinusoid", "shots": 5},
        "model": {"name": "mlp", "sizes": [16]},
        "method": {
            "name": "maml",
            "inner_lr": 0.01,
            "tune": {"inner_lr": {"values": [0.01, 0.02]}},
        },
        "run": {"meta_steps": 60, "tasks_per_step": 4, "validate": {"every": 20, "episodes": 20}},
        "evaluate": {"steps": [0, 1, 5], "episodes": 40, "headline_step": "tuned"},
        "budget": {"trials": 2},
    }
    begin = time.perf_counter()
    result = run_one(parse(data).experiments[0], tmp_path / "run")
    wall = time.perf_counter() - begin
    whole = total_seconds(result["cost"])
    assert whole == pytest.approx(wall, rel=0.05) and result["seconds"] == pytest.approx(
        wall, rel=0.05
    )
    cost = result["cost"]
    assert result["uncounted"] == {} and costs.missing_phases(records.load(tmp_path / "run")) == []
    step = (
        cost["meta_train"]["flops"] / 60 / 4
    )  # one task: an inner gradient, the query's, and a second derivative
    forward = 2 * (1 * 16 + 16 * 1)
    assert 3 * forward * 5 * 2 < step < 3 * forward * 10 * 3
    # Two trials trained as long as the run itself, and looked at validation tasks besides.
    assert cost["tune"]["flops"] > 2 * cost["meta_train"]["flops"]
    assert cost["adapt"]["flops_at_start"] == 0 and cost["adapt"]["gradient_steps"] == 5
    assert cost["adapt"]["seconds_alone"] > 0 < cost["adapt"]["seconds_batched"]
    assert the_check_of(tmp_path / "run", "phases add up to the run's seconds")


def the_check_of(run: Path, name: str) -> bool:
    from metalearn.results.cost_checks import cost_checks

    return next(check for check in cost_checks(groups_of(run)) if check.name == name).passed


def test_a_run_without_training_has_no_missing_phase(tmp_path: Path) -> None:
    data = {
        "task": {"source": "sinusoid", "shots": 5},
        "model": {"name": "mlp", "sizes": [8]},
        "method": {"name": "scratch", "inner_lr": 0.01},
        "run": {"validate": {"every": None}},
        "evaluate": {"steps": [0, 1], "episodes": 4},
    }
    result = run_one(parse(data).experiments[0], tmp_path / "run")
    assert costs.missing_phases(records.load(tmp_path / "run")) == []
    assert up_front_cost(result["cost"], "flops") == 0 == up_front_cost(result["cost"], "seconds")


#
# targets and curves


def test_the_target_comes_from_validation_tasks_alone(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "scratch"])
    before = target_of(groups_of(tmp_path))
    assert before is not None and before["metric"] == "accuracy"
    lines = (tmp_path / "methods/maml/seed-0/metrics.jsonl").read_text().splitlines()[:-1]
    looks = [json.loads(line) for line in lines]
    best = max(look["accuracy"] for look in looks if look["split"] == "valid")
    assert before["value"] == pytest.approx(0.9 * best, abs=1e-6) and "maml" in before["why"]
    for file in tmp_path.rglob("scores.npz"):  # other test scores, other results: the same target
        scores = dict(np.load(file))
        np.savez(file, **{name: values * 0.5 for name, values in scores.items()})
    assert target_of(groups_of(tmp_path)) == before
    (tmp_path / "methods/maml/seed-0/metrics.jsonl").write_text("")
    assert target_of(groups_of(tmp_path)) is None
    config = tmp_path / "methods/maml/seed-0/config.yaml"
    config.write_text(config.read_text() + "evaluate: {target: {metric: accuracy, value: 0.7}}\n")
    named = target_of(groups_of(tmp_path))
    assert named == {"metric": "accuracy", "value": 0.7, "why": "named in the experiment"}


def test_cost_grows_with_steps_from_the_price_of_an_answer(tmp_path: Path) -> None:
    (stepping,) = groups_of(write_run(tmp_path / "a", "maml", "maml"))
    for axis, each, answer in (("flops", 3e6, 3e6), ("seconds", 0.012 / 20, 0.0006)):
        found = cost_curve(stepping, axis)  # type: ignore[arg-type]
        assert found is not None and found.cost == pytest.approx(
            [answer + each * step for step in STEPS]
        )
        assert (found.low < found.mean).all() and (found.mean < found.high).all()
    (still,) = groups_of(write_run(tmp_path / "b", "proto_net", "proto_net"))
    found = cost_curve(still, "seconds")
    assert found is not None and found.cost == pytest.approx([0.0013])


def test_iso_compute_reads_the_validation_curve(tmp_path: Path) -> None:
    (group,) = groups_of(write_run(tmp_path / "a", "maml", "maml"))
    run, each = group.first, 10 * 3e6  # the headline step
    training = 2000 * 16 * 3e6
    looks = {line["step"]: line["accuracy"] for line in run.valid("valid")}
    half = iso_compute.best_within(run, training / 2 + 600 * each, 600)
    assert half == max(value for step, value in looks.items() if step <= 1000)
    assert iso_compute.best_within(run, 600 * each - 1, 600) is None
    assert iso_compute.best_within(run, 1e18, 600) == max(looks.values())


# break-even


def test_break_even_is_in_the_comparison(tmp_path: Path) -> None:
    """fine_tune, pretrained for 9.6e10 FLOPs, adapts at a tenth of maml's price; both solve nearly
    all tasks.
    """

    def cheap(result: dict[str, Any]) -> None:
        result["cost"] = cost_block("examples", True, flops=1e6)
        result["cost"]["pretrain"]["flops"] = 1e12

    for seed in range(3):
        write_run(tmp_path / f"methods/maml/seed-{seed}", "maml", "maml", seed)
        write_run(tmp_path / f"methods/other/seed-{seed}", "other", "maml", seed, change=cheap)
    found = collect(tmp_path, target={"metric": "accuracy", "value": 0.3})
    assert found["target"]["value"] == 0.3
    flops, seconds = found["break_even"]
    assert (flops["axis"], seconds["axis"]) == ("flops", "seconds")
    assert (flops["a"], flops["b"], flops["verdict"]) == ("other", "maml", "pays")
    price = {row["label"]: row["per_solved"]["flops"] for row in found["solved"]}
    assert price["maml"] and price["other"]
    extra = 1e12 + cost_block("examples", True, 1e6)["tune"]["flops"] - 2000 * 16 * 3e6
    assert flops["tasks"] == pytest.approx(extra / (price["maml"] - price["other"]), rel=1e-3)
    assert flops["ci95"][0] <= flops["tasks"] <= flops["ci95"][1] + 1
    assert [one["seed"] for one in flops["leave_one_out"]] == [0, 1, 2]


def test_a_row_without_flops_is_undecided_and_said(tmp_path: Path) -> None:
    def unmeasured(result: dict[str, Any]) -> None:
        result["cost"]["meta_train"]["flops"] = None

    write_run(tmp_path / "methods/maml/seed-0", "maml", "maml", change=unmeasured)
    write_rows(tmp_path, ["scratch"])
    found = collect(tmp_path, target={"metric": "accuracy", "value": 0.3})["break_even"]
    assert [entry["verdict"] for entry in found if entry["axis"] == "flops"] == ["undecided"]
    assert "not measured: the cost of maml" in found[0]["why"]
    check_page(write_report([tmp_path], tmp_path / "report.html"))


# the checklist


def _cost(phase: str, **entry: Any) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        result["cost"][phase] |= entry

    return change


def _without(phase: str) -> Callable[[dict[str, Any]], None]:
    return lambda result: result["cost"].pop(phase)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("no missing phase", _without("tune"), "maml seed 0: tune"),
        ("no missing phase", _cost("adapt", flops=None), "adapt.flops"),
        ("phases add up to the run's seconds", _cost("setup", seconds=60.0), "maml seed 0 +"),
        (
            "phases add up to the run's seconds",
            lambda result: result.update(seconds=900.0),
            "maml seed 0 −",
        ),
        (
            "normalisation policy stated",
            lambda result: result.update(normalisation=None),
            "maml seed 0",
        ),
        ("at least 3 search seeds", _cost("search", seconds=5.0, seconds_batched=5.0), "maml 1"),
        (
            "random search beside every searcher",
            _cost("search", seconds=5.0, seconds_batched=5.0),
            "maml",
        ),
    ],
)
def test_a_planted_flaw_fails_its_check(tmp_path: Path, name: str, change: Any, why: str) -> None:
    write_rows(tmp_path, ["proto_net", "scratch"])
    assert the_check(tmp_path, name)["passed"]
    write_run(tmp_path / "methods/maml/seed-0", "maml", "maml", change=change)
    found = collect(tmp_path)
    check = next(one for one in found["checks"] if one["name"] == name)
    assert not check["passed"] and why.replace("−", "-") in check["why"]
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    assert name in html.unescape(page[: page.index("<h2")])  # in plain sight, near the top


def test_unequal_trials_fail(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch", "maml"])
    config = tmp_path / "methods/scratch/seed-0/config.yaml"
    config.write_text(config.read_text() + "budget: {trials: 20}\n")
    found = the_check(tmp_path, "equal tuning trials")
    assert not found["passed"] and "0: maml; 20: scratch" in found["why"]


def test_a_search_without_tuning_is_said_to_fail_by_construction(tmp_path: Path) -> None:
    write_rows(tmp_path, ["scratch"], seeds=3)
    searching(tmp_path, "searched", "random")
    assert the_check(tmp_path, "equal tuning trials")["passed"]
    for config in tmp_path.glob("methods/scratch/*/config.yaml"):
        config.write_text(config.read_text() + "budget: {trials: 20}\n")
    found = the_check(tmp_path, "equal tuning trials")
    assert (
        not found["passed"] and "their candidates (searched 16) are paid as search" in found["why"]
    )


def test_energy_is_that_of_every_task_and_of_what_is_shared(tmp_path: Path) -> None:
    """3 J once for all and 2 J for each of 600 tasks, and 10 J of training: 1.213 kJ."""

    def measured(result: dict[str, Any]) -> None:
        result["cost"]["meta_train"]["energy_joules"] = 10.0
        result["cost"]["search"] |= {"energy_joules": 2.0, "seconds_batched": 1.0, "tasks": 600}
        result["cost"]["search"]["once"] = {"energy_joules": 3.0, "seconds": 1.0, "flops": 1.0}

    (group,) = groups_of(write_run(tmp_path / "a", "maml", "maml", change=measured))
    assert work.energy(group.first) == 1213.0


def test_what_one_task_costs_contains_its_search(tmp_path: Path) -> None:
    searching(tmp_path, "searched", "random", seeds=1)
    write_run(tmp_path / "methods/scratch/seed-0", "scratch", "scratch")
    groups = {group.label: group for group in groups_of(tmp_path)}
    steps, with_search = (groups[label].per_task_seconds()[0] for label in ("scratch", "searched"))
    assert steps is not None and with_search == pytest.approx(steps + 0.5)
    assert (
        groups["searched"].once("search", "seconds")
        == 0
        == groups["scratch"].each("search", "seconds")
    )
    (bare,) = groups_of(write_run(tmp_path / "bare", "maml", "maml", change=_without("retrain")))
    assert bare.per_task_seconds()[0] is None  # an absent phase is no zero


def searching(
    tmp_path: Path, label: str, searcher: str, count: int = 16, seeds: int = 3, **more: Any
) -> None:
    def change(result: dict[str, Any]) -> None:
        result["cost"]["search"] |= {
            "flops": 5e8,
            "seconds": 0.5,
            "seconds_batched": 0.5,
            "candidates": count,
        }
        result["method"] = "per_task_nas"
        result["seconds"] = total_seconds(result["cost"])

    for seed in range(seeds):
        folder = write_run(
            tmp_path / f"methods/{label}/seed-{seed}", label, "scratch", seed, change=change
        )
        words = (
            f"name: per_task_nas, space: {{name: conv4-micro}}, searcher: {{name: "
            f"{searcher}}}, candidates: {count}"
        )
        config = f"\nmethod: {{{words}}}\n"
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text[: text.index("method:")] + config)
        if more:
            np.savez(
                folder / "selection.npz", **{name: values[seed] for name, values in more.items()}
            )


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
    assert (
        "Controls that this run lacks: the mean random architecture" in page
        and "Kendall’s τ" in page
    )
    searching(tmp_path, "random", "random")
    searching(tmp_path, "any", "random", count=1)
    assert (
        the_check(tmp_path, check)["passed"]
        and the_check(tmp_path, "at least 3 search seeds")["passed"]
    )
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "random search at equal budget" not in page and "over mean random" in page
    assert (tmp_path / "figures" / "selection.svg").exists()


# the page


def test_ten_questions_head_the_sections_and_the_open_ones_say_why(comparison: Path) -> None:
    page = check_page(write_report([comparison], comparison / "report.html"))
    places = [page.text.index(question.title) for question in questions.QUESTIONS]
    assert len(places) == 10 and places == sorted(places)
    assert (
        page.text.count("This run cannot tell:") == 4
    )  # searches, their noise, other settings, a shift
    for words in (
        "all 16 checks passed",
        "Tasks that never reach it are censored",
        "break-even" and "not reached",
        "The ledger by phase",
        "latency",
        "throughput",
        "MFLOP",
    ):
        assert words in page.text, words


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
    tasks.
    """
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
    cells = {group.label: cell_of(group.first).architecture for group in groups_of(tmp_path)}
    assert cells["evolved"] == "searched" and cells["mean"] == "drawn at random"
    assert cells["scratch"] not in ("searched", "drawn at random")


def test_numbers_for_people() -> None:
    shown = [
        numbers.operations(value)
        for value in (0, 850, 12_345, 4.56e6, 9.999e8, 1.2e9, 3e12, 2.5e15, 1e19)
    ]
    assert shown == ["0", "850", "12.3 k", "4.56 M", "1 G", "1.2 G", "3 T", "2.5 P", "1e+04 P"]
    assert (
        numbers.amount(12_345, "flops") == "12.3 kFLOP" and numbers.amount(7, "flops") == "7 FLOP"
    )
    assert numbers.amount(0.0123, "seconds") == "12.3 ms"
