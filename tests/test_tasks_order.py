"""Support sets of the first rows of a group or class, by a column such as the time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Commands, write
from messages import collect_messages

import metalearn as ml
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.report.page import write_report
from metalearn.results.checks import _check_pools, _check_same_task
from metalearn.results.design.protocol import describe_support
from metalearn.rng import fold_in
from metalearn.storage.files import read_json
from metalearn.tasks import Arrays
from metalearn.testing import check_source

KEY = fold_in(5, "order")
SIZES: dict[str, Any] = {"shots": 4, "queries": 3}


def series(groups: int = 20, each: int = 12, seed: int | None = 0) -> dict[str, Any]:
    """Columns of readings; y tells the batch and the minute. Shuffled, unless seed is None."""
    batch, minutes = np.repeat(np.arange(groups), each), np.tile(np.arange(each) * 2.5, groups)
    temperature = np.random.default_rng(1).normal(size=len(batch)).round(3)
    rows = np.arange(len(batch))
    rows = rows if seed is None else np.random.default_rng(seed).permutation(rows)
    columns = {"batch": batch, "minutes": minutes, "temperature": temperature}
    return {name: column[rows] for name, column in columns.items()} | {
        "y": (1000.0 * batch + minutes)[rows]
    }


def write_csv(path: Path, columns: dict[str, Any]) -> Path:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    return path


def minutes(values: torch.Tensor) -> torch.Tensor:
    """The minutes of targets [T, M, 1]: [T, M]."""
    return values[..., 0] % 1000


def same(a: ml.Episode, b: ml.Episode) -> bool:
    parts = (("support", "x"), ("support", "y"), ("query", "x"), ("query", "y"))
    return all(torch.equal(getattr(getattr(a, p), n), getattr(getattr(b, p), n)) for p, n in parts)


def test_the_first_rows_are_support_and_later_ones_are_queries() -> None:
    source = Arrays(series(), group="batch", order="minutes", **SIZES).build()
    assert source.spec.x_shape == (2,)  # the order remains an input
    episode = source.sample(KEY, 40)
    first = torch.tensor([0.0, 2.5, 5.0, 7.5])
    assert (minutes(episode.support.y) == first).all()  # also in this order
    later = minutes(episode.query.y)
    assert (later > 7.5).all() and len(later.unique()) == 8  # all later rows occur
    assert all(len(row.unique()) == 3 for row in later)
    assert (episode.support.y[:, 0] // 1000 == episode.query.y[:, 0] // 1000).all()
    one = torch.cat([source.sample(KEY, 1, start=t).query.y for t in range(40)])
    assert torch.equal(one, episode.query.y)  # task by task as in a batch


def test_without_an_order_rows_are_drawn_at_random() -> None:
    support = Arrays(series(), group="batch", **SIZES).build().sample(KEY, 40).support
    assert len(minutes(support.y).unique()) == 12


def test_the_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    task: dict[str, Any] = {"group": "batch", "order": "minutes", **SIZES}
    expected = Arrays(series(seed=None), **task).build("test").sample(KEY, 5)
    for seed in range(3):
        file = write_csv(tmp_path / "rows.csv", series(seed=seed))
        saved = Arrays(series(seed=seed), **task).save(tmp_path / "rows.npz")
        for data in (series(seed=seed), file, saved):
            assert same(Arrays(data, **task).build("test").sample(KEY, 5), expected)


def test_the_inputs_are_those_without_an_order(tmp_path: Path) -> None:
    """An order that is excluded from `inputs`, and an array beside an array x."""
    columns = series()
    named = Arrays(columns, inputs=["temperature"], group="batch", order="minutes", **SIZES)
    x = columns["temperature"][:, None]
    beside = Arrays(
        x, columns["y"], group=columns["batch"], order=torch.tensor(columns["minutes"]), **SIZES
    )
    assert beside.order == "order" and beside.build().spec.x_shape == (1,)
    assert same(named.build().sample(KEY, 5), beside.build().sample(KEY, 5))
    saved = Arrays(beside.save(tmp_path / "x.npz"), group="group", order="order", **SIZES)
    assert same(named.build().sample(KEY, 5), saved.build().sample(KEY, 5))
    assert named.resolve(0).input_names == ("temperature",)
    unnamed = Arrays(columns, group="batch", order="minutes").resolve(0)
    assert unnamed.input_names == Arrays(columns, group="batch").resolve(0).input_names


def test_classes_have_their_first_rows_too() -> None:
    columns = series() | {"y": [f"c{n}" for n in series()["batch"]]}
    task = Arrays(columns, inputs=["minutes"], order="minutes", ways=3, shots=2, queries=4)
    episode = task.build().sample(KEY, 30)
    labels = episode.support.y
    assert len({str(row) for row in labels.tolist()}) > 5  # classes are permuted
    for label in range(3):
        rows = episode.support.x[labels == label].reshape(30, 2)
        assert (rows == torch.tensor([0.0, 2.5])).all()
    assert (episode.query.x > 2.5).all()


def test_variable_shots_are_the_first_ones() -> None:
    task = Arrays(series(), group="batch", order="minutes", shots=[1, 4], queries=3)
    episode = task.build().sample(KEY, 40)
    weight = episode.support.weight
    assert weight is not None and set(weight.sum(1).tolist()) == {1.0, 2.0, 3.0, 4.0}
    assert (weight.diff(dim=1) <= 0).all()  # the first k of 4, and the rest is padding
    assert (minutes(episode.support.y) == torch.tensor([0.0, 2.5, 5.0, 7.5])).all()
    assert (minutes(episode.query.y) > 7.5).all()


@pytest.mark.parametrize(
    ("changes", "fields", "why"),
    [
        ({}, {"order": "minuts"}, "no column 'minuts'; did you mean 'minutes'"),
        ({}, {"order": "y"}, "order: 'y' is the column of the target, which is unknown"),
        ({}, {"order": "batch"}, "order: 'batch' is the column of the group: name another"),
        ({}, {"order": ""}, "order"),
        ({}, {"order": np.arange(240)}, "order: is an array, but x has columns by name"),
        (
            {"minutes": np.where(np.arange(240) == 7, np.nan, np.arange(240))},
            {},
            "order: column 'minutes' is not finite in rows 8: remove rows with missing values",
        ),
        (
            {"minutes": ["2024-05-01"] * 240},
            {},
            r"order: column 'minutes' must contain numbers \(row 1 contains '2024-05-01'\): "
            "replace dates and times with numbers, such as hours since the first",
        ),
        ({"minutes": ["12:30"] * 240}, {}, r"\(row 1 contains '12:30'\): replace dates and times"),
        (
            {"minutes": np.full(240, "2024-05-01", "M8[D]")},
            {},
            r"must contain numbers \(got datetime64\[D\]; replace dates and times with numbers",
        ),
        ({"minutes": np.zeros((240, 2))}, {}, r"must have one number in each row \(got \[240, 2\]"),
    ],
)
def test_a_column_that_cannot_order_rows_is_refused(
    changes: dict[str, Any], fields: dict[str, Any], why: str
) -> None:
    options = {"inputs": ["temperature"], "group": "batch", "order": "minutes", **SIZES} | fields
    with pytest.raises(ValueError, match=why):
        Arrays(series() | changes, **options).build()


def test_a_tie_at_the_end_of_the_support_set_is_reported() -> None:
    columns, lines = series(), collect_messages()
    task: dict[str, Any] = {"inputs": ["temperature"], "group": "batch", "order": "minutes"}
    Arrays(columns, **task, **SIZES).build()
    assert not [line for line in lines if "same 'minutes'" in line]
    tied = columns | {"minutes": columns["minutes"] // 5}  # the rows of each pair
    Arrays(tied, **task, shots=4, queries=3).build()
    assert not [line for line in lines if "same 'minutes'" in line]
    source = Arrays(tied, **task, shots=3, queries=3).build()
    (line,) = [line for line in lines if "same 'minutes'" in line]
    assert "13 of 13 classes or groups of the train split have the same" in line
    assert "in row 3 and row 4 of their order" in line
    again = source.sample(KEY, 200)  # the file decides, in every episode in the same way
    rows = {(float(y[0]) // 1000, float(y[2])) for y in again.support.y[..., 0]}
    assert len(rows) == 13


def test_the_contract_of_sources_holds(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "rows.csv", series())
    check_source(Arrays(file, group="batch", order="minutes", **SIZES))
    check_source(
        Arrays(file, target="batch", inputs=["minutes", "temperature"], order="minutes", ways=3)
    )


def test_sources_of_a_mixture_say_their_order() -> None:
    def mixed(*orders: str | None) -> Any:
        sections = [
            {"source": "arrays", "path": None, "group": "batch", "order": order, **SIZES}
            | {"data_sha256": data.data_sha256}
            for order in orders
        ]
        return ml.tasks.Mixture(sources=sections).build("test").support_order

    data = Arrays(series())
    assert mixed(None, None) is None and mixed("minutes", "minutes") == "minutes"
    assert mixed("minutes", None) == "minutes (arrays)"


def config(path: Path, **task: Any) -> dict[str, Any]:
    return {
        "experiment": "reactors",
        "task": {"source": "arrays", "path": str(path), "group": "batch", **SIZES, **task},
        "model": {"name": "mlp", "sizes": [4]},
        "method": {"name": "maml"},
        "run": {"meta_steps": 2, "tasks_per_step": 2, "executor": "vmap"},
        "evaluate": {"episodes": 6, "steps": [0, 1]},
    }


def test_the_hash_without_an_order_is_that_of_older_versions(tmp_path: Path) -> None:
    plain, none, ordered = (
        parse(config(tmp_path / "rows.csv", **fields)).experiments[0]
        for fields in ({}, {"order": None}, {"order": "minutes"})
    )
    assert plain.hash() == none.hash() != ordered.hash()
    assert "order" not in plain.task.without_later(plain.task.model_dump())
    assert parse(ordered.resolved()).experiments[0].hash() == ordered.hash()


def test_a_run_says_which_rows_were_support(metalearn: Commands) -> None:
    """In result.json, in the report, and for a test with another choice of rows."""
    folder = metalearn.folder
    data = config(write_csv(folder / "reactors.csv", series()), order="minutes")
    done = metalearn("train", write(folder, "reactors", data), "--out", "reactors")
    assert done.code == 0, done.err
    run = ml.load_run(folder / "reactors")
    assert (minutes(run.source.sample(KEY, 6).query.y) > 7.5).all()
    result = read_json(folder / "reactors" / "result.json")
    assert result["task"]["order"] == result["facts"]["support_order"] == "minutes"
    random = ml.evaluate_run(folder / "reactors", ["task.order=null"])[0]
    assert "order" not in random["task"]
    assert random["episodes"]["fingerprint"] != result["episodes"]["fingerprint"]
    page = write_report([folder / "reactors"], folder / "reactors.html").read_text()
    text = "the first 4 rows of each group by minutes; queries are drawn from the rows after them"
    assert "4-shot arrays by minutes, 3 queries (support: the first 4" in page
    assert f"<strong>Support:</strong> {text}" in " ".join(page.split())
    assert "6 episodes are of 4 different groups" in page
    assert "their support rows are always the first by minutes" in page
    ml.train(  # the same in Python, of the rows in memory
        ml.algorithms.MAML(),
        task=Arrays(series(), group="batch", order="minutes", **SIZES),
        model=ml.models.MLP(sizes=(4,)),
        meta_steps=2,
        episodes=6,
        steps=(0, 1),
        run={"tasks_per_step": 2, "executor": "vmap"},
        out=folder / "reactors_in_memory",
    )
    again = read_json(folder / "reactors_in_memory" / "result.json")
    assert again["test"]["loss"] == result["test"]["loss"]


def fake(task: dict[str, Any], facts: dict[str, Any] | None = None) -> Any:
    result = {"task": task, "facts": facts or {}}
    return SimpleNamespace(task=task, result=result, episodes=9, metric="loss")


def test_reports_tell_tasks_with_an_order_from_others() -> None:
    ordered, random = fake({"order": "minutes", "shots": 5}), fake({"shots": 5})
    assert describe_support(random) == ""
    assert not _check_same_task([ordered, random]).passed
    assert _check_same_task([ordered, ordered]).passed
    single = fake({"order": "minutes", "shots": 1})
    assert describe_support(single).startswith("the first row of each group by minutes; ")
    some = fake({"order": "minutes", "shots": 5, "ranges": {"shots": [1, 5]}})
    assert describe_support(some).startswith("the first 1 to 5 rows of each group by minutes; ")
    assert describe_support(some).endswith("from the rows after the first 5")
    (check,) = _check_pools([fake({"order": "minutes"}, {"test_pool": 4})])
    assert check.why.endswith("; their support rows are always the first by minutes")
    (check,) = _check_pools([fake({}, {"test_pool": 4})])
    assert check.why.endswith("not of others")


def test_rows_that_are_missing_are_all_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Arrays(series(), target="z", group="shop", order="when").build()
    assert len(error.value.problems) == 3
