"""Rows as users have them, whose meaning other readers lose: taken as meant, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.errors import ConfigError
from metalearn.logger import warn_once
from metalearn.rng import fold_in
from metalearn.storage.columns import read_columns
from metalearn.tasks import Arrays, ImageFolder

KEY = fold_in(17, "edges of rows")
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(60, 4))
Y = np.repeat([f"c{n:02}" for n in range(12)], 5)
SMALL: dict[str, Any] = {"ways": 2, "shots": 2, "queries": 2}


def build(*data: Any, **fields: Any) -> Any:
    return Arrays(*data, **{**SMALL, **fields}).build()


def table(path: Path, header: str, extra: Any = lambda n: "", mark: str = ",") -> Path:
    """Two inputs and a label a row."""
    rows = (f"{extra(n)}{n / 2}{mark}{n % 7}{mark}{Y[n]}" for n in range(60))
    path.write_text("\n".join([header, *rows]))
    return path


class Labelled:
    """A Hugging Face Dataset with class labels."""

    column_names = ("x", "label", "unused")

    def __init__(self, label: int, kind: Any = list, unused: int = 0) -> None:
        labels = [label, *(np.arange(1, 60) // 5).tolist()]
        self.columns = {"x": X.tolist(), "label": kind(labels), "unused": [unused] * 60}
        classes = type("ClassLabel", (), {"int2str": str})()
        self.features = {"label": classes, "unused": classes}

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __len__(self) -> int:
        return 60


def labels(first: str, others: str) -> list[str]:
    """Labels of 12 classes, of which the first row of one is written otherwise."""
    return [first, *[others] * 4, *Y[5:].tolist()]


MISSING = np.where(np.arange(60) == 3, "nan", Y)


@pytest.mark.parametrize(
    ("data", "fields", "words"),
    [
        ((X, MISSING), {}, r"has no label in row 4 \('nan'; rename it if it is a class\): remove"),
        ((X, X), {"group": MISSING}, r"^group: has no label in row 4"),
        ((X, X), {"group": np.eye(12)[np.arange(60) // 5]}, r"^group: names the tasks and must be"),
        ((np.ma.masked_array(X, X > 2), Y), {}, "x: has masked entries"),
        ((torch.tensor(X).to_sparse(), Y), {}, r"x: is sparse: pass \.to_dense"),
        ((X, np.eye(12)[np.arange(60) // 5]), {}, r"one-hot rows are labels by y\.argmax"),
        (
            (X, [*Y[:30].tolist(), *range(30)]),
            {"target": "y"},
            "target: mixes strings with numbers",
        ),
        ((X * 1e39, Y), {}, r"inputs: hold \d\.\d+e\+39, which float32 has no number for"),
        ((X, X * 1e39), {"group": Y}, "targets: hold"),
        (({"a": X[:, 0], "y": Y},), {"inputs": ("a", "y")}, "inputs: 'y' is the target"),
        (({"a": X[:, 0], "y": Y},), {"inputs": ("a", "a")}, "inputs: names a column twice: a, a"),
        ((np.zeros((60, 9, 8, 3), np.uint8), Y), {}, r"inputs: have rows of shape \[9, 8, 3\]"),
        ((Labelled(-1),), {"target": "label"}, r"rows without a label \(-1\)"),
        ((Labelled(-1, np.array),), {"target": "label"}, r"rows without a label \(-1\)"),
        ((Labelled(-1, torch.tensor),), {"target": "label"}, r"rows without a label \(-1\)"),
        ((X, labels("1.0", "1")), {}, r"'1' and '1\.0': use one spelling"),
        ((X, labels("New\u00a0York", "New York")), {}, r"'New York' and 'New\\xa0York'"),
        ((X, labels("\ufeffa", "a")), {}, r"'a' and '\\ufeffa'"),
        ((X, 2.0**60 + np.arange(60) // 5), {}, "target: contains 1152921504606846976, a float of"),
        (({"a": ["1_0", *"123456" * 9, *"12345"], "y": Y},), {}, "row 1 contains '1_0'"),
        (([Image.new("F", (8, 8))] * 60, Y), {}, "x: holds an image of mode F: 32-bit"),
        (
            ([Image.new("L", (8, 8)), *[Image.new("RGB", (8, 8))] * 59], Y),
            {},
            r"images have shapes \[\[1, 8, 8\], \[3, 8, 8\]\]",
        ),
    ],
)
def test_what_would_be_read_otherwise_is_refused(data: Any, fields: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(*data, **fields)


def test_an_index_and_a_missing_header_are_refused(tmp_path: Path) -> None:
    index = table(tmp_path / "index.csv", ",a,b,y", lambda n: f"{n},")
    with pytest.raises(ConfigError, match=r"inputs: column '' has no name.*index=False"):
        build(index)
    assert build(index, inputs=("a", "b")).spec.x_shape == (2,)
    (tmp_path / "bare.csv").write_text("".join(f"{n / 3},{n % 7},{n // 5}\n" for n in range(60)))
    with pytest.raises(ConfigError, match="begins with a row of numbers: its first line"):
        build(tmp_path / "bare.csv")
    numbered = table(tmp_path / "numbered.csv", "0,1,2")
    assert build(numbered, target="2").spec.x_shape == (2,)
    np.savez(tmp_path / "objects.npz", x=X, y=Y.astype(object))
    with pytest.raises(ConfigError, match=r"contains objects.*astype\(str\)"):
        build(tmp_path / "objects.npz")


def test_commas_in_names_and_named_fields_are_read(tmp_path: Path) -> None:
    path = table(tmp_path / "marks.csv", 'a;"b, in m";y', mark=";")
    assert build(path).spec.x_shape == (2,)
    rows = np.zeros(60, [("x", "f4", 4), ("y", "U3")])
    rows["x"], rows["y"] = X, Y
    np.save(tmp_path / "rows.npy", rows)
    expected = build(X.astype(np.float32), Y).sample(KEY, 2)
    for data in (rows, tmp_path / "rows.npy"):
        assert torch.equal(build(data).sample(KEY, 2).support.x, expected.support.x)


def test_spaces_around_labels_do_not_count() -> None:
    spaced = [f" {name}" if n % 2 else name for n, name in enumerate(Y)]
    assert torch.equal(build(X, spaced).sample(KEY, 2).query.x, build(X, Y).sample(KEY, 2).query.x)


def test_images_in_memory_are_read_as_those_in_folders() -> None:
    colour = Image.new("RGB", (8, 8), (255, 0, 153))
    palette, clear = colour.convert("P"), Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    deep = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    for image, expected in (
        (palette, (1.0, 0.0, 153 / 255)),
        (clear, (1.0, 1.0, 1.0)),
        (Image.new("1", (8, 8), 1), (1.0,)),
        (deep, (1.0,)),
        (Image.new("HSV", (8, 8), (255, 0, 153)), (1.0, 0.0, 153 / 255)),
    ):
        x = build([image] * 60, Y).sample(KEY, 1).support.x[0, 0, :, 0, 0]
        assert x.tolist() == pytest.approx(expected, abs=0.02)


def test_what_a_type_cannot_resolve_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    seconds = np.c_[X[:, 0], 2.0**40 + np.arange(60)]
    build(seconds, Y)
    assert "inputs of column 2 vary by less than float32 resolves" in caplog.text
    caplog.clear()
    build(GENERATOR.random((60, 9, 8, 3)), Y)
    assert "have rows of shape [9, 8, 3], but images must be [channels, H, W]" in caplog.text


def test_labels_of_a_column_without_use_may_be_missing() -> None:
    task = build(Labelled(0, unused=-1), target="label", inputs=("x",))
    assert task.spec.x_shape == (4,)


def test_a_gap_does_not_hide_a_column_of_text() -> None:
    columns = {"a": np.arange(60.0), "b": np.array(["x"] * 60), "y": Y}
    columns["a"][7] = np.nan
    with pytest.raises(ConfigError) as error:
        build(columns)
    (_, gap), (_, text) = error.value.problems
    assert "'a' is not finite in rows 8" in gap and "'b' must contain numbers" in text


def test_values_of_several_axes_are_refused_instead_of_flattened() -> None:
    groups = np.arange(60) // 5
    assert build(X, np.eye(60)[:, :6], group=groups).spec.outputs == 6
    with pytest.raises(ConfigError, match=r"y: has shape \[60, 2, 3\]: regression targets must be"):
        build(X, np.zeros((60, 2, 3)), group=groups)


def test_minus_zero_is_no_group_of_its_own() -> None:
    group = np.where(np.arange(60) < 20, 0.5, np.where(np.arange(60) % 2 == 0, -0.0, 0.0))
    assert build(X, X[:, 0], group=group, fractions=(1, 0, 0)).groups == 2


def test_a_label_that_may_stand_for_none_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    build(X, labels("NA", "NA"))
    assert "the label 'NA' is a class or group as any other: remove its rows" in caplog.text


def test_texts_in_memory_have_a_hash_of_their_content() -> None:
    """An array of objects holds addresses, which differ from process to process."""
    one, two = (np.array([str(name) + mark for name in Y], dtype=object) for mark in ("", " "))
    again = np.array(["".join(list(name)) for name in Y], dtype=object)
    known = {Arrays(X, y, **SMALL).data_sha256 for y in (one, again)}
    assert len(known) == 1 and Arrays(X, two, **SMALL).data_sha256 not in known


def test_quotes_after_a_space_and_lone_values_of_an_archive(tmp_path: Path) -> None:
    rows = [f'{n / 2}, {n % 7}, "{Y[n]}, at sea"' for n in range(60)]
    (tmp_path / "spaced.csv").write_text("\r\n".join(["a, b, y", *rows]))
    assert read_columns(tmp_path / "spaced.csv", "path")["y"][7] == "c01, at sea"
    np.savez(tmp_path / "rows.npz", x=X, y=Y, version=np.array(3))
    with pytest.raises(ConfigError, match="contains 'version', a single value"):
        build(tmp_path / "rows.npz")


def test_rows_of_a_path_have_the_hash_of_their_file(tmp_path: Path) -> None:
    held = Arrays(X, Y, **SMALL)
    np.savez(tmp_path / "rows.npz", x=X + 1, y=Y)
    other = Arrays(**{**held.model_dump(), "path": str(tmp_path / "rows.npz")}).build()
    assert other.data_sha256 == Arrays(X + 1, Y, **SMALL).data_sha256 != held.data_sha256


def test_shares_show_in_what_they_differ() -> None:
    for kind in (Arrays, ImageFolder):
        for shares, words in (
            ((0.6, 0.2, 0.20001), "sum 1 .got 0.6, 0.2, 0.20001 with sum 1.00001"),
            ((1.2, -0.2, 0.0), "numbers >= 0 with sum 1 .got 1.2, -0.2, 0 with sum 1"),
        ):
            with pytest.raises(ValueError, match=words):
                kind(path="rows", fractions=shares)  # type: ignore[operator]


def test_a_gap_is_of_the_column_that_has_it(tmp_path: Path) -> None:
    rows = [f"{row}.5,{'' if row == 7 else row // 5},{row // 5}" for row in range(60)]
    for header, words in (
        ("a,patient,y", r"^group: is empty in row 8: remove such rows"),
        ("a,y,patient", r"^target: column 'y' must contain numbers \(row 8"),
    ):
        (tmp_path / "rows.csv").write_text("\n".join([header, *rows]))
        with pytest.raises(ConfigError, match=words):
            build(path=tmp_path / "rows.csv", group="patient")


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ("2024-05-01", r"\(row 1 contains '2024-05-01'\): replace dates and times with numbers"),
        ("01.05.2024 8:00", "replace dates and times with numbers, such as hours since the first"),
        ("12:30", r"\(row 1 contains '12:30'\): replace dates and times with numbers"),
        (np.datetime64("2024-05-01"), r"\(got datetime64\[D\]; replace dates and times with"),
        ("1.5-2", "remove the column, or replace it with numbers, such as 0 and 1"),
    ],
)
def test_dates_are_refused_with_a_hint(first: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=f"'when' must contain numbers .*{why}"):
        build({"when": [first] * 60, "y": labels("a", "b")})
