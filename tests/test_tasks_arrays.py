"""Own arrays and tables as task sources."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metalearn as ml
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.rng import fold_in
from metalearn.storage.columns import read_columns
from metalearn.tasks import Arrays

KEY = fold_in(7, "arrays")


def table(classes: int = 20, each: int = 6) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Rows that hold the number of their class and their own: x [R, 2], labels [R]."""
    x = np.array([[c, r] for c in range(classes) for r in range(each)], np.float32)
    labels = [f"c{c:02}" for c in range(classes) for _ in range(each)]
    order = np.random.default_rng(0).permutation(len(x))
    return x[order], [labels[i] for i in order]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_classes_in_memory(kind: str) -> None:
    x, labels = table()
    given = torch.as_tensor(x) if kind == "torch" else x
    task = Arrays(given, labels, ways=3, shots=2, queries=4)
    splits = {name: task.build(split=name) for name in ("train", "valid", "test")}
    assert [splits[name].spec.num_classes for name in splits] == [13, 3, 4]
    seen = [set(s.examples(KEY, 500).x[:, 0].int().tolist()) for s in splits.values()]
    assert set.union(*seen) == set(range(20)) and sum(map(len, seen)) == 20
    episode = splits["train"].sample(KEY, 5)
    assert episode.support.x.shape == (5, 6, 2) and episode.query.y.shape == (5, 12)
    for t in range(5):
        rows = torch.cat([episode.support.x[t], episode.query.x[t]])
        assert len({tuple(row.tolist()) for row in rows}) == 18  # support and query are disjoint
        labels_of = {
            (int(a[0]), int(b))
            for a, b in zip(
                rows, torch.cat([episode.support.y[t], episode.query.y[t]]), strict=True
            )
        }
        assert len(labels_of) == 3 and {b for _, b in labels_of} == {0, 1, 2}


def test_parquet_without_pyarrow_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"rows.parquet needs pyarrow \(pip install pyarrow\)"):
        read_columns(tmp_path / "rows.parquet", "task.file")


def test_groups_of_rows_are_tasks_of_regression() -> None:
    rng = np.random.default_rng(1)
    station = np.repeat(np.arange(10), 9)
    x = rng.random((90, 1))
    task = Arrays(x, 100 * station + x[:, 0], group=station, shots=4, queries=5)
    source = task.build()
    assert source.spec.kind == "regression" and source.spec.outputs == 1
    episode = source.sample(KEY, 6)
    whole = torch.cat([episode.support.y, episode.query.y], 1)[..., 0]
    assert ((whole // 100) == (whole[:, :1] // 100)).all()  # one station a task
    assert len({tuple(row.tolist()) for row in whole.sort(1).values}) > 1


def test_files_give_the_same_episodes_as_memory(tmp_path: Path) -> None:
    x, labels = table()
    lines = ["a,b,y", *(f"{a},{b},{c}" for (a, b), c in zip(x, labels, strict=True))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    np.savez(tmp_path / "rows.npz", x=x, y=np.array(labels))
    wanted = Arrays(x, labels, ways=3, shots=1).build().sample(KEY, 3)
    for name in ("rows.csv", "rows.npz"):
        found = Arrays(tmp_path / name, ways=3, shots=1).build().sample(KEY, 3)
        assert torch.equal(found.support.x, wanted.support.x)
        assert torch.equal(found.query.y, wanted.query.y)


def test_a_column_says_the_split(tmp_path: Path) -> None:
    x, labels = table(6)
    split = [
        {"c00": "test", "c01": "test", "c02": "valid", "c03": "valid"}.get(n, "train")
        for n in labels
    ]
    task = Arrays(x, labels, ways=2, shots=1, split=np.array(split))
    assert set(task.build(split="test").examples(KEY, 100).x[:, 0].tolist()) == {0.0, 1.0}
    split[0] = "valid" if split[0] != "valid" else "test"
    with pytest.raises(ConfigError, match="splits 'c"):
        Arrays(x, labels, ways=2, shots=1, split=np.array(split)).build()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ways": 14}, "13 classes, and a task needs 14"),
        ({"shots": 4, "queries": 5}, r"shots \+ queries = 9 rows"),
        ({"target": "z"}, "no column 'z'"),
        ({"fractions": (0.5, 0.5, 0.5)}, "sum 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    x, labels = table()
    np.savez(tmp_path / "rows.npz", x=x, y=np.array(labels))
    with pytest.raises(ValueError, match=why):
        Arrays(tmp_path / "rows.npz", **changes).build()


def test_rows_that_are_not_finite_and_data_that_are_gone() -> None:
    x, labels = table()
    x[3, 1] = np.nan
    with pytest.raises(ConfigError, match="not finite in rows 4"):
        Arrays(x, labels).build()
    again = Arrays(**Arrays(*table()).model_dump())
    with pytest.raises(ConfigError, match="give the data again"):
        again.build()


def test_a_run_on_a_file_of_rows(tmp_path: Path) -> None:
    x, labels = table(30)
    np.savez(tmp_path / "rows.npz", x=x / 30, y=np.array(labels))
    data = {
        "experiment": "own",
        "task": {"source": "arrays", "path": str(tmp_path / "rows.npz"), "queries": 3},
        "method": {"name": "proto_net"},
        "run": {"meta_steps": 2, "tasks_per_step": 2, "executor": "vmap"},
        "evaluate": {"episodes": 3, "steps": [0]},
    }
    from metalearn.run.run import run_one

    result = run_one(parse(data).experiments[0], tmp_path / "run")
    assert result["task"]["source"] == "arrays" and result["headline"]["value"] is not None
    assert ml.load_run(tmp_path / "run").source.spec.x_shape == (2,)
