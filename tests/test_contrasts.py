"""Contrasts, levels and prices in comparison.json, and their keys in experiment files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import cost_block, write_rows, write_run

from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.results import records
from metalearn.results.break_even.solved import point_of, starts_at_chance, stopped_outcomes
from metalearn.results.comparison import RULES, collect
from metalearn.results.contrasts import contrasts, mark_contrasts

ROWS = ["proto_net", "maml", "fine_tune", "linear_probe", "scratch"]
TARGET = {"metric": "accuracy", "value": 0.3}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), ROWS, 3, episodes=40)


def request(root: Path, **keys: Any) -> None:
    (root / "comparison-request.json").write_text(json.dumps({"labels": ROWS, **keys}))


def test_contrasts_follow_from_the_families_in_the_order_of_the_file(comparison: Path) -> None:
    request(comparison)
    found = collect(comparison, target=TARGET)
    assert found["contrasts"] == [
        ["maml", "fine_tune"],
        ["proto_net", "scratch"],
        ["maml", "scratch"],
        ["fine_tune", "scratch"],
    ]
    marked = [entry for entry in found["paired"] if entry["contrast"]]
    assert len(marked) == 4 and len(found["paired"]) == 10
    expected = {frozenset(pair) for pair in found["contrasts"]}
    assert {frozenset((entry["a"], entry["b"])) for entry in marked} == expected
    smallest = min(marked, key=lambda entry: entry["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 4 * smallest["p"]))
    assert all(entry["p_holm"] is None for entry in found["paired"] if not entry["contrast"])
    assert all(len(entry["per_seed"]) == 3 for entry in found["paired"])
    for line in found["summary"]:
        low, high = line["interval"]
        assert low < line["value"] < high and line["covers"] == "new seeds and tasks"
        assert np.mean(line["per_seed"]) == pytest.approx(line["value"], abs=1e-6)


def test_contrasts_are_those_that_the_file_names(comparison: Path) -> None:
    request(comparison, contrasts=[["maml", "linear_probe"], ["maml", "unfinished"]])
    found = collect(comparison, target=TARGET)
    (entry,) = [entry for entry in found["paired"] if entry["contrast"]]
    assert {entry["a"], entry["b"]} == {"maml", "linear_probe"}
    assert entry["p_holm"] == pytest.approx(min(1, 2 * entry["p"]))  # the missing one counts
    assert collect(comparison, target=TARGET)["rules"] == RULES


def test_learned_rules_and_searches_have_their_counterparts(tmp_path: Path) -> None:
    def row(label: str, method: str, **more: Any) -> records.Group:
        def change(result: dict[str, Any]) -> None:
            result["method"] = method
            result["factors"] = more.pop("factors", {})

        run = records.load(write_run(tmp_path / label, label, "scratch", change=change))
        config = {**run.config, "method": {"name": method, **more}}
        object.__setattr__(run, "config", config)
        return records.Group(label, [run])

    adam, learned = {"optimizer": "Adam"}, {"optimizer": "learned_adam"}
    rows = [
        row("scratch", "scratch"),
        row("search", "per_task_nas", space={"name": "cells"}, searcher={"name": "halving"}),
        row("control", "per_task_nas", space={"name": "cells"}, searcher={"name": "random"}),
        row("adam", "tuned_adam", factors=adam),
        row("adam_x", "tuned_adam", factors={**adam, "start": "pretrained"}, start="x"),
        row("rule", "learned_optimizer", factors=learned),
        row("rule_x", "learned_optimizer", factors={**learned, "start": "pretrained"}, start="x"),
    ]
    order = [group.label for group in rows]
    expected = [("search", "scratch"), ("rule", "adam"), ("rule_x", "adam_x"), ("rule", "scratch")]
    assert contrasts(rows[::-1], None, order) == expected
    entry = {"a": "rule", "b": "adam", "p": None}
    (marked,) = mark_contrasts([entry], [("adam", "rule")])
    assert marked["contrast"] and marked["p_holm"] is None


def test_in_context_rows_have_contrasts_with_meta_learned_and_transfer_rows(tmp_path: Path) -> None:
    def row(label: str, family: str) -> records.Group:
        change = {"family": family}
        run = write_run(tmp_path / label, label, "scratch", change=lambda r: r.update(change))
        return records.Group(label, [records.load(run)])

    families = {"caml": "in_context", "gpicl": "in_context", "proto_net": "metric"}
    rows = [row(label, family) for label, family in families.items()]
    assert contrasts(rows, None, list(families)) == [("proto_net", "caml")]
    rows += [row("linear_probe", "transfer"), row("scratch", "scratch")]
    assert contrasts(rows, None, [*families, "linear_probe", "scratch"]) == [
        ("proto_net", "linear_probe"),
        ("proto_net", "caml"),
        ("linear_probe", "caml"),
        *[(label, "scratch") for label in ("caml", "proto_net", "linear_probe")],
    ]


def test_a_task_is_priced_at_the_headline_step_and_never_at_step_0(tmp_path: Path) -> None:
    def at_step(step: int) -> Any:
        def change(result: dict[str, Any]) -> None:
            result["headline"]["step"] = step

        return change

    def group(step: int, method: str = "maml") -> records.Group:
        folder = write_run(tmp_path / f"{method}-{step}", method, method, change=at_step(step))
        (found,) = records.group([records.load(folder)])
        return found

    for step, point in ((0, 1), (1, 1), (5, 3)):
        one = group(step)
        found = stopped_outcomes(one, TARGET, "flops")
        assert point_of(one.first) == point and found is not None
        scores = one.first.scores["accuracy"][:, point]
        assert (found.solved[0] == (scores >= 0.3 - 1e-6)).all()
        assert len(np.unique(found.cost)) == 1 and found.cost[0, 0] > 0
        answered = stopped_outcomes(one, TARGET, "flops", answers=True)
        assert answered is not None and answered.cost[0, 0] - found.cost[0, 0] == 3e6
    reader = group(0, "proto_net")
    assert not starts_at_chance(reader.first) and point_of(reader.first) == 0


def test_break_even_is_given_at_every_level_and_under_every_price(tmp_path: Path) -> None:
    def cheap(result: dict[str, Any]) -> None:
        result["cost"] = cost_block("examples", True, flops=1e6)

    for seed in range(3):
        write_run(tmp_path / f"methods/maml/seed-{seed}", "maml", "maml", seed)
        write_run(tmp_path / f"methods/other/seed-{seed}", "other", "maml", seed, change=cheap)
    for config in tmp_path.rglob("config.yaml"):
        config.write_text(config.read_text() + "evaluate: {targets: [0.3, 0.42]}\n")
    found = collect(tmp_path, target=TARGET)
    assert found["levels"] == pytest.approx([23 / 75, 32 / 75])  # multiples of 1 / 75 queries
    for row in found["solved"]:
        assert [one["level"] for one in row["shares"]] == pytest.approx([0.3, 23 / 75, 32 / 75])
        assert all(one["ci95"][0] <= one["share"] <= one["ci95"][1] for one in row["shares"])
        assert row["shares"][0]["share"] == row["share"]
    assert len(found["break_even"]) == 2 * 2
    for entry in found["break_even"]:
        assert entry["level"] in found["levels"] and entry["seeds"] == [3, 3]
        assert (entry["with_tuning"], entry["with_answering"]) == (True, False)
        prices = [(one["with_tuning"], one["with_answering"]) for one in entry["variants"]]
        assert prices == [(False, False), (True, True)]


def test_experiment_files_name_contrasts_and_levels() -> None:
    methods = [{"name": "maml"}, {"name": "scratch"}]
    data: dict[str, Any] = {"methods": methods, "contrasts": [["maml", "scratch"]]}
    data["evaluate"] = {"targets": [0.4, 0.8]}
    plan = parse(data)
    assert plan.contrasts == (("maml", "scratch"),)
    assert plan.experiments[0].evaluate.targets == (0.4, 0.8)
    assert parse({"methods": methods}).contrasts is None
    for bad, text in (
        ({"contrasts": [["maml", "scrach"]]}, "did you mean 'scratch'"),
        ({"contrasts": [["maml", "maml"]]}, "pairs of labels"),
        ({"contrasts": "maml"}, "pairs of labels"),
        ({"evaluate": {"targets": [0.8, 0.4]}}, "ascending"),
        ({"evaluate": {"targets": [0.3, 0.8]}}, "twice chance"),
        ({"evaluate": {"target": {"value": 0.25}}}, "evaluate.target.value.*twice chance"),
    ):
        with pytest.raises(ConfigError, match=text):
            parse({**data, **bad})


def test_two_classes_have_levels_between_halfway_and_1() -> None:
    """Twice chance is 1 there: levels, the target and the map begin at 0.75."""
    data: dict[str, Any] = {"method": {"name": "maml"}, "task": {"source": "glyphs", "ways": 2}}
    for level in (0.75, 0.8, 1.0):
        evaluate = {"targets": [level], "target": {"value": level}}
        assert parse({**data, "evaluate": evaluate}).experiments[0].evaluate.targets == (level,)
    for evaluate in ({"targets": [0.7]}, {"target": {"value": 0.7}}):
        with pytest.raises(ConfigError, match=r"0\.75 \(halfway between chance and 1\)"):
            parse({**data, "evaluate": evaluate})
    loss: dict[str, Any] = {"targets": [0.1], "target": {"metric": "loss", "value": 0.1}}
    assert parse({**data, "evaluate": loss}).experiments[0].evaluate.targets == (0.1,)


def test_levels_that_are_not_given_leave_the_hash_as_it_was() -> None:
    with_default = parse({"method": {"name": "maml"}}).experiments[0]
    resolved = with_default.resolved()
    resolved["evaluate"].pop("targets")
    assert parse(resolved).experiments[0].hash() == with_default.hash()
    named = parse({"method": {"name": "maml"}, "evaluate": {"targets": [0.8]}}).experiments[0]
    assert named.hash() != with_default.hash()
