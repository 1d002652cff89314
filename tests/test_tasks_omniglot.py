"""Omniglot: splits, rotation conventions, conversion, and the store of its files."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import KEY, equal, upright
from PIL import Image

from metalearn.cli import data as data_commands
from metalearn.config.build import build
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError, DataError
from metalearn.tasks import images, omniglot, store
from metalearn.tasks.images import ImageSource
from metalearn.tasks.omniglot import Omniglot


@pytest.fixture
def synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared file of the right form with made-up pixels: class in two, drawing in one."""
    pool = np.zeros((1623, 20, 28, 28), dtype=np.uint8)
    pool[..., 0, 0] = 255
    pool[..., 9, 9] = (np.arange(1623) // 256)[:, None]
    pool[..., 9, 10] = (np.arange(1623) % 256)[:, None]
    pool[..., 9, 11] = np.arange(20)
    code = np.repeat(np.array([0, 1, 2], dtype=np.int8), [1028, 172, 423])
    store.write_npz(
        tmp_path / omniglot.FILE,
        {"images": pool, "is_evaluation": np.arange(1623) >= 964, "vinyals_split": code},
    )
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    return tmp_path


def rows_of(source: ImageSource) -> list[int]:
    """The file's row behind every class of an unturned synthetic source."""
    first = source._pool.rows.reshape(source.spec.num_classes, 20, 28, 28)[:, 0]
    return [
        int(high) * 256 + int(low)
        for high, low in zip(first[:, 9, 9], first[:, 9, 10], strict=True)
    ]


@pytest.mark.parametrize(
    ("scheme", "sizes"),
    [("vinyals", (1028, 172, 423)), ("lake", (868, 96, 659)), ("random", (1100, 100, 423))],
)
def test_splits_have_their_published_sizes_and_are_disjoint(
    synthetic: Path, scheme: str, sizes: tuple[int, ...]
) -> None:
    task = Omniglot(split_scheme=scheme, split_seed=3)
    sources = [task.build(split) for split in images.SPLITS]
    rows = [rows_of(source) for source in sources]
    assert (
        tuple(len(part) for part in rows)
        == tuple(source.spec.num_classes for source in sources)
        == sizes
    )
    assert sorted(rows[0] + rows[1] + rows[2]) == list(range(1623))
    if scheme == "lake":
        assert rows[2] == list(range(964, 1623))
    assert len({source.data_sha256 for source in sources}) == 1
    assert len(sources[0].data_sha256) == 64


@pytest.mark.parametrize("scheme", ["vinyals", "lake", "random"])
def test_training_can_draw_from_the_validation_classes_too(synthetic: Path, scheme: str) -> None:
    apart = Omniglot(split_scheme=scheme, split_seed=3)
    train, valid, test = (rows_of(apart.build(split)) for split in images.SPLITS)
    update = {"train_on_valid": True, "ways": len(train + valid)}
    source = apart.model_copy(update=update).build("train")
    assert rows_of(source) == sorted(train + valid) and source.facts["train_on_valid"] is True
    joined = apart.model_copy(update={"train_on_valid": True})
    assert [rows_of(joined.build(split)) for split in ("valid", "test")] == [valid, test]


def test_classes_seen_in_training_choose_nothing(synthetic: Path) -> None:
    task = {"source": "omniglot", "ways": 2, "train_on_valid": True}
    data: dict[str, Any] = {"task": task, "model": {"name": "conv4", "filters": 2}}
    method = {"name": "fine_tune", "tune": {"inner_lr": {"values": [0.1, 0.2]}}}
    chosen = {"checkpoint": "best", "headline_step": "tuned", "split": "valid"}
    run = {"validate": {"patience": 3}}
    choosing = {**data, "method": method, "run": run, "evaluate": chosen, "budget": {"trials": 2}}
    places = ["evaluate.checkpoint", "evaluate.split", "run.validate.patience"]
    mixed = {"source": "mixture", "sources": [task, {**task, "label": "more"}]}
    for wrong in (choosing, {**choosing, "task": mixed}):
        with pytest.raises(ConfigError) as error:
            build(parse(wrong).experiments[0], to_train=True)
        found = [place for place, _ in error.value.problems]
        assert found == [*places, "evaluate.headline_step", "method.tune"]
    fixed = {"checkpoint": "last", "headline_step": 0, "steps": [0, 1]}
    fine = {**data, "method": {"name": "fine_tune"}, "evaluate": fixed}
    build(parse(fine).experiments[0], to_train=True)


def test_the_random_split_follows_its_recorded_seed(synthetic: Path) -> None:
    task = Omniglot(split_scheme="random")
    assert task.resolve(4).split_seed == 4
    assert Omniglot(split_scheme="random", split_seed=0).resolve(4).split_seed == 0
    assert Omniglot().resolve(4).split_seed is None
    four = task.build("test", seed=4)
    assert four.facts == {"split_scheme": "random", "split_seed": 4}
    assert rows_of(four) == rows_of(task.resolve(4).build("test", seed=99))
    assert rows_of(four) != rows_of(task.build("test", seed=5))
    lake = Omniglot(split_scheme="lake")
    assert rows_of(lake.build("valid", seed=1)) == rows_of(lake.build("valid", seed=2))
    assert lake.build("valid", seed=2).facts["split_seed"] == omniglot.LAKE_SEED


def test_builds_seed_never_enters_an_episode(synthetic: Path) -> None:
    one, two = (Omniglot(ways=3).build("test", seed=seed).sample(KEY, 2) for seed in (0, 1))
    assert equal(one, two)


@pytest.mark.parametrize(
    ("rotations", "factors", "turned"),
    [
        ("none", (1, 1, 1), (False, False, False)),
        ("per_task", (1, 1, 1), (True, True, True)),
        ("per_task_train", (1, 1, 1), (True, False, False)),
        ("classes_train", (4, 1, 1), (True, False, False)),
        ("classes", (4, 4, 4), (True, True, True)),
    ],
)
def test_the_rotation_conventions(
    synthetic: Path, rotations: str, factors: tuple[int, ...], turned: tuple[bool, ...]
) -> None:
    for split, size, factor, turn in zip(
        images.SPLITS, (1028, 172, 423), factors, turned, strict=True
    ):
        source = Omniglot(rotations=rotations, queries=1).build(split)
        assert source.spec.num_classes == size * factor
        turns = upright(source.sample(KEY, 60).support.x)[1]
        assert bool((turns > 0).any()) == turn
        examples = source.examples(KEY, 200)
        assert int(examples.y.max()) < size * factor
        assert bool((upright(examples.x)[1] > 0).any()) == turn
        if (
            factor == 4
        ):  # a turn is part of the class, so a class of a task has one turn and the label tells it
            assert torch.equal(upright(examples.x)[1], examples.y // size)


def test_omniglot_says_everything_that_is_wrong_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        Omniglot(ways=424, shots=10, queries=11).build("test")
    assert [place for place, _ in caught.value.problems] == ["ways", "shots", "source"]
    text = str(caught.value)
    for part_of_it in (
        "424",
        "423",
        "21",
        "20",
        omniglot.FILE,
        str(tmp_path),
        "METALEARN_DATA",
        "data prepare omniglot",
    ):
        assert part_of_it in text
    with pytest.raises(ConfigError, match="valid: train, valid, test"):
        Omniglot().build("validation")
    monkeypatch.delenv("METALEARN_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=r"\.cache"):
        Omniglot().build()


def test_turned_classes_widen_the_limit_on_ways(synthetic: Path) -> None:
    assert Omniglot(ways=500, queries=1, rotations="classes").build("test").spec.ways == 500
    with pytest.raises(ConfigError, match="423 classes"):
        Omniglot(ways=500, queries=1, rotations="classes_train").build("test")


def test_a_damaged_prepared_file_is_named(synthetic: Path) -> None:
    path = synthetic / omniglot.FILE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=omniglot.FILE):
        Omniglot().build()
    store.write_npz(path, {"images": np.zeros((3, 20, 28, 28), dtype=np.uint8)})
    with pytest.raises(DataError, match="images"):
        Omniglot().build()
    np.savez(path, images=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=omniglot.FILE):
        Omniglot().build()


def test_verify_refuses_other_pixels(synthetic: Path) -> None:
    with pytest.raises(DataError, match="sha256"):
        data_commands.verify("omniglot")


def test_the_real_omniglot(data_root: Path) -> None:
    lines = data_commands.verify("omniglot")
    assert "1623 classes" in lines[0]
    assert any("prepared" in line for line in data_commands.lines())
    assert "already there" in data_commands.prepare("omniglot")[0]
    source = Omniglot(rotations="per_task").build("test")
    assert source.data_sha256 == omniglot.IMAGES_SHA256
    # ink is bright, paper dark
    assert abs(float(source.examples(KEY, 4000).x.mean()) - 0.0840) < 0.005
    codes = omniglot.load()["vinyals_split"]
    loaded = store.load_npz(data_root / omniglot.FILE)
    names = loaded["alphabets"][loaded["alphabet_index"]]
    wanted = [
        omniglot.vinyals_code(str(n), int(c))
        for n, c in zip(names, loaded["character"], strict=True)
    ]
    assert codes.tolist() == wanted


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def png(ink: np.ndarray) -> bytes:
    """A one-bit PNG as published: black ink on white paper."""
    content = io.BytesIO()
    Image.fromarray(np.where(ink, 0, 255).astype(np.uint8)).convert("1").save(content, "PNG")
    return content.getvalue()


def test_conversion_equals_the_prepared_pixels(data_root: Path, tmp_path: Path) -> None:
    if not (data_root / "omniglot105_bits.npz").exists():
        pytest.skip("omniglot105_bits.npz is not in METALEARN_DATA")
    with np.load(data_root / "omniglot105_bits.npz") as original:
        # an evaluation character, then two of one background alphabet, out of order
        rows = (1000, 3, 2)
        members: list[dict[str, bytes]] = [{}, {}]
        for row in rows:
            ink = np.unpackbits(original["bits"][row], axis=-1, count=105 * 105).reshape(
                20, 105, 105
            )
            side = int(original["is_evaluation"][row])
            alphabet = original["alphabets"][original["alphabet_index"][row]]
            split, character = ("background", "evaluation")[side], original["character"][row]
            folder = f"images_{split}/{alphabet}/character{character:02}"
            for drawer in (2, 1, *range(3, 21)):
                number = original["file_number"][row]
                members[side][f"{folder}/{number:04}_{drawer:02}.png"] = png(ink[drawer - 1])
    paths = [
        archive(tmp_path / name, content)
        for name, content in zip(("b.zip", "e.zip"), members, strict=True)
    ]
    found = omniglot.read_archives(*paths)
    prepared = store.load_npz(data_root / omniglot.FILE)
    assert [character.is_evaluation for character in found] == [False, False, True]
    for character, row in zip(found, (2, 3, 1000), strict=True):
        expected = (prepared["character"][row], prepared["file_number"][row])
        assert (character.character, character.file_number) == expected
        assert np.array_equal(omniglot.shrink(character.ink), prepared["images"][row])
    with pytest.raises(DataError, match="must be 964 and 659"):
        omniglot.convert(found)


def test_archives_that_lie_are_refused(tmp_path: Path) -> None:
    good = archive(
        tmp_path / "good.zip", {"images_background/A/character01/0001_01.png": png(np.eye(105) > 0)}
    )
    assert omniglot.read_archives(good, good)[0].ink.sum() == 105
    cases = {
        "points outside": {"../../A/character01/0001_01.png": b""},
        "absolute": {"/A/character01/0001_01.png": b""},
        "1 MiB": {"x/A/character01/0001_01.png": bytes(2 << 20)},
        "readable PNG": {"x/A/character01/0001_01.png": b"not an image"},
        "105x105": {"x/A/character01/0001_01.png": png(np.eye(28) > 0)},
        "characterNN": {"x/A/0001_01.png": png(np.eye(105) > 0)},
    }
    for number, (reason, members) in enumerate(cases.items()):
        bad = archive(tmp_path / f"{number}.zip", members)
        with pytest.raises(
            DataError, match="points outside" if reason == "absolute" else reason
        ) as caught:
            omniglot.read_archives(good, bad)
        assert str(bad) in str(caught.value)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(good.read_bytes()[:50])
    with pytest.raises(DataError, match="zip archive"):
        omniglot.read_archives(good, broken)
    # nothing was unpacked
    assert sorted(item.suffix for item in tmp_path.iterdir()) == [".zip"] * 8


def test_prepare_refuses_archives_that_are_not_the_publishers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    for name in omniglot.ARCHIVES:
        archive(tmp_path / name, {"images/A/character01/0001_01.png": png(np.eye(105) > 0)})
    with pytest.raises(DataError, match="20 drawings"):
        data_commands.prepare("omniglot")
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(omniglot.ARCHIVES)


@pytest.mark.parametrize(
    ("published", "same_ink", "written"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, True)]
)
def test_prepare_trusts_the_publishers_archives_or_the_same_drawings(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch, published: int, same_ink: int, written: bool
) -> None:
    target = synthetic / omniglot.FILE
    arrays = dict(store.load_npz(target))
    target.unlink()
    paths = [archive(synthetic / name, {}) for name in omniglot.ARCHIVES]
    ink = omniglot.INK_SHA256 if same_ink else "other"
    monkeypatch.setattr(omniglot, "convert", lambda characters: (arrays, ink))
    monkeypatch.setattr(omniglot, "IMAGES_SHA256", store.sha256_of_arrays(arrays["images"]))
    if published:
        monkeypatch.setattr(
            omniglot, "ARCHIVES", {path.name: store.git_blob_id(path) for path in paths}
        )
    if written:
        assert data_commands.prepare("omniglot")[0] == f"wrote {target}"
    else:
        with pytest.raises(DataError, match="not the publisher's"):
            data_commands.prepare("omniglot")
    assert target.exists() == written and all(path.exists() for path in paths)


def test_a_download_is_kept_only_when_it_is_the_right_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(b"hello\n"))
    target = tmp_path / "new" / "a.zip"
    with pytest.raises(DataError, match="blob id"):
        store.download("https://example.org/a.zip", target, "0" * 40)
    assert list(target.parent.iterdir()) == []
    # git's own example
    store.download("https://example.org/a.zip", target, "ce013625030ba8dba906f756967f9e9ca394464a")
    assert target.read_bytes() == b"hello\n" and list(target.parent.iterdir()) == [target]
    with pytest.raises(DataError, match="https"):
        store.download("http://example.org/a.zip", target, "")


def test_an_unreachable_publisher_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, timeout: float) -> None:
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        data_commands.prepare("omniglot")
    assert all(
        word in str(caught.value)
        for word in ("images_background.zip", "no route", "another machine", str(tmp_path))
    )
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written .*METALEARN_DATA"):
        data_commands.prepare("omniglot")


def test_caches_go_beside_the_data_unless_these_are_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    monkeypatch.setenv("METALEARN_DATA", str(root))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store.cache_root() == store.data_root() == root
    root.mkdir(mode=0o555)
    assert store.cache_root() == tmp_path / "home" / ".cache" / "metalearn"


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    store.write_npz(path, {"x": np.arange(3)})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write_npz(path, {"x": np.arange(4)})
    assert list(tmp_path.iterdir()) == [path] and store.load_npz(path)["x"].tolist() == [0, 1, 2]
    assert not store.load_npz(path)["x"].flags.writeable


def test_unknown_data_sets_get_the_valid_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'omniglot'"):
        data_commands.verify("omniglott")
