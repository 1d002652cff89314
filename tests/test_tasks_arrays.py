"""Own arrays and tables as task sources."""

from __future__ import annotations

import math
import sys
import unicodedata
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
        ({"ways": 14}, "13 classes, but a task needs 14"),
        ({"ways": 1}, r"ways: must be >= 2 \(got 1\); .*group"),
        ({"shots": 4, "queries": 5}, r"shots \+ queries = 9 rows"),
        ({"target": "z"}, "no column 'z'"),
        ({"inputs": ()}, "at least 1 item"),
        ({"fractions": (0.5, 0.5, 0.5)}, "sum 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    x, labels = table()
    np.savez(tmp_path / "rows.npz", x=x, y=np.array(labels))
    with pytest.raises(ValueError, match=why):
        Arrays(tmp_path / "rows.npz", **changes).build()


@pytest.mark.parametrize("scale", [False, True])
def test_all_columns_that_are_absent_are_named_at_once(scale: bool) -> None:
    table = {"shop": np.arange(40) // 4, "price": np.ones(40), "sales": np.ones(40)}
    named_wrong = {"inputs": ["prize"], "target": "sale", "group": "shp", "standardise": scale}
    with pytest.raises(ConfigError) as error:
        Arrays(table, **named_wrong).resolve(0).build()
    named = [text.split(";")[0] for _, text in error.value.problems]
    assert named == [f"has no column {name!r}" for name in ("shp", "sale", "prize")]


def test_rows_that_are_not_finite_and_data_that_are_gone() -> None:
    x, labels = table()
    x[3, 1] = np.nan
    with pytest.raises(ConfigError, match="not finite in rows 4"):
        Arrays(x, labels).build()
    again = Arrays(**Arrays(*table()).model_dump())
    with pytest.raises(ConfigError, match="pass the data again"):
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


class Rows:
    """A torch Dataset, without torch's class."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


class Table:
    """A Hugging Face Dataset, as far as it is used."""

    def __init__(self, **columns: Any) -> None:
        self.columns, self.column_names = columns, list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Any:
        return list(self.columns[name])


def same_episodes(a: Arrays, b: Arrays) -> None:
    one, two = a.build().sample(KEY, 3), b.build().sample(KEY, 3)
    assert torch.equal(one.support.x, two.support.x) and torch.equal(one.query.y, two.query.y)


def test_data_sets_of_other_packages_are_the_same_rows() -> None:
    x, labels = table()
    plain = Arrays(x, labels, ways=3)
    pairs = [(torch.as_tensor(row), label) for row, label in zip(x, labels, strict=True)]
    for data in (
        Rows(pairs),
        Rows([{"x": row, "y": label} for row, label in pairs]),
        Table(x=x, y=labels),
        {"x": x, "y": labels},
        pairs,
    ):
        same_episodes(Arrays(data, ways=3), plain)
    same_episodes(Arrays(x.tolist(), labels, ways=3), plain)
    numbers = torch.as_tensor([int(label[1:]) for label in labels])
    tensors = torch.utils.data.TensorDataset(torch.as_tensor(x), numbers)
    same_episodes(Arrays(tensors, ways=3), Arrays(x, numbers, ways=3))


def test_a_mapping_of_data_sets_is_the_split() -> None:
    x, labels = table(9)
    part = np.array([int(label[1:]) // 3 for label in labels])
    named = {
        split: Table(x=x[part == n], y=[lab for lab, p in zip(labels, part, strict=True) if p == n])
        for n, split in enumerate(("train", "validation", "test"))
    }
    task = Arrays(named, ways=2)
    assert set(task.build("test").examples(KEY, 200).x[:, 0].tolist()) == {6.0, 7.0, 8.0}
    with pytest.raises(ConfigError, match="different columns"):
        Arrays({**named, "test": Table(x=x)}, ways=2)


def test_files_may_be_the_split(tmp_path: Path) -> None:
    x, labels = table(9)
    names = np.array(labels)
    part = np.array([int(label[1:]) // 3 for label in labels])
    paths = [tmp_path / f"{split}.npz" for split in ("train", "valid", "test")]
    for n, path in enumerate(paths):
        np.savez(path, x=x[part == n], y=names[part == n])
    task = Arrays(paths[0], valid_path=str(paths[1]), test_path=str(paths[2]), ways=2)
    assert set(task.build("valid").examples(KEY, 200).x[:, 0].tolist()) == {3.0, 4.0, 5.0}
    two = Arrays(paths[0], test_path=str(paths[2]), ways=2)
    assert [two.build(s).spec.num_classes for s in ("train", "test")] == [2, 3]
    with pytest.raises(ConfigError, match="splits 'c00'"):
        Arrays(paths[0], test_path=str(paths[0]), ways=2).build()


def test_an_array_of_classes_needs_no_labels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(10, 8, 2, 3))
    np.save(tmp_path / "stack.npy", x)
    source = Arrays(tmp_path / "stack.npy", target=None, ways=3).build()
    assert source.spec.x_shape == (2, 3) and source.spec.num_classes == 6
    same_episodes(
        Arrays(x, target=None, ways=3), Arrays(tmp_path / "stack.npy", target=None, ways=3)
    )
    with pytest.raises(ConfigError, match=r"no column 'y'.* target null .*\[classes, rows of each"):
        Arrays(tmp_path / "stack.npy", ways=3).build()
    with pytest.raises(ConfigError, match=r"classes, rows of each"):
        Arrays(x[0, 0], target=None, ways=3).build()


def test_rows_in_memory_can_be_saved_for_the_command_line(tmp_path: Path) -> None:
    x, labels = table()
    task = Arrays(Rows(list(zip(x, labels, strict=True))), ways=3)
    same_episodes(Arrays(task.save(tmp_path / "rows.npz"), ways=3), task)


def test_labels_of_any_kind_are_names() -> None:
    x, labels = table()
    numbers = np.array([int(label[1:]) for label in labels])
    names = [np.unique(part, return_inverse=True)[1] for part in (numbers, numbers.astype(float))]
    assert (names[0] == names[1]).all()
    same_episodes(Arrays(x, numbers.astype(float) + 7), Arrays(x, numbers.astype(np.uint8) + 7))
    column = Arrays(x, np.array(labels)[:, None])
    same_episodes(column, Arrays(x, labels))
    for gone in (None, math.nan):
        with pytest.raises(ConfigError, match="no label in row 2"):
            Arrays(x, np.array([labels[0], gone, *labels[2:]], dtype=object)).build()
    with pytest.raises(ConfigError, match="regression needs `group`"):
        Arrays(x, np.linspace(0, 1, len(x))).build()
    with pytest.raises(ConfigError, match="empty in row 1"):
        Arrays(x, ["", *labels[1:]]).build()
    with pytest.raises(ConfigError, match="unequal lengths"):
        Arrays(x, labels[1:])
    with pytest.raises(ConfigError, match="pass an array"):
        Arrays(3)
    with pytest.raises(ConfigError, match="one column"):
        Arrays(x, np.eye(len(x))).build()


@pytest.mark.parametrize("bad", [{1, 2}, (row for row in [1, 2])])
def test_what_has_no_rows_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"list\(data\)"):
        Arrays(bad)


def test_two_unicode_forms_of_a_name_are_one_class() -> None:
    x, labels = table()
    forms = [
        unicodedata.normalize("NFD" if n % 2 else "NFC", "é" + name)
        for n, name in enumerate(labels)
    ]
    same_episodes(Arrays(x, forms), Arrays(x, labels))


def test_pairs_of_arrays_and_rows_in_lists_are_data_sets() -> None:
    x, labels = table(9)
    y = np.array([int(label[1:]) for label in labels])
    same_episodes(Arrays((x, y), ways=3), Arrays(x, y, ways=3))
    rows = Rows([[torch.as_tensor(row), label] for row, label in zip(x, labels, strict=True)])
    same_episodes(Arrays(rows, ways=3), Arrays(x, labels, ways=3))
    parts = {name: (x[y // 3 == n], y[y // 3 == n]) for n, name in enumerate(("train", "val"))}
    parts["test"] = (x[y // 3 == 2], y[y // 3 == 2])
    test = Arrays(parts, ways=2).build("test").examples(KEY, 200)
    assert set(test.x[:, 0].tolist()) == {6.0, 7.0, 8.0}
    with pytest.raises(ConfigError, match="row 3 has the columns a, row 1 has a, y"):
        Arrays(Rows([{"a": 1.0, "y": 0}, {"a": 2.0, "y": 1}, {"a": 3.0}]))


def test_cells_may_be_arrays() -> None:
    x, labels = table()
    cells = np.empty(len(x), dtype=object)
    cells[:] = list(x)
    same_episodes(Arrays({"x": cells, "y": labels}), Arrays(x, labels))
    cells[1] = x[1][:1]
    with pytest.raises(ConfigError, match="rows have different shapes"):
        Arrays({"x": cells, "y": labels})


def test_bytes_of_images_become_numbers_from_0_to_1() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 5, 5), dtype=np.uint8)
    y = np.repeat(np.arange(8), 5)
    options: Any = {"ways": 2, "queries": 2, "fractions": (1, 0, 0)}
    same_episodes(Arrays(pixels, y, **options), Arrays(pixels / 255, y, **options))
    vectors = pixels.reshape(40, -1)
    same_episodes(Arrays(vectors, y, **options), Arrays(vectors.astype(float), y, **options))


def test_what_would_lose_a_part_is_refused(tmp_path: Path) -> None:
    x, labels = table()
    with pytest.raises(ConfigError, match=r"must contain numbers \(got complex64\)"):
        Arrays(x * 1j, labels).build()
    np.savez(tmp_path / "rows.npz", x=x, y=np.array(labels))
    with pytest.raises(ConfigError, match="must be omitted if x is a path"):
        Arrays(tmp_path / "rows.npz", labels)
    np.savez(tmp_path / "two.npz", a=x, b=x, y=np.array(labels))
    with pytest.raises(ConfigError, match="'a' is an array and must be the only column"):
        Arrays(tmp_path / "two.npz").build()


@pytest.mark.parametrize(
    ("mark", "encoding", "name"),
    [(";", "utf-8-sig", "rows.csv"), ("\t", "utf-16", "rows.TSV"), (",", "utf-16", "rows.csv")],
)
def test_tables_as_other_programs_write_them(
    tmp_path: Path, mark: str, encoding: str, name: str
) -> None:
    x, labels = table()
    rows = [("a", "b", "y"), *((a, b, c) for (a, b), c in zip(x, labels, strict=True))]
    text = "\n".join(mark.join(map(str, row)) for row in rows)
    (tmp_path / name).write_text(text, encoding=encoding)
    same_episodes(Arrays(tmp_path / name), Arrays(x, labels))
    (tmp_path / "old.csv").write_bytes("a,y\n1,caf\u00e9".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8: save it"):
        Arrays(tmp_path / "old.csv").build()
    (tmp_path / "words.csv").write_text('a,y\n1,u\n"2,5",v\n')
    with pytest.raises(
        ConfigError, match=r"'a' must contain numbers \(row 2 contains '2,5'\): write 2.5"
    ):
        Arrays(tmp_path / "words.csv", ways=2, shots=1, queries=0, fractions=(1, 0, 0)).build()


def test_files_may_order_their_columns_otherwise(tmp_path: Path) -> None:
    """Inputs are known by name: between the files of a split, and in a file given later."""
    rows = [(c, -c - r / 100, f"c{c}") for c in range(1, 7) for r in range(6)]
    (tmp_path / "one.csv").write_text("\n".join(["b,a,y", *(f"{p},{q},{y}" for p, q, y in rows)]))
    (tmp_path / "two.csv").write_text("\n".join(["y,a,b", *(f"d{y},{q},{p}" for p, q, y in rows)]))
    one = Arrays(tmp_path / "one.csv", test_path=str(tmp_path / "two.csv"), ways=2)
    for split in ("train", "test"):
        x = one.build(split).examples(KEY, 50).x
        assert (x[:, 0] > 0).all() and (x[:, 1] < 0).all()
    resolved = Arrays(tmp_path / "one.csv", ways=2).resolve(0)
    assert resolved.inputs == ("b", "a")
    later = resolved.model_copy(update={"path": str(tmp_path / "two.csv")}).build()
    assert (later.examples(KEY, 50).x[:, 0] > 0).all()


def test_half_precision_and_paths_are_taken(tmp_path: Path) -> None:
    x, y = torch.randn(60, 4).bfloat16(), torch.arange(20).repeat_interleave(3)
    options = {"ways": 2, "shots": 1, "queries": 1}
    held = Arrays(x, y, **options).build()
    np.savez(tmp_path / "rows.npz", x=x.float().numpy(), y=y.numpy())
    read = [Arrays(path=tmp_path / "rows.npz", **options), Arrays(tmp_path / "rows.npz", **options)]
    assert all(one.model_dump(mode="json")["path"] == str(tmp_path / "rows.npz") for one in read)
    expected = held.sample(fold_in(0), 2)
    for one in read:
        assert torch.equal(one.build().sample(fold_in(0), 2).query.x, expected.query.x)
