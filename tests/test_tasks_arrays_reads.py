"""What rows are read as: bytes, data sets that draw, splits, and images of other layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tasks_arrays import Rows, Table, same_episodes, table

from metalearn.errors import ConfigError
from metalearn.rng import fold_in
from metalearn.tasks import Arrays

KEY = fold_in(7, "reads")


def test_labels_of_bytes_are_text_in_utf_8(tmp_path: Path) -> None:
    x, labels = table()
    texts = [name.replace("c", "ç") for name in labels]
    in_bytes = np.array([name.encode() for name in texts])
    same_episodes(Arrays(x, in_bytes), Arrays(x, texts))
    np.savez(tmp_path / "rows.npz", x=x, y=in_bytes)
    same_episodes(Arrays(tmp_path / "rows.npz"), Arrays(x, texts))
    with pytest.raises(ConfigError, match=r"bytes that are not UTF-8 \(b'\\xe7.*decode them"):
        Arrays(x, np.array([name.encode("latin-1") for name in texts])).build()


class Drawing(Rows):
    """Rows under a random transform."""

    def __init__(self, form: str) -> None:
        super().__init__(list(zip(*table(), strict=True)))
        self.form, self.draw = form, np.random.default_rng(0)

    def __getitem__(self, number: int) -> Any:
        x, y = self.items[number]
        x = x[::-1].copy() if self.draw.random() < 0.5 else x
        if self.form == "tensors":
            x = torch.from_numpy(x)
        return {"x": x, "y": y} if self.form == "dicts" else (x, y)


@pytest.mark.parametrize("form", ["arrays", "tensors", "dicts"])
def test_a_data_set_that_draws_is_refused(form: str) -> None:
    with pytest.raises(ConfigError, match="differs each time it is read, as after a random tran"):
        Arrays(Drawing(form))


def test_missing_values_are_the_same_in_every_read() -> None:
    x, labels = table()
    x[0, 0] = np.nan
    with pytest.raises(ConfigError, match="not finite in rows 1"):
        Arrays(Rows(list(zip(x, labels, strict=True)))).build()


def test_a_column_of_splits_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, labels = table(12)
    split = np.array(["TRAIN" if name < "c06" else "Test" for name in labels])
    columns = {"x": x, "y": np.array(labels), "split": split}
    for given in (columns, Table(**columns)):
        task = Arrays(given, ways=2)
        assert task.split == "split"
        assert set(task.build("test").examples(KEY, 300).x[:, 0].tolist()) == {*range(6, 12)}
    assert Arrays(columns, ways=2, split=None).split is None
    assert not caplog.messages
    np.savez(tmp_path / "rows.npz", **columns)
    Arrays(tmp_path / "rows.npz", ways=2, split="split").build()
    assert not caplog.messages
    Arrays(tmp_path / "rows.npz", ways=2).build()
    assert "the column 'split' names splits and is not used" in caplog.text


def test_a_data_set_under_another_name_than_a_split_is_named() -> None:
    x, labels = table(6)
    part = Table(x=x, y=labels)
    with pytest.raises(ConfigError, match="'unsupervised' is not a split: pass train, valid and"):
        Arrays({"train": part, "test": part, "unsupervised": part})


def test_bytes_of_grey_images_have_their_channel_first() -> None:
    pixels, y = np.zeros((40, 9, 9, 1), np.uint8), np.repeat(np.arange(8), 5)
    with pytest.raises(ConfigError, match=r"\[9, 9, 1\], but images must be \[channels, H, W\]"):
        Arrays(pixels, y, ways=2).build()
