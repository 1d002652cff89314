"""A target from validation tasks, and which classes or groups are in each split."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from run_folders import METHODS, groups_of, write_rows

import metalearn as ml
from metalearn.results.break_even.target import (
    TASKS,
    check_target,
    choose_target,
    validation_tasks,
)
from metalearn.results.design.protocol import protocol
from metalearn.variable_tasks import VariableSource

NAME = f"target from at least {TASKS} validation tasks"


def table(groups: int = 15, rows: int = 8) -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=groups * rows)
    group = np.repeat([f"station {n}" for n in range(groups)], rows)
    slope = np.repeat(np.arange(groups) / groups, rows)
    return {"place": group, "x": x, "y": slope * x}


def stations(**fields: Any) -> ml.tasks.Arrays:
    sizes: dict[str, Any] = {"shots": 3, "queries": 4, "fractions": (0.6, 0.2, 0.2)}
    return ml.tasks.Arrays(table(), group="place", **{**sizes, **fields})


def fake(tasks: int | None, pool: int | None, metric: str = "loss") -> Any:
    validation = {} if pool is None else {"pool": pool}
    run = SimpleNamespace(
        config={"run": {"validate": {"episodes": tasks}}} if tasks else {},
        result={"validation": validation},
    )
    group = SimpleNamespace(label="maml", runs=[run], higher_better=metric == "accuracy")
    return group


def verdict(tasks: int | None, pool: int | None, metric: str = "loss") -> tuple[bool, str]:
    group = fake(tasks, pool, metric)
    target = {"metric": metric, "value": 1.0, "label": "maml", **validation_tasks(group)}
    check = check_target([group], target)
    assert check.name == NAME
    return check.passed, check.why


@pytest.mark.parametrize(
    ("tasks", "pool", "passed", "why"),
    [
        (200, None, True, "maml was validated on 200 tasks"),
        (200, 20, True, "200 tasks of 20 different groups"),
        (200, 3, False, "of 3 different groups: the 95 % interval of a mean over 3 extends 2.5 "),
        (10, None, False, "on 10 tasks: the 95 % interval of a mean over 10 extends 0.7 standard"),
        (200, 1, False, "1 different groups, whose variation is not known: set evaluate.target"),
        (None, None, True, "does not apply: the number of validation tasks is not on record"),
        (None, 3, False, "validated on tasks of 3 different groups"),
    ],
)
def test_a_target_from_few_validation_tasks_fails_a_check(
    tasks: int | None, pool: int | None, passed: bool, why: str
) -> None:
    found = verdict(tasks, pool)
    assert found[0] == passed and why in found[1]
    if pool == 3:
        assert "sets of classes" in verdict(tasks, pool, "accuracy")[1]


def test_a_named_target_needs_no_validation_tasks() -> None:
    target = {"metric": "loss", "value": 1.0, "why": "named in the experiment"}
    for one, why in ((target, "it is named in the experiment"), (None, "there is none")):
        check = check_target([fake(2, 2)], one)
        assert check.passed and check.why == f"does not apply: {why}"


def test_tasks_of_all_seeds_count(tmp_path: Path) -> None:
    write_rows(tmp_path, list(METHODS)[:2], seeds=3)
    for folder in tmp_path.glob("methods/*/seed-*"):
        file, config = folder / "result.json", folder / "config.yaml"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"validation": {"pool": 9}}))
        config.write_text(
            config.read_text().replace("run:\n", "run:\n  validate: {episodes: 40}\n")
        )
    target = choose_target(groups_of(tmp_path))
    assert target is not None and (target["tasks"], target["pool"]) == (120, 9)


def test_a_comparison_says_what_its_target_and_its_test_rest_on(tmp_path: Path) -> None:
    rivals = {"fine-tune": ml.transfer.FineTune(), "scratch": ml.transfer.Scratch()}
    found = ml.compare(
        rivals,
        task=stations(),
        model=ml.models.MLP(sizes=(4,)),
        meta_steps=1,
        examples_per_step=4,
        episodes=4,
        steps=(0, 1),
        executor="vmap",
        out=tmp_path / "runs",
    )
    contents = json.loads((tmp_path / "runs/comparison.json").read_text())
    check = next(check for check in contents["checks"] if check["name"] == NAME)
    assert not check["passed"] and "4 tasks of 3 different groups" in check["why"]
    assert (contents["target"]["tasks"], contents["target"]["pool"]) == (4, 3)
    (split,) = [one["text"] for one in contents["protocol"] if one["topic"] == "split"]
    test, valid = (stations().build(name) for name in ("test", "valid"))
    expected = "groups are split by fractions 0.6, 0.2, 0.2 (train, valid, test) in an order drawn"
    assert split.startswith(f"all methods: {expected} with split_seed 0; test: 3 (station ")
    for source in (test, valid):
        assert ", ".join(source.class_names) in split and len(source.class_names) == 3
    page = Path(found.report).read_text()
    assert NAME in page and ", ".join(test.class_names) in page
    assert "over 4 tasks of 3 different groups" in page


def test_rows_know_the_names_of_their_split() -> None:
    sources = {split: stations().build(split) for split in ("train", "valid", "test")}
    names = [name for source in sources.values() for name in source.class_names]
    assert sorted(names) == sorted({str(name) for name in table()["place"]})
    episode = sources["test"].sample(ml.fold_in(0), 20)
    data = table()
    for task, number in enumerate(episode.info["class_ids"][:, 0].tolist()):
        rows = data["x"][data["place"] == sources["test"].class_names[number]]
        drawn = episode.support.x[task].flatten().numpy()
        assert all(np.isclose(rows, value, atol=1e-6).any() for value in drawn)
    assert stations(split_seed=1).build("test").class_names != sources["test"].class_names
    ranged = stations(shots=[1, 3]).build("test")
    assert isinstance(ranged, VariableSource)
    assert (ranged.class_names, ranged.groups) == (sources["test"].class_names, 3)


def test_a_column_of_splits_is_the_rule() -> None:
    place = table()["place"]
    split = np.where(place < "station 3", "train", "test")
    source = stations(split=split).build("test")
    rule = "by the column split; a tenth of those of training is held out for validation, drawn"
    assert source.split_rule == f"{rule} with split_seed 0"
    valid = np.where(place == "station 4", "valid", split)
    assert stations(split=valid).build("test").split_rule == "by the column split"


def test_the_protocol_lists_the_first_names_alone(tmp_path: Path) -> None:
    write_rows(tmp_path, list(METHODS)[:2])
    assert "split" not in {one["topic"] for one in protocol(groups_of(tmp_path), [])}
    split = {"rule": "by file", "count": 30, "names": [f"c{n}" for n in range(30)]}
    for file in tmp_path.glob("methods/*/seed-*/result.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"test_split": split}))
    (text,) = [o["text"] for o in protocol(groups_of(tmp_path), []) if o["topic"] == "split"]
    assert text.startswith("all methods: classes are split by file; test: 30 (c0, c1, ")
    assert text.endswith("c19 and 10 more)")
