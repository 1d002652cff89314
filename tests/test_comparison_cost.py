"""Cost in comparison.json: ledgers, targets, break-even, and the checks of the account."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import check_page
from run_folders import STEPS, cost_block, groups_of, searching, the_check, write_rows, write_run

from metalearn import clock
from metalearn.config.experiment import parse
from metalearn.evaluate.cost_block import total_seconds, up_front_cost
from metalearn.evaluate.targets import least_level
from metalearn.report import work
from metalearn.report.page import write_report
from metalearn.results import costs, iso_compute, records
from metalearn.results.break_even.target import choose_target
from metalearn.results.comparison import collect
from metalearn.results.curves import cost_curve
from metalearn.run.run import run_one

#
# a real run's ledger


def test_the_phases_of_a_run_add_up_to_its_seconds(tmp_path: Path) -> None:
    """Tuning by whole trainings, validation, checkpoints, a test: each second is in one phase."""
    clock.startup_seconds()  # the imports of this process are somebody else's
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
    assert whole == pytest.approx(wall, rel=0.05)
    assert result["seconds"] == pytest.approx(wall, rel=0.05)
    cost = result["cost"]
    assert result["uncounted"] == {} and costs.missing_phases(records.load(tmp_path / "run")) == []
    # one task: an inner gradient, the query's, and a second derivative
    step = cost["meta_train"]["flops"] / 60 / 4
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
    file = tmp_path / "methods/maml/seed-0/metrics.jsonl"
    last = {"kind": "valid", "step": 2200, "split": "valid", "accuracy": 0.7}
    file.write_text("\n".join([*file.read_text().splitlines()[:-1], json.dumps(last), ""]))
    before = choose_target(groups_of(tmp_path))
    assert before is not None and before["metric"] == "accuracy"
    # the last score, as the best of several is too high
    assert before["value"] == pytest.approx(0.9 * 0.7, abs=1e-6) and "maml" in before["why"]
    for file in tmp_path.rglob("scores.npz"):  # other test scores, other results: the same target
        tested = dict(np.load(file))
        np.savez(file, **{name: values * 0.5 for name, values in tested.items()})
    assert choose_target(groups_of(tmp_path)) == before
    (tmp_path / "methods/maml/seed-0/metrics.jsonl").write_text("")
    assert choose_target(groups_of(tmp_path)) is None
    config = tmp_path / "methods/maml/seed-0/config.yaml"
    config.write_text(config.read_text() + "evaluate: {target: {metric: accuracy, value: 0.7}}\n")
    named = choose_target(groups_of(tmp_path))
    assert named == {"metric": "accuracy", "value": 0.7, "why": "named in the experiment"}


def test_cost_grows_with_steps_from_the_price_of_an_answer(tmp_path: Path) -> None:
    (stepping,) = groups_of(write_run(tmp_path / "a", "maml", "maml"))
    for axis, each, answer in (("flops", 3e6, 3e6), ("seconds", 0.012 / 20, 0.0006)):
        found = cost_curve(stepping, axis)  # type: ignore[arg-type]
        assert found is not None
        assert found.cost == pytest.approx([answer + each * step for step in STEPS])
        assert (found.low < found.mean).all() and (found.mean < found.high).all()
    (still,) = groups_of(write_run(tmp_path / "b", "proto_net", "proto_net"))
    found = cost_curve(still, "seconds")
    assert found is not None and found.cost == pytest.approx([0.0013])


def test_iso_compute_reads_the_validation_curve(tmp_path: Path) -> None:
    (group,) = groups_of(write_run(tmp_path / "a", "maml", "maml"))
    run, each = group.first, 10 * 3e6  # the headline step
    training = 2000 * 16 * 3e6
    looks = {line["step"]: line["accuracy"] for line in run.valid("valid")}
    half = iso_compute.last_score_within(run, training / 2 + 600 * each, 600)
    assert half == (looks[1000], 0.012)
    assert iso_compute.last_score_within(run, 600 * each - 1, 600) == (None, None)
    assert iso_compute.last_score_within(run, 1e18, 600).value == looks[2000]
    # what somebody else paid for given weights is up front, and no part of the curve

    def priced(result: dict[str, Any]) -> None:
        own = {"flops": 0, "seconds": 0.0}
        entry = {**result["cost"]["meta_train"], "flops": 5e12, "seconds": "unknown", "own": own}
        result["cost"]["pretrain"] = entry

    (bought,) = groups_of(write_run(tmp_path / "b", "maml", "maml", change=priced))
    budget = 5e12 + training / 2 + 600 * each
    assert iso_compute.last_score_within(bought.first, budget, 600) == half
    assert iso_compute.last_score_within(bought.first, budget - training / 4, 600) != half


# break-even


def test_break_even_is_in_the_comparison(tmp_path: Path) -> None:
    """fine_tune, pretrained for 9.6e10 FLOPs, adapts at a tenth of maml's price; both solve nearly
    all tasks."""

    def cheap(result: dict[str, Any]) -> None:
        result["cost"] = cost_block("examples", True, flops=1e6)
        result["cost"]["pretrain"]["flops"] = 1e12

    for seed in range(3):
        write_run(tmp_path / f"methods/maml/seed-{seed}", "maml", "maml", seed)
        write_run(tmp_path / f"methods/other/seed-{seed}", "other", "maml", seed, change=cheap)
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["other", "maml"]]}')
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
    assert flops["contrast"] and seconds["contrast"]


def test_pairs_outside_the_contrasts_are_estimates(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml", "reptile", "fine_tune"], seeds=3)
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["maml", "fine_tune"]]}')
    found = collect(tmp_path, target={"metric": "accuracy", "value": 0.3})
    for row in [*found["break_even"], *found["break_even_common"]]:
        assert row["contrast"] == ({row["a"], row["b"]} == {"maml", "fine_tune"})
        if not row["contrast"]:
            assert row["verdict"] == "undecided" and "only contrasts have verdicts" in row["why"]
            assert all(one["verdict"] == "undecided" for one in row.get("variants", []))
    outside = [row for row in found["break_even"] if not row["contrast"]]
    assert len(outside) == 4
    assert {bool(row["ci95"]) for row in outside} == {True, False}  # equal costs have no crossing
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "other pairs, estimates without a verdict" in page


def test_seconds_decide_nothing_unless_rows_were_timed_alone(tmp_path: Path) -> None:
    """The same rows: timed in turns, timed beside other work, and not timed again."""

    def rows(timing: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
        folder = tmp_path / str(timing)

        def change(result: dict[str, Any]) -> None:
            result["timing"] = timing
            if result["label"] == "other":
                result["cost"] = cost_block("examples", True, flops=1e6)
                result["cost"]["adapt"] |= {"seconds": 0.006, "seconds_batched": 0.006}

        for seed in range(3):
            for label in ("maml", "other"):
                place = folder / f"methods/{label}/seed-{seed}"
                write_run(place, label, "maml", seed, change=change)
        (folder / "comparison-request.json").write_text('{"contrasts": [["other", "maml"]]}')
        found = collect(folder, target={"metric": "accuracy", "value": 0.3})
        check = next(one for one in found["checks"] if "timed alone" in one["name"])
        return found["break_even"][1], check

    idle, passed = rows({"rounds": 5, "others": 0.02})
    assert idle["verdict"] in ("pays", "always") and passed["passed"] and "2.0%" in passed["why"]
    busy, failed = rows({"rounds": 5, "others": 0.4})
    assert busy["verdict"] == "undecided" and "other processes used 40%" in busy["why"]
    assert not failed["passed"] and busy["tasks"] == idle["tasks"]
    for timing in (None, {"rounds": 5, "others": None}):
        row, failed = rows(timing)
        assert row["verdict"] == "undecided" and not failed["passed"]


def test_the_count_under_other_choices_is_one_table(tmp_path: Path) -> None:
    """Without tuning (300 gradient steps of each) fine_tune begins 9e8 FLOPs cheaper; a curve to
    step 5 makes what is never solved cheaper."""
    write_rows(tmp_path, ["maml", "fine_tune"], seeds=3)
    (tmp_path / "comparison-request.json").write_text('{"contrasts": [["maml", "fine_tune"]]}')
    found = collect(tmp_path, target={"metric": "accuracy", "value": 0.5})
    (row,) = found["sensitivity"]
    assert row["level"] == 0.5 and {row["a"], row["b"]} == {"maml", "fine_tune"}
    names = [one["choice"] for one in row["choices"]]
    expected = ["base", "level", "level", "stop", "stop", "curve", "tuning", "answering", "axis"]
    assert names == expected
    base = row["choices"][0]
    main = next(one for one in found["break_even"] if one["axis"] == "flops")
    assert (base["a"], base["tasks"], base["ci95"]) == (main["a"], main["tasks"], main["ci95"])
    without = next(one for one in row["choices"] if one["choice"] == "tuning")
    assert (without["a"], without["tasks"]) == (
        main["variants"][0]["a"],
        main["variants"][0]["tasks"],
    )
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "Sensitivity of the break-even count" in page


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
    found = the_check(tmp_path, "equal tuning trials in each stage")
    assert not found["passed"] and "0: maml; 4: scratch" in found["why"]


def test_a_search_without_tuning_is_said_to_fail_by_construction(tmp_path: Path) -> None:
    write_rows(tmp_path, ["maml"], seeds=3)
    searching(tmp_path, "searched", "random")
    assert the_check(tmp_path, "equal tuning trials in each stage")["passed"]
    write_rows(tmp_path, ["scratch"], seeds=3)
    found = the_check(tmp_path, "equal tuning trials in each stage")
    assert not found["passed"]
    assert "the cost of their candidates (searched 16) counts as search" in found["why"]


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


# intervals of the front, and of equal compute


@pytest.mark.parametrize(
    ("chance", "least"), [(0.2, 0.4), (0.05, 0.1), (1 / 3, 2 / 3), (0.5, 0.75)]
)
def test_no_common_level_is_reached_by_luck(chance: float, least: float) -> None:
    assert least_level(chance) == pytest.approx(least)


def test_total_cost_and_equal_compute_have_intervals(tmp_path: Path) -> None:
    write_rows(tmp_path, ["proto_net", "maml", "scratch"], seeds=3)
    contrasts = [["proto_net", "maml"], ["maml", "scratch"], ["proto_net", "scratch"]]
    (tmp_path / "comparison-request.json").write_text(json.dumps({"contrasts": contrasts}))
    found = collect(tmp_path)
    totals = {row["label"]: row for row in found["total_cost"]}
    assert totals["proto_net"]["front"]["flops"] == "on"  # no dearer than maml, and better
    assert totals["maml"]["front"]["flops"] == "off"
    assert totals["scratch"]["front"]["flops"] == "on"  # the cheapest by far
    low, high = totals["maml"]["ci95"]["flops"]
    assert low == high == totals["maml"]["flops"]  # every seed costs the same
    rows = {row["label"]: row for row in found["equal_compute"]["rows"]}
    values, halves = rows["maml"]["values"], rows["maml"]["ci95"]
    last = [run.valid("valid")[-1]["accuracy"] for run in groups_of(tmp_path)[1].runs]
    assert values[-1] == pytest.approx(np.mean(last))
    assert halves[-1] == pytest.approx(4.302652729 * np.std(last, ddof=1) / 3**0.5)
    page = check_page(write_report([tmp_path], tmp_path / "report.html")).text
    assert "±" in page[page.index("Which method is best at equal total compute?") :]
