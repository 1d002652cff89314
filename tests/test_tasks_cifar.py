"""CIFAR-FS and FC100: a small file in the layout of the prepared one, splits, augmentation."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import KEY
from PIL import Image

from metalearn.augment import augment
from metalearn.cli import data
from metalearn.errors import ConfigError, DataError
from metalearn.models import Conv4
from metalearn.rng import fold_in, uniform
from metalearn.tasks import CIFARFS, FC100, store
from metalearn.tasks.images import SPLITS
from metalearn.tasks.prepared import cifar100
from metalearn.tasks.prepared.splits import published
from metalearn.types import EpisodeSpec

EACH = 4
NAMES = sorted({name for part in published("cifar_fs").values() for name in part})


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def small_images() -> np.ndarray:
    """uint8 [100, 4, 32, 32, 3]: class n has red n; the last of apple is the first of baby."""
    ramp = np.arange(32, dtype=np.uint8)
    images = np.zeros((100, EACH, 32, 32, 3), np.uint8)
    images[..., 0] = 2 * np.arange(100)[:, None, None, None]
    images[..., 1] = (40 * np.arange(EACH))[None, :, None, None]
    images[..., 2] = ramp
    images[NAMES.index("apple"), -1] = images[NAMES.index("baby"), 0]
    return images


def write_jpegs(root: Path, images: np.ndarray) -> None:
    """The prepared file of images [100, each, 32, 32, 3]."""
    files = [jpeg(image) for image in images.reshape(-1, 32, 32, 3)]
    shared = next(n for n in range(len(files[0])) if len({file[: n + 1] for file in files}) > 1)
    bodies = [file[shared:] for file in files]
    np.savez(
        root / cifar100.JPEG.file,
        jpeg_header=np.frombuffer(files[0][:shared], np.uint8),
        jpeg_body=np.frombuffer(b"".join(bodies), np.uint8),
        offsets=np.cumsum([0, *map(len, bodies)], dtype=np.int64),
        label=np.repeat(np.arange(100), images.shape[1]).astype(np.uint8),
        fine_name=np.array(NAMES),
    )


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    images = small_images()
    write_jpegs(tmp_path, images)
    return images


def test_published_splits_share_no_class() -> None:
    for name, sizes in (
        ("cifar_fs", (64, 16, 20)),
        ("fc100", (60, 20, 20)),
        ("mini_imagenet", (64, 16, 20)),
        ("tiered_imagenet", (351, 97, 160)),
        ("cub200", (100, 50, 50)),
    ):
        parts = published(name)
        assert tuple(len(parts[split]) for split in SPLITS) == sizes
        assert len({one for part in parts.values() for one in part}) == sum(sizes)


def test_episodes_of_jpeg_files(small: np.ndarray) -> None:
    task = CIFARFS(ways=5, shots=1, queries=2)
    source = task.build("test")
    assert source.spec.x_shape == (3, 32, 32) and source.spec.num_classes == 20
    assert source.facts == {"pixels": "JPEG copies, quality 95", "repeated_images": "keep"}
    support, query, info = source.sample(KEY, 3)
    assert support.x.shape == (3, 5, 3, 32, 32) and query.x.shape == (3, 10, 3, 32, 32)
    classes = published("cifar_fs")["test"]
    for t in range(3):
        reds = [2 * NAMES.index(classes[i]) for i in info["class_ids"][t, support.y[t]]]
        found = 255 * support.x[t, :, 0].mean((-2, -1))
        assert (found - torch.tensor(reds, dtype=torch.float32)).abs().max() < 4  # lossy
    with pytest.raises(ConfigError, match="at most 4"):
        CIFARFS(shots=3, queries=2).build("test")
    assert FC100(queries=2).build("valid").spec.num_classes == 20


def test_repeated_images_are_left_out_of_the_earlier_split(small: np.ndarray) -> None:
    parts = published("cifar_fs")
    assert "apple" in parts["train"] and "baby" in parts["test"]
    keep, leave = (CIFARFS(queries=2, repeated_images=how) for how in ("keep", "leave_out"))
    assert keep.build("train")._pool.same == EACH
    counts = leave.build("train")._pool.counts.tolist()
    apple = parts["train"].index("apple")
    assert counts[apple] == EACH - 1 and sum(counts) == 64 * EACH - 1
    assert leave.build("test")._pool.counts.tolist() == [EACH] * 20


def test_published_pixels_come_first(
    small: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive in the publisher's layout, records in any order of classes."""
    order = np.random.default_rng(0).permutation(100 * EACH)
    labels = np.repeat(np.arange(100, dtype=np.uint8), EACH)
    pixels = small.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).reshape(len(order), -1)
    records = np.concatenate([np.zeros_like(labels)[:, None], labels[:, None], pixels], 1)[order]
    with tarfile.open(tmp_path / cifar100.ARCHIVE, "w:gz") as archive:
        names = "\n".join(NAMES).encode()
        parts = {"train.bin": records[:300].tobytes(), "test.bin": records[300:].tobytes()}
        for name, content in {**parts, "fine_label_names.txt": names}.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match="must be 58a81ae1"):
        cifar100.prepare()
    digest = store.sha256_of_file(tmp_path / cifar100.ARCHIVE)
    monkeypatch.setattr(cifar100, "ARCHIVE_SHA256", digest)
    with pytest.raises(DataError, match="has 4 images per class, must be 600"):
        cifar100.prepare()
    source = CIFARFS(queries=2).build("test")
    assert source.facts["pixels"] == "as published"
    number = cifar100.class_numbers(["baby"])
    found = {image.tobytes() for image in cifar100.images_of(number)[0].numpy()}
    wanted = {image.transpose(2, 0, 1).tobytes() for image in small[number[0]]}
    assert found == wanted


def test_a_missing_file_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    with pytest.raises(DataError, match="metalearn data prepare cifar100"):
        CIFARFS().build()


@pytest.mark.skipif(
    not (store.data_root() / cifar100.JPEG.file).exists(), reason="no prepared CIFAR-100"
)
def test_the_prepared_file_agrees_with_the_published_splits() -> None:
    data = cifar100.JPEG.load()
    for name in ("cifar_fs", "fc100"):
        for code, split in enumerate(SPLITS):
            numbers = np.flatnonzero(data[f"{name}_split"] == code)
            assert sorted(data["fine_name"][numbers]) == sorted(published(name)[split])


# augmentation


def test_crop_shifts_flip_mirrors_and_colour_keeps_the_range() -> None:
    x = uniform(fold_in(0, "x"), (64, 3, 32, 32))
    keys = fold_in(fold_in(0, "keys"), torch.arange(64))
    shifts = set()
    for image, moved in zip(x, augment(x, keys, ["crop"])):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        places = [(r, c) for r in range(9) for c in range(9)]
        fits = [p for p in places if torch.equal(padded[:, p[0] :, p[1] :][:, :32, :32], moved)]
        assert len(fits) == 1
        shifts.add(fits[0])
    assert len(shifts) > 30
    flipped = augment(x, keys, ["flip"])
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) ^ mirrored).all() and 16 < mirrored.sum() < 48
    coloured = augment(x, keys, ["colour"])
    assert coloured.min() >= 0 and coloured.max() <= 1 and (coloured != x).any(1).all(0).any()
    one = augment(x[5:6], keys[5:6], ["crop", "flip", "colour"])
    torch.testing.assert_close(one, augment(x, keys, ["crop", "flip", "colour"])[5:6])


def test_colour_keeps_images_of_another_range() -> None:
    """Of 0..255 the change is that of 0..1 times 255, and of standardised ones no half is lost."""
    x = uniform(fold_in(0, "x"), (8, 3, 16, 16), dtype=torch.float64)
    x[:, :, 0, 0], x[:, :, 0, 1] = 0, 1
    keys = fold_in(fold_in(0, "keys"), torch.arange(8))
    changed = augment(x, keys, ["crop", "flip", "colour"])
    torch.testing.assert_close(augment(255 * x, keys, ["crop", "flip", "colour"]), 255 * changed)
    around = augment(2 * x - 1, keys, ["colour"])
    assert -1 <= around.min() < -0.5 and 0.5 < around.max() <= 1


def test_training_images_alone_are_augmented(small: np.ndarray) -> None:
    plain, changed = (CIFARFS(queries=2, augment=how) for how in ((), ("crop", "flip", "colour")))
    for split in ("valid", "test"):
        a, b = (task.build(split).sample(KEY, 2) for task in (plain, changed))
        assert torch.equal(a.query.x, b.query.x)
    a, b = (task.build("train") for task in (plain, changed))
    before, after = a.sample(KEY, 4), b.sample(KEY, 4)
    assert torch.equal(before.support.y, after.support.y)
    assert not torch.equal(before.support.x, after.support.x)
    later = b.sample(KEY, 2, start=2)
    torch.testing.assert_close(later.query.x, after.query.x[2:])
    batch, same = a.examples(KEY, 16), b.examples(KEY, 16)
    assert torch.equal(batch.y, same.y) and not torch.equal(batch.x, same.x)


def test_conv4_has_the_widths_of_r2d2() -> None:
    spec = EpisodeSpec("classification", 5, 1, 1, (3, 32, 32), 5, 10)
    learner = Conv4(filters=(96, 192, 384, 512), downsample="pool", flatten=True).build(spec)
    params = learner.init(KEY)
    assert [params[f"convs.{n}.weight"].shape[0] for n in range(4)] == [96, 192, 384, 512]
    z = learner.features(params, torch.zeros(2, 3, 32, 32))
    assert z.shape == (2, 2 * 2 * 512) and learner.apply(params, torch.zeros(2, 3, 32, 32)).shape
    same = Conv4(filters=8).build(spec).init(KEY)
    each = Conv4(filters=(8, 8, 8, 8)).build(spec).init(KEY)
    assert all(torch.equal(same[name], each[name]) for name in same)


@pytest.mark.parametrize("name", ["cifar100", "cifar_fs", "fc100"])
def test_the_data_commands_take_the_names_of_the_sources(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    with pytest.raises(DataError, match="metalearn data prepare cifar100"):
        data.verify(name)
