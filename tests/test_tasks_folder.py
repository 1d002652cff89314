"""A folder of one's own images: every image is used, and everything wrong is named."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import KEY, equal
from PIL import Image
from pydantic import ValidationError

from metalearn.errors import ConfigError, DataError
from metalearn.tasks import images, store
from metalearn.tasks.folders import decode
from metalearn.tasks.image_folder import ImageFolder

COUNTS = {
    "ant": 3,
    "bee": 5,
    "cat": 4,
    "dog": 9,
    "elk": 3,
    "fox": 3,
    "gnu": 3,
    "hen": 3,
    "ibis": 3,
    "jay": 3,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten classes of grey PNGs; the grey of image i of class c is 20 c + i."""
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    root = tmp_path / "animals"
    for number, (name, count) in enumerate(COUNTS.items()):
        (root / name).mkdir(parents=True)
        for image in range(count):
            Image.new("L", (6 + image, 8), 20 * number + image).save(root / name / f"{image}.png")
    (root / "ant" / ".hidden").write_text("passed over")
    (root / "README.txt").write_text("not a class")
    return root


def task_of(folder: Path, **options: object) -> ImageFolder:
    given_options = {
        "path": str(folder),
        "channels": 1,
        "size": 5,
        "ways": 2,
        "shots": 1,
        "queries": 2,
        **options,
    }
    return ImageFolder.model_validate(given_options)


def greys(x: torch.Tensor) -> torch.Tensor:
    """The one grey of each image, 0..255."""
    pixels = (x * 255).round().long().flatten(-3)
    assert torch.equal(pixels.amin(-1), pixels.amax(-1))
    return pixels[..., 0]


def test_a_folder_gives_every_image_of_its_classes_and_no_other(folder: Path) -> None:
    sources = {split: task_of(folder).build(split) for split in images.SPLITS}
    assert [sources[split].spec.num_classes for split in images.SPLITS] == [6, 2, 2]
    assert sources["train"].spec.x_shape == (1, 5, 5)
    assert sources["train"].facts == {"split_seed": 0}
    names = task_of(folder).split(tuple(COUNTS), 0)
    every: list[int] = []
    for split, source in sources.items():
        wanted = sorted(
            20 * list(COUNTS).index(name) + image
            for name in names[split]
            for image in range(COUNTS[name])
        )
        assert sorted(set(greys(source.examples(KEY, 3000).x).tolist())) == wanted
        episode = source.sample(KEY, 300)
        drawn = torch.cat([greys(episode.support.x), greys(episode.query.x)], 1)
        assert sorted(set(drawn.flatten().tolist())) == wanted
        assert all(len(set(row)) == len(row) for row in drawn.tolist())
        order = [list(COUNTS).index(name) for name in names[split]]
        ids = episode.info["class_ids"].gather(1, episode.query.y)
        assert torch.equal(torch.tensor(order)[ids], greys(episode.query.x) // 20)
        every += wanted
    assert len(every) == len(set(every)) == sum(COUNTS.values())


def test_split_seed_and_its_record(folder: Path) -> None:
    task = task_of(folder)
    names = tuple(COUNTS)
    assert task.resolve(3).split_seed == 3
    assert task_of(folder, split_seed=1).resolve(3).split_seed == 1
    assert task.split(names, 3) == task.split(names, 3) != task.split(names, 4)
    assert task.build("test", seed=3).facts["split_seed"] == 3
    assert sorted(name for part in task.split(names, 3).values() for name in part) == list(names)


def test_a_split_says_its_classes_and_its_rule(folder: Path, tmp_path: Path) -> None:
    names = task_of(folder).split(tuple(COUNTS), 3)
    order = "in an order drawn with split_seed 3"
    for split in images.SPLITS:
        source = task_of(folder, split_seed=3).build(split)
        assert list(source.class_names) == names[split]
        assert source.split_rule.startswith("by fractions ") and source.split_rule.endswith(order)
    few = min(COUNTS, key=lambda name: COUNTS[name])
    parts = {"train": [n for n in COUNTS if n not in names["test"]], "test": names["test"]}
    file = tmp_path / "parts.json"
    file.write_text(json.dumps(parts))
    source = task_of(folder, split_file=str(file)).build("test")
    assert list(source.class_names) == sorted(names["test"])
    assert source.split_rule.startswith("by the file parts.json; a tenth of those of training is ")
    same = {"same_classes": True, "shots": 1, "queries": 1, "min_images": COUNTS[few] // 2}
    source = task_of(folder, **same).build("train")
    assert source.split_rule.startswith("images of each class by fractions ")
    assert set(source.class_names) <= set(COUNTS)


@settings(max_examples=50, deadline=None)
@given(
    classes=st.integers(2, 60),
    train=st.integers(1, 10),
    valid=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_splits_by_fraction_lose_and_repeat_nothing(
    classes: int, train: int, valid: int, seed: int
) -> None:
    names = tuple(f"c{number:02}" for number in range(classes))
    total = train + valid + 3
    shares = (train / total, valid / total, 3 / total)
    parts = ImageFolder(path="x", fractions=shares).split(names, seed)
    assert sorted(parts["train"] + parts["valid"] + parts["test"]) == list(names)
    assert all(part == sorted(part) for part in parts.values())
    assert abs(len(parts["test"]) - shares[2] * classes) <= 1
    if len(parts["train"]) > 1:
        # without validation classes a tenth of the training classes is held out
        assert parts["valid"]


def test_split_by_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["fox", "ant", "bee", "cat"], "test": ["dog", "elk"]}))
    task = task_of(folder, split_file=str(path))
    assert [len(task.split(tuple(COUNTS), 0)[split]) for split in images.SPLITS] == [3, 1, 2]
    assert set(greys(task.build("test").examples(KEY, 500).x).tolist()) == set(range(60, 69)) | {
        80,
        81,
        82,
    }
    wrong = {
        "train": ["ant", "unicorn"],
        "vali": ["bee"],
        "test": ["ant", "griffin"],
        "valid": "cat",
    }
    path.write_text(json.dumps(wrong))
    with pytest.raises(DataError) as caught:
        task.build()
    for word in (
        "unicorn",
        "griffin",
        "'vali' is not a split; did you mean 'valid'",
        "'ant' is in 'train'",
        "not a list",
    ):
        assert word in str(caught.value)
    for content in ("[1]", "{"):
        path.write_text(content)
        with pytest.raises(DataError, match=r"split\.json"):
            task.build()
    with pytest.raises(DataError, match=r"nowhere\.json"):
        task_of(folder, split_file="nowhere.json").build()


def test_decoding_is_cached_until_a_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = task_of(folder).build()
    decode_images = decode.decode_images
    monkeypatch.setattr(decode, "decode_images", lambda *_: pytest.fail("decoded again"))
    assert equal(task_of(folder).build().sample(KEY, 3), first.sample(KEY, 3))
    assert task_of(folder).build().data_sha256 == first.data_sha256
    monkeypatch.setattr(decode, "decode_images", decode_images)
    Image.new("L", (7, 7), 255).save(folder / "ant" / "0.png")
    os.utime(folder / "ant" / "0.png", ns=(1, 1))
    assert task_of(folder).build().data_sha256 != first.data_sha256


def test_a_cache_that_cannot_be_written_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store, "write_npz", full)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert task_of(folder).build().spec.num_classes == 6
    assert any("disk full" in str(warning.message) for warning in seen)


def test_colours_papers_and_depths(folder: Path) -> None:
    place = folder / "ant"
    Image.new("RGB", (9, 9), (10, 20, 30)).save(place / "0.png")
    # transparent: white paper, not black
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(place / "1.png")
    Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16)).save(place / "2.png")
    pool = {
        file.name: decode.decode_image(file, 4, 3)[:, 0, 0].tolist()
        for file in sorted(place.glob("*.png"))
    }
    assert pool == {"0.png": [10, 20, 30], "1.png": [255] * 3, "2.png": [155] * 3}
    tall = Image.new("L", (4, 8), 0)
    tall.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    tall.save(place / "3.png", exif=exif)
    assert decode.decode_image(place / "3.png", 8, 1)[0, -1, -1] > 100
    bright = task_of(folder, invert=True).build("test")
    plain = task_of(folder).build("test")
    assert torch.allclose(
        bright.sample(KEY, 2).query.x, 1 - plain.sample(KEY, 2).query.x, atol=1e-6
    )
    assert (ImageFolder(path="x").pixels, ImageFolder(path="x", channels=1).pixels) == (84, 28)
    assert task_of(folder, channels=3, size=None, queries=1).build().spec.x_shape == (3, 84, 84)


def test_unreadable_images_are_all_named_at_once(folder: Path) -> None:
    (folder / "bee" / "9.png").write_bytes(b"not an image")
    (folder / "cat" / "notes.txt").write_text("hello")
    content = (folder / "dog" / "1.png").read_bytes()
    (folder / "dog" / "1.png").write_bytes(content[:40])
    (folder / "elk" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError) as caught:
        task_of(folder).build()
    named = [Path(place).name for place, _ in caught.value.problems]
    assert named == ["9.png", "notes.txt", "1.png", "gone.png"]
    assert not (store.cache_root() / "image_folder").exists()


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    root = tmp_path / "own"
    with pytest.raises(DataError, match="not a directory"):
        task_of(root).build()
    (root / "only").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        task_of(root).build()
    assert "contains 1 class folders" in str(caught.value)
    assert "without images: only" in str(caught.value)
    (root / "second" / "inner" / "third").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no folders below: .*third"):
        task_of(root).build()


def test_tasks_too_large_for_a_folder_are_refused_before_decoding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "decode_images", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ConfigError) as caught:
        task_of(folder, ways=3, queries=3).build("test")
    assert [place for place, _ in caught.value.problems] == ["ways", "shots"]
    assert "has 3" in str(caught.value)
    for wrong in (
        {"fractions": (0.5, 0.5, 0.5)},
        {"fractions": (1.2, -0.2, 0.0)},
        {"channels": 2},
        {"size": 3},
    ):
        with pytest.raises(ValidationError):
            task_of(folder, **wrong)
