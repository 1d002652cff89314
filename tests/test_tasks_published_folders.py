"""miniImageNet, tieredImageNet and CUB-200 in small folders and archives of their layouts."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import KEY
from PIL import Image

from metalearn.errors import ConfigError, DataError
from metalearn.tasks import CUB200, DATA_SETS, MiniImageNet, TieredImageNet
from metalearn.tasks.prepared.splits import published

EACH = 3


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), number % 256, np.uint8)).save(file, "PNG")
    return file.getvalue()


def files(kind: Any, pattern: str, split: str = "test") -> dict[str, bytes]:
    """{path: image} of the classes of a split; class n has grey n."""
    names = published(kind.model_fields["source"].default)[split]
    return {
        pattern.format(name=name, n=n): png(number)
        for number, name in enumerate(names)
        for n in range(EACH)
    }


def write(root: Path, content: dict[str, bytes]) -> Path:
    for name, image in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image)
    return root


def check(task: Any) -> None:
    source = task.build("test")
    support, query, info = source.sample(KEY, 4)
    assert support.x.shape == (4, 5, 3, 16, 16)
    for part in (support, query):
        greys = (255 * part.x[:, :, 0, 0, 0]).round().long()
        assert (greys == info["class_ids"].gather(1, part.y) % 256).all()
    assert source.facts["images_a_class"] == EACH and len(source.data_sha256) == 64


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        (MiniImageNet, "{name}/{n}.png"),
        (MiniImageNet, "images/{name}0000000{n}.png"),
        (MiniImageNet, "test/{name}/{name}_{n}.png"),
        (TieredImageNet, "train/{name}/{name}_{n}.png"),
        (CUB200, "CUB_200_2011/images/{name}/bird_{n}.png"),
    ],
)
def test_images_in_every_layout(
    kind: Any, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    content = {**files(kind, pattern), "other/n99999999/0.png": png(9), "readme.txt": b"text"}
    task = kind(path=str(write(tmp_path / "images", content)), queries=2, size=16)
    check(task)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name, image in content.items():
            archive.writestr(name, image)
    check(task.model_copy(update={"path": str(tmp_path / "images.zip")}))
    (tmp_path / "data").mkdir(exist_ok=True)
    with tarfile.open(tmp_path / "data" / f"{task.source}.tgz", "w:gz") as archive_tar:
        for name, image in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(image)
            archive_tar.addfile(info, io.BytesIO(image))
    again = task.model_copy(update={"path": None})
    check(again)
    check(again)  # from the cache


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"mini_imagenet does not exist.*image-net.org.*archive"):
        MiniImageNet().build()
    with pytest.raises(DataError, match=r"CUB_200_2011\.tgz is published at"):
        DATA_SETS["cub200"].prepare()
    root = write(tmp_path / "images", files(MiniImageNet, "{name}/{n}.png"))
    with pytest.raises(DataError, match=r"no images of 64 of 64 train classes: n01532829"):
        MiniImageNet(path=str(root)).build("train")
    with pytest.raises(ConfigError, match="at most 3"):
        MiniImageNet(path=str(root), queries=3).build("test")
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read as an archive"):
        MiniImageNet(path=str(tmp_path / "bad.zip")).build("test")
