"""Layouts of image folders, their splits, and what of them is silently wrong elsewhere."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import KEY
from PIL import Image

from metalearn.errors import ConfigError, DataError
from metalearn.tasks.image_folder import ImageFolder, image_files


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path_factory.mktemp("cache")))


def fill(root: Path, names: Iterable[str], count: int = 4, grey: int = 0, end: str = "png") -> Path:
    """Images of one grey each: `grey` + 8 a class, + 1 an image."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("L", (8, 8), grey + 8 * place + number)
            image.save(root / name / f"{number}.{end}")
    return root


def folder(path: Path, **options: Any) -> ImageFolder:
    plain = {"ways": 2, "shots": 1, "queries": 1, "size": 8, "channels": 1}
    return ImageFolder.model_validate({"path": str(path), **plain, **options})


def greys(source: Any) -> set[int]:
    x = source.examples(KEY, 600).x
    return set((x * 255).round().long().flatten(1)[:, 0].tolist())


@pytest.mark.parametrize("valid", ["val", "valid", "Validation"])
def test_split_folders_are_the_split(tmp_path: Path, valid: str) -> None:
    for place, split in enumerate(("train", valid, "test")):
        fill(tmp_path / "mini" / split, [f"{split}{n}" for n in range(3)], grey=60 * place)
    for place, split in enumerate(("train", "valid", "test")):
        source = folder(tmp_path / "mini").build(split)
        assert source.spec.num_classes == 3
        assert greys(source) == {60 * place + 8 * c + i for c in range(3) for i in range(4)}


def test_split_folders_beside_others_are_refused(tmp_path: Path) -> None:
    for name in ("train", "test", "extra"):
        fill(tmp_path / name, [f"{name}{n}" for n in range(3)])
    with pytest.raises(DataError, match=r"split folders .test, train.*extra"):
        folder(tmp_path).build()


def test_the_same_classes_in_every_split_only_if_asked(tmp_path: Path) -> None:
    for place, split in enumerate(("train", "val", "test")):
        fill(tmp_path / split, ["cat", "dog"], grey=60 * place)
    with pytest.raises(DataError, match=r"cat, dog.*same_classes"):
        folder(tmp_path).build()
    found = {s: folder(tmp_path, same_classes=True).build(s) for s in ("train", "valid", "test")}
    assert greys(found["test"]) == {120 + 8 * c + i for c in range(2) for i in range(4)}
    assert "same_classes" in found["train"].facts


def test_same_classes_split_the_images_of_each_class(tmp_path: Path) -> None:
    fill(tmp_path, ["cat", "dog", "eel"], count=8)
    options = {"same_classes": True, "fractions": (0.5, 0.25, 0.25)}
    parts = [greys(folder(tmp_path, **options).build(s)) for s in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [12, 6, 6] and len(set.union(*parts)) == 24
    with pytest.raises(ConfigError, match="omit one of the two"):
        folder(tmp_path, same_classes=True, split_file="x.json").build()


def test_two_levels(tmp_path: Path) -> None:
    for place, group in enumerate(("latin", "greek")):
        fill(tmp_path / group, ["a", "b", "c"], grey=40 * place)
    names = [f"{g}/{c}" for g in ("greek", "latin") for c in "abc"]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["latin"], "test": ["greek/a", "greek/b"]}))
    task = folder(tmp_path, split_file=str(split))
    parts = task.split(tuple(names), 0)
    assert parts["test"] == names[:2] and sorted(parts["train"] + parts["valid"]) == names[3:]
    assert greys(task.build("test")) == {40 + 8 * c + i for c in range(2) for i in range(4)}
    (tmp_path / "greek" / "x.png").write_bytes((tmp_path / "greek" / "a" / "0.png").read_bytes())
    with pytest.raises(DataError, match=r"not both: .*greek"):
        task.build()


def test_a_table_of_names_and_labels(tmp_path: Path) -> None:
    fill(tmp_path / "images", ["part1", "part2"], count=6)
    rows = ["filename,label,split"]
    for number in range(6):
        for part in (1, 2):
            split = ("train", "val", "test")[number // 2]
            rows.append(f"part{part}/{number}.png,{10 * part + number % 6},{split}")
    table = tmp_path / "labels.csv"
    table.write_text("\ufeff" + "\n".join(rows), "utf-8")
    options = {"labels": str(table), "queries": 0}
    assert greys(folder(tmp_path / "images", **options).build("test")) == {4, 5, 12, 13}
    table.write_text("\n".join([*rows, "part1/9.png,3,train", "part1/0.png,4,train"]))
    with pytest.raises(DataError) as caught:
        folder(tmp_path / "images", **options).build()
    assert "part1/9.png" in str(caught.value) and "twice: part1/0.png" in str(caught.value)
    table.write_text("name,kind\na,b")
    with pytest.raises(ConfigError, match="no column called label"):
        folder(tmp_path / "images", **options).build()
    table.write_text("\n".join([*rows[:2], rows[2].replace("train", "dev2")]))
    with pytest.raises(ConfigError, match="'dev2'"):
        folder(tmp_path / "images", **options).build()


def test_a_table_may_name_files_as_other_systems_do(tmp_path: Path) -> None:
    root, table = tmp_path / "images", tmp_path / "labels.csv"
    fill(root, ["a", "b", "c"])
    task = folder(root, labels=str(table), queries=0, fractions=(1, 0, 0))
    for form in ("{c}\\{n}.png", "./{c}/{n}.png", f"{root.absolute().as_posix()}/{{c}}/{{n}}.png"):
        rows = [f"{form.format(c=c, n=n)},{c}" for c in "abc" for n in range(4)]
        table.write_text("\n".join(["file,label", *rows]))
        assert len(greys(task.build())) == 8
    table.write_text("\n".join(["file,label", *rows, f"{form.format(c='a', n=9)},a"]))
    with pytest.raises(DataError, match=r"names files that are not in .*images: a/9\.png"):
        task.build()


def test_images_of_no_class_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = fill(tmp_path / "loose", [f"c{n}" for n in range(6)])
    (path / "notes.txt").write_text("of the pictures")
    folder(path).build()
    assert not caplog.messages
    Image.new("L", (8, 8), 250).save(path / "stray.png")
    assert 250 not in greys(folder(path).build())
    assert "have no class and are skipped: stray.png" in caplog.text


def test_what_archives_add_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b", "c"])
    (tmp_path / "__MACOSX" / "a").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "a" / "._0.png").write_bytes(b"")
    assert len(greys(folder(tmp_path, fractions=(1, 0, 0)).build())) == 8
    assert len(image_files(tmp_path)) == 12


def test_missing_labels_of_a_table_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, ["a", "b"], count=2)
    columns = {
        "file": np.array(["a/0.png", "a/1.png", "b/0.png"]),
        "label": np.array(["a", None, "b"], dtype=object),
    }
    monkeypatch.setattr("metalearn.tasks.folders.listing.read_columns", lambda *_: columns)
    with pytest.raises(DataError, match=r"has no label for a/1\.png"):
        folder(tmp_path, labels="rows.parquet").build()


def test_splits_of_a_file_are_named_as_folders_are(tmp_path: Path) -> None:
    fill(tmp_path / "photos", list("abcdef"))
    file = tmp_path / "split.json"
    content = {"Train": ["a", "b"], "val": ["c", "d"], "testing": ["e", "f"]}
    file.write_text(json.dumps(content))
    task = folder(tmp_path / "photos", split_file=str(file))
    assert greys(task.build("valid")) == {16 + 8 * c + i for c in range(2) for i in range(4)}
    file.write_text(json.dumps({**content, "valid": ["a"]}))
    with pytest.raises(DataError, match="contains the split 'valid' twice"):
        task.build()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_split_files_in_any_form(tmp_path: Path, form: Any, encoding: str) -> None:
    names = ["café", "naïve", "über", "señor", "a", "b"]
    other = "NFD" if form == "NFC" else "NFC"
    fill(tmp_path / "photos", [unicodedata.normalize(other, name) for name in names])
    own = [unicodedata.normalize(form, name) for name in names]
    content = {"train": own[:2], "valid": own[2:4], "test": own[4:]}
    file = tmp_path / "split.json"
    file.write_text(json.dumps(content, ensure_ascii=False), encoding)
    source = folder(tmp_path / "photos", split_file=str(file)).build("valid")
    assert greys(source) == {16 + 8 * c + i for c in range(2) for i in range(4)}


def test_folders_alike_but_for_their_unicode_form_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")])
    if len(list(tmp_path.iterdir())) == 2:  # a file system that keeps both
        with pytest.raises(DataError, match="Unicode"):
            folder(tmp_path).build()


def test_small_classes_are_left_out_if_asked(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b", "c"], count=4)
    fill(tmp_path, ["d"], count=1, grey=99)
    options = {"fractions": (0.0, 0.0, 1.0), "queries": 2}
    with pytest.raises(ConfigError, match="class 'd'"):
        folder(tmp_path, **options).build("test")
    source = folder(tmp_path, min_images=3, **options).build("test")
    assert source.spec.num_classes == 3 and 99 not in greys(source)


@pytest.mark.parametrize("end", ["bmp", "ppm"])
def test_the_cache_knows_the_contents(tmp_path: Path, end: str) -> None:
    found = []
    for grey, name in enumerate(("clean", "noisy")):
        root = fill(tmp_path / name, "abcdef", grey=100 * grey, end=end)
        for file in root.glob("*/*"):
            os.utime(file, (315532800, 315532800))
        found.append(folder(root, fractions=(0.4, 0.3, 0.3)).build())
    assert found[0].data_sha256 != found[1].data_sha256
    assert greys(found[0]) & greys(found[1]) == set()
    # a file replaced by one of the same size, under the same time
    file = tmp_path / "clean" / "a" / f"0.{end}"
    Image.new("L", (8, 8), 77).save(file)
    os.utime(file, (315532800, 315532800))
    assert folder(tmp_path / "clean", fractions=(0.4, 0.3, 0.3)).build().data_sha256 not in {
        one.data_sha256 for one in found
    }


def test_one_folder_of_class_folders_names_the_path(tmp_path: Path) -> None:
    fill(tmp_path / "images", "abc")
    with pytest.raises(DataError, match=f"set path to {tmp_path / 'images'}"):
        folder(tmp_path).build()


def test_too_few_classes_for_a_test_name_the_fractions(tmp_path: Path) -> None:
    fill(tmp_path, ["cat", "dog"])
    with pytest.raises(ConfigError, match=r"fractions \[0, 0, 1\] it has all 2"):
        folder(tmp_path).build("test")
    episode = folder(tmp_path, fractions=(0, 0, 1)).build("test").sample(KEY, 2)
    assert torch.isfinite(episode.query.x).all() and np.unique(episode.query.y).tolist() == [0, 1]


def test_equal_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = fill(tmp_path / "photos", [f"c{n}" for n in range(6)])
    folder(path).build()
    assert not caplog.messages
    content = (path / "c0" / "0.png").read_bytes()
    for copy in ("c0/copy.png", "c5/copy.png"):
        (path / copy).write_bytes(content)
    folder(path).build()
    folder(path).build("train")
    across, within = caplog.messages
    assert "equal images are in two classes" in across and "c5/copy.png" in across
    assert "equal images are in one class" in within and "c0/copy.png" in within


@pytest.mark.parametrize("pair", [("cat", "cat "), ("New York", "New\u00a0York"), ("1", "1.0")])
def test_class_folders_that_are_one_class_are_refused(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    fill(tmp_path, [*pair, "dog"])
    with pytest.raises(DataError, match=r"classes .* differ only in .*: use one name"):
        folder(tmp_path).build()


def test_images_of_several_frames_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, ["cat", "dog", "eel"], end="gif")
    options = {"fractions": (1, 0, 0)}
    folder(tmp_path, **options).build()
    assert "frames" not in caplog.text
    frames = [Image.new("L", (8, 8), shade) for shade in (1, 200)]
    frames[0].save(tmp_path / "cat" / "0.gif", save_all=True, append_images=frames[1:])
    folder(tmp_path, **options).build()
    assert "some images hold several frames, of which the first is used" in caplog.text


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", "abc")
    (tmp_path / "photos" / "in").mkdir(parents=True)
    for name in "abc":
        (tmp_path / "photos" / "in" / name).symlink_to(store / name)
    (tmp_path / "photos" / "in" / "round").symlink_to(tmp_path / "photos")
    assert len(image_files(tmp_path / "photos")) == 12
    table = tmp_path / "labels.csv"
    table.write_text(
        "\n".join(["file,label", *(f"in/{c}/{n}.png,{c}" for c in "abc" for n in "0123")])
    )
    source = folder(tmp_path / "photos", labels=str(table), fractions=(0, 0, 1)).build("test")
    assert len(greys(source)) == 12
