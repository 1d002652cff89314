"""The embedded data set: rendered once for this file, in a folder of its own."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import metalearn.rng as rng
from metalearn.errors import ConfigError, DataError
from metalearn.tasks import glyphs, render, store
from metalearn.tasks.glyphs import Glyphs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def rendered(folder: Path) -> Iterator[render.Rendered]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_DATA", str(folder))
        yield glyphs.load(0)


@pytest.fixture
def cached(rendered: render.Rendered, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder with the rendering in it, and rendering again forbidden."""

    def forbidden(seed: int) -> render.Rendered:
        raise AssertionError("rendered although the file is there")

    monkeypatch.setenv("METALEARN_DATA", str(folder))
    monkeypatch.setattr(render, "render", forbidden)
    return folder


def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering of eight classes a split, for tests of what happens around it."""
    letters = {"train": "ABCDEGHM", "valid": "אבגדהלמש", "test": "ΘΞΨΩΣαβθ"}
    every = [(letter, split) for split, some in letters.items() for letter in some]
    images = np.stack(
        [render.drawings(letter, ["DejaVuSans", "DejaVuSans-Bold"], 0) for letter, _ in every]
    )
    few = render.Rendered(
        images, [letter for letter, _ in every], [render.SPLITS[split][0] for _, split in every]
    )
    monkeypatch.setattr(render, "render", lambda seed: few)


def test_counts(rendered: render.Rendered) -> None:
    classes = {
        split: sum(script in scripts for script in rendered.scripts)
        for split, scripts in render.SPLITS.items()
    }
    assert rendered.images.shape == (len(rendered.letters), 20, 28, 28)
    assert rendered.images.dtype == np.uint8
    assert len(rendered.letters) >= 1000
    assert len(set(rendered.scripts)) >= 12
    assert sum(classes.values()) == len(rendered.letters) == len(set(rendered.letters))
    assert classes["train"] >= 600 and classes["valid"] >= 60 and classes["test"] >= 60, classes


def test_splits_share_no_script_and_no_shape(rendered: render.Rendered) -> None:
    scripts = [script for some in render.SPLITS.values() for script in some]
    assert len(scripts) == len(set(scripts))
    for letter, script in zip(rendered.letters, rendered.scripts, strict=True):
        assert render.script_of(letter) == script
    faces = render.faces_of_letters()
    distances = render.nearest_faces({letter: faces[letter] for letter in rendered.letters})
    split = np.array([render.split_of(letter) for letter in rendered.letters])
    assert distances[split[:, None] != split[None, :]].min() >= render.APART
    assert distances[~np.eye(len(split), dtype=bool)].min() >= render.DISTINCT


def test_letters_that_coincide_are_one_class(rendered: render.Rendered) -> None:
    assert "A" in rendered.letters  # Latin; Greek Alpha and Cyrillic A look the same
    assert "\u0391" not in rendered.letters and "\u0410" not in rendered.letters
    assert set("BDEFKQRSXbdegkmnrt") <= set(rendered.letters)  # plainly different letters stay


def test_every_letter_is_drawn_by_two_faces(rendered: render.Rendered) -> None:
    faces = render.faces_of_letters()
    assert min(len(set(faces[letter])) for letter in rendered.letters) >= 2
    assert "LastResort" not in " ".join(
        face for letter in rendered.letters for face in faces[letter]
    )


def test_no_drawing_is_empty_cut_off_or_solid(rendered: render.Rendered) -> None:
    images = rendered.images
    ink = (images > 127).mean((2, 3))
    assert ink.min() > 0.01 and ink.max() < 0.5, (ink.min(), ink.max())
    assert images.max((2, 3)).min() > 127  # bright
    rim = np.concatenate([images[:, :, [0, -1]].reshape(-1), images[:, :, :, [0, -1]].reshape(-1)])
    assert rim.max() < 128 and (rim > 0).mean() < 1e-3


def test_no_two_drawings_are_equal(rendered: render.Rendered) -> None:
    flat = rendered.images.reshape(-1, 784)
    assert len({row.tobytes() for row in flat}) == len(flat)
    differences = np.abs(rendered.images[:, 1:].astype(int) - rendered.images[:, :1]).mean((2, 3))
    assert differences.min() > 1.0


def test_no_two_classes_are_equal(rendered: render.Rendered) -> None:
    mean = rendered.images.mean(1).reshape(len(rendered.letters), -1)
    squares = (mean**2).sum(1)
    distances = squares[:, None] + squares[None, :] - 2 * mean @ mean.T
    assert distances[~np.eye(len(mean), dtype=bool)].min() > 784.0  # more than a grey level a pixel


def test_drawings_are_a_function_of_letter_and_seed(rendered: render.Rendered) -> None:
    faces = render.faces_of_letters()
    for letter in ("A", "Ж", "ᐊ", "ⴼ"):
        place = rendered.letters.index(letter)
        np.testing.assert_array_equal(
            render.drawings(letter, faces[letter], 0), rendered.images[place]
        )
        assert (render.drawings(letter, faces[letter], 1) != rendered.images[place]).any()
        render.upright.cache_clear()
        np.testing.assert_array_equal(
            render.drawings(letter, faces[letter], 0), rendered.images[place]
        )


def test_letters_stand_upright() -> None:
    drawn = render.drawings("L", ["DejaVuSans", "DejaVuSans-Bold"], 0).astype(float).mean(0)
    assert drawn[14:].sum() > drawn[:14].sum() and drawn[:, :14].sum() > drawn[:, 14:].sum()


def test_nearest_pixels_are_neither_chance_nor_perfect(rendered: render.Rendered) -> None:
    """5-way 1-shot accuracy of the nearest image on test scripts: as hard as handwriting."""
    rows = [i for i, script in enumerate(rendered.scripts) if script in render.SPLITS["test"]]
    pool = rendered.images[rows].reshape(len(rows), 20, -1) / 255.0
    chooser, right = np.random.default_rng(0), []
    for _ in range(300):
        task = pool[chooser.choice(len(rows), 5, replace=False)][
            :, chooser.choice(20, 4, replace=False)
        ]
        gaps = ((task[:, 1:, None] - task[None, None, :, 0]) ** 2).sum(-1)
        right.append((gaps.argmin(-1) == np.arange(5)[:, None]).mean())
    assert 0.40 < np.mean(right) < 0.75, np.mean(right)


def test_build_reads_the_file(cached: Path) -> None:
    task = Glyphs(ways=5, shots=1, queries=3)
    train, test = task.build(), task.build(split="test", dtype=torch.float64)
    assert train.spec.num_classes > test.spec.num_classes >= 60
    assert train.data_sha256 == test.data_sha256 != ""
    episode = test.sample(rng.fold_in(0, "glyphs test"), 2)
    assert episode.support.x.shape == (2, 5, 1, 28, 28)
    assert episode.query.x.shape == (2, 15, 1, 28, 28)
    assert episode.support.x.dtype == torch.float64
    assert episode.query.x.min() == 0 and 0.5 < episode.query.x.max() <= 1
    assert episode.query.x.mean() < 0.3  # ink bright, paper dark
    assert [path.name for path in cached.iterdir()] == [glyphs.file_name(0)]


def test_a_seed_is_a_rendering(cached: Path) -> None:
    del cached
    assert glyphs.file_name(0) != glyphs.file_name(1)
    with pytest.raises(AssertionError, match="rendered although"):
        glyphs.load(1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_file_is_rendered_again_aloud(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    _few(monkeypatch)
    task, path = Glyphs(queries=1), tmp_path / glyphs.file_name(0)
    sound = task.build()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "other":
        store.write_npz(path, {"images": np.zeros((2, 3))})
    else:
        path.write_bytes(bytes(content) if damage == "flipped" else bytes(content[:1000]))
    with pytest.warns(UserWarning, match="rendering glyphs again"):
        assert task.build().data_sha256 == sound.data_sha256
    # in silence: pytest makes a warning an error
    assert task.build().data_sha256 == sound.data_sha256


def test_a_read_only_data_folder_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, home = tmp_path / "data", tmp_path / "home"
    data.mkdir(mode=0o555)
    monkeypatch.setenv("METALEARN_DATA", str(data))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    _few(monkeypatch)
    Glyphs(queries=1).build()
    assert not list(data.iterdir())
    assert [path.name for path in home.rglob("*.npz")] == [glyphs.file_name(0)]


def test_a_disk_that_takes_nothing_does_not_stop_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, arrays: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    monkeypatch.setattr(store, "write_npz", full)
    _few(monkeypatch)
    with pytest.warns(UserWarning, match="could not be stored"):
        assert Glyphs(queries=1).build().spec.num_classes == 8


def test_errors_come_all_at_once(cached: Path) -> None:
    del cached
    with pytest.raises(ConfigError) as caught:
        Glyphs(ways=900, shots=10, queries=11).build(split="test")
    assert [place for place, _ in caught.value.problems] == ["ways", "shots"]
    assert "at most 20" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Glyphs(shots=20, queries=1).build(split="tset")
    assert [place for place, _ in caught.value.problems] == ["split", "shots"]
    assert Glyphs(shots=5, queries=15).build().spec.shots == 5


def test_without_matplotlib_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(package: str) -> str:
        if package == "matplotlib":
            raise metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(DataError, match="pip install matplotlib") as caught:
        Glyphs(shots=20, queries=20).build()
    assert len(caught.value.problems) == 2


def test_matplotlib_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="pip install matplotlib"):
        render.faces_of_letters()
