"""Omniglot tasks inside one alphabet, and the published runs of Lake et al. 2015."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.augment import augment
from metalearn.config.build import build
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError, DataError
from metalearn.rng import fold_in
from metalearn.tasks import Mixture, OmniglotAlphabets, omniglot, store
from metalearn.types import Batch

KEY = fold_in(0, "alphabets")
SIZES = [14, 20, 26, 30, 22, 25, 21, 28, 24, 23] * 3  # of 30 background alphabets
# Sums over the 400 support and the 400 query images of the publisher's archive of the runs, matched
# with the 105x105 drawings pixel by pixel, in the prepared file.
INK = [26049.7137, 26947.5451]
EVALUATION = 47  # characters of each evaluation alphabet


@pytest.fixture
def synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared file whose pixels tell alphabet, character and drawer.

    It has other numbers of characters, which this source does not need to be those of Omniglot."""
    runs = [
        *("Atlantean", "Ge_ez", "Glagolitic", "Gurmukhi", "Kannada", "Malayalam", "Manipuri"),
        *("Old_Church_Slavonic_(Cyrillic)", "Tengwar", "Tibetan"),
    ]
    names = [f"background {number}" for number in range(30)] + runs
    sizes = SIZES + [EVALUATION] * len(runs)
    alphabet = np.repeat(np.arange(len(names)), sizes)
    character = np.concatenate([np.arange(1, size + 1) for size in sizes])
    pool = np.zeros((len(alphabet), 20, 28, 28), dtype=np.uint8)
    pool[..., 9, 9] = alphabet[:, None]
    pool[..., 9, 10] = character[:, None]
    pool[..., 9, 11] = np.arange(1, 21)
    arrays = {"images": pool, "alphabets": np.array(names), "alphabet_index": alphabet}
    arrays |= {"character": character, "is_evaluation": alphabet >= 30}
    arrays |= {"vinyals_split": np.zeros(len(alphabet), dtype=np.int8)}
    monkeypatch.setattr(omniglot, "CLASSES", len(alphabet))
    store.write_npz(tmp_path / omniglot.FILE, arrays)
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    return tmp_path


def facts(batch: Batch) -> torch.Tensor:
    """(alphabet, character, drawer) of every image: [T, B, 3]."""
    return (batch.x[:, :, 0, 9, 9:12] * 255).round().to(torch.int64)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_task_has_one_alphabet_and_each_shot_one_drawer(synthetic: Path, split: str) -> None:
    source = OmniglotAlphabets(ways=20, shots=2, queries=3).build(split)
    episode = source.sample(KEY, 40)
    support, query = facts(episode.support), facts(episode.query)
    assert (torch.cat([support, query], 1)[..., 0] == support[:, :1, 0]).all()
    drawers = [(part[..., 2].unique().tolist()) for part in (support[0], query[0])]
    assert [len(each) for each in drawers] == [2, 3] and not set(drawers[0]) & set(drawers[1])
    for part, batch, each in ((support, episode.support, 2), (query, episode.query, 3)):
        for task in range(40):
            seen = {}
            for label in range(20):
                rows = part[task][batch.y[task] == label]
                assert len(rows) == each == len(rows[:, 2].unique())
                seen[label] = rows[:, 1].unique().item()
            assert len(set(seen.values())) == 20
            assert torch.equal(
                part[task][batch.y[task] == 0][:, 1], rows.new_full((each,), seen[0])
            )
    again = source.sample(KEY, 4, start=30)
    assert torch.equal(again.query.x, episode.query.x[30:34])


def test_splits_share_no_alphabet_and_small_ones_are_left_out(synthetic: Path) -> None:
    alphabets = {}
    for split in ("train", "valid", "test"):
        episode = OmniglotAlphabets().build(split).sample(KEY, 400)
        alphabets[split] = set(facts(episode.support)[:, 0, 0].tolist())
    assert len(alphabets["train"]) == 22 and len(alphabets["valid"]) == 5  # 3 have 14 characters
    assert not alphabets["train"] & alphabets["valid"] and alphabets["test"] == set(range(30, 40))
    joined = OmniglotAlphabets(train_on_valid=True).build("train").sample(KEY, 400)
    drawn = set(facts(joined.support)[:, 0, 0].tolist())
    assert drawn == alphabets["train"] | alphabets["valid"]
    assert 0 in facts(OmniglotAlphabets(ways=14).build().sample(KEY, 400).support)[:, 0, 0]


def test_turned_alphabets_are_others_in_training_alone(synthetic: Path) -> None:
    turned = OmniglotAlphabets(rotations="classes_train")
    plain = OmniglotAlphabets()
    sizes = [[task.build(split).spec.num_classes for task in (turned, plain)] for split in
             ("train", "valid", "test")]  # fmt: skip
    assert sizes[0][0] == 4 * sizes[0][1] and sizes[1][0] == sizes[1][1]
    assert sizes[2][0] == sizes[2][1] == 10 * EVALUATION
    ids = turned.build().sample(KEY, 200).info["class_ids"]
    blocks = ids // sizes[0][1]
    assert (blocks == blocks[:, :1]).all() and blocks.unique().tolist() == [0, 1, 2, 3]


def test_the_published_runs_are_tested_each_once(synthetic: Path) -> None:
    task = OmniglotAlphabets(test_on="runs")
    episode = task.build("test").sample(KEY, 20)
    support, query = facts(episode.support), facts(episode.query)
    assert support[:, 0, 0].tolist() == [30 + number // 2 for number in range(20)]
    assert support[0, :, 2].unique().tolist() == [5] and query[0, :, 2].unique().tolist() == [8]
    assert support[19, :, 2].unique().tolist() == [8] and query[19, :, 2].unique().tolist() == [5]
    first = [1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 14, 16, 19, 20, 21, 22, 23, 24, 25, 26]
    assert sorted(support[0, :, 1].tolist()) == sorted(query[1, :, 1].tolist()) == first
    other = task.build("test").sample(fold_in(1), 20)
    assert not torch.equal(other.support.y, episode.support.y)  # labels are random
    assert torch.equal(facts(other.support)[:, 0, 0], support[:, 0, 0])


def test_errors_of_the_runs_teach(synthetic: Path) -> None:
    task = {"source": "omniglot_alphabets"}
    file: dict[str, Any] = {"task": task, "method": {"name": "proto_net"}}
    file["evaluate"] = {"task": {"test_on": "runs"}, "episodes": 21}
    with pytest.raises(ConfigError, match="at most 20") as error:
        build(parse(file).experiments[0], to_train=True)
    assert [place for place, _ in error.value.problems] == ["evaluate.episodes"]
    build(parse({**file, "evaluate": {**file["evaluate"], "episodes": 20}}).experiments[0])
    build(parse({**file, "evaluate": {**file["evaluate"], "split": "valid"}}).experiments[0])
    with pytest.raises(ConfigError) as error:
        OmniglotAlphabets(test_on="runs", ways=5, queries=2).build("test")
    assert [place for place, _ in error.value.problems] == ["ways", "queries"]
    OmniglotAlphabets(test_on="runs", ways=5, queries=2).build("train")
    ranged = OmniglotAlphabets.model_validate({"test_on": "runs", "ways": [5, 20]})
    with pytest.raises(ConfigError, match="is a range"):
        ranged.build("test")
    mixed = Mixture(sources=({**task, "test_on": "runs"}, task))
    with pytest.raises(ConfigError, match="test on it alone"):
        mixed.build("test")
    mixed.build("valid")
    with pytest.raises(ConfigError) as error:
        OmniglotAlphabets(ways=31, shots=10, queries=11).build()
    assert [place for place, _ in error.value.problems] == ["ways", "shots"]


def test_a_file_without_alphabets_is_named(synthetic: Path) -> None:
    path = synthetic / omniglot.FILE
    arrays = store.load_npz(path)
    store.write_npz(path, {name: arrays[name] for name in arrays if name != "alphabet_index"})
    with pytest.raises(DataError, match="no array alphabet_index: prepare omniglot again"):
        OmniglotAlphabets().build()
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        OmniglotAlphabets().build()


def test_the_real_runs_have_the_published_images(data_root: Path) -> None:
    source = OmniglotAlphabets(test_on="runs").build("test")
    episode = source.sample(KEY, 20)
    ink = [float(part.x.sum()) for part in (episode.support, episode.query)]
    assert ink == pytest.approx(INK, rel=1e-4)


def test_affine_maps_move_ink_and_keep_the_middle() -> None:
    """A dot in the middle stays; each image has its own map; an odd one out is as in a batch."""
    x = torch.zeros(64, 1, 29, 29, dtype=torch.float64)
    x[:, :, 13:16, 13:16] = 1
    keys = fold_in(fold_in(0, "keys"), torch.arange(64))
    moved = augment(x, keys, ["affine"])
    assert (moved[:, 0, 9:20, 9:20].sum((-1, -2)) > 0.99 * moved.sum((-1, -2, -3))).all()
    area = moved.sum((-1, -2, -3)) / 9
    assert 0.8**2 * 0.9 < area.min() < 0.9 and 1.1 < area.max() < 1.2**2 * 1.1
    assert len({tuple(image.flatten().tolist()) for image in moved}) == 64
    torch.testing.assert_close(augment(x[5:6], keys[5:6], ["affine"]), moved[5:6])
    rows = torch.arange(29, dtype=torch.float64) - 14
    centre = [(moved[:, 0].sum(axis) * rows).sum(-1) / moved.sum((-1, -2, -3)) for axis in (1, 2)]
    assert all(1 < shift.abs().max() < 29 / 14 + 0.1 for shift in centre)


def test_affine_maps_are_of_pixels_where_images_are_not_square() -> None:
    """The same map of a wide image as of the square one that it is the middle of."""
    x = torch.zeros(8, 1, 40, 40, dtype=torch.float64)
    x[:, :, 17:23, 16:28] = 1
    keys = fold_in(fold_in(0, "keys"), torch.arange(8))
    for image, wide in zip(
        augment(x, keys, ["affine"]), augment(x[:, :, 8:32], keys, ["affine"]), strict=True
    ):
        assert float(image.sum()) == pytest.approx(float(wide.sum()), rel=0.02)
        assert ratio(image) == pytest.approx(ratio(wide), abs=0.01)


def ratio(image: torch.Tensor) -> float:
    """Covariance of the ink's places over the variance along rows."""
    weight = image[0] / image.sum()
    height, width = weight.shape
    rows = torch.arange(height, dtype=weight.dtype).unsqueeze(1).expand(height, width)
    columns = torch.arange(width, dtype=weight.dtype).expand(height, width)
    dy, dx = rows - (weight * rows).sum(), columns - (weight * columns).sum()
    return float((weight * dx * dy).sum() / (weight * dx * dx).sum())


def test_an_empty_batch_stays_empty() -> None:
    x, keys = torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64)
    assert augment(x, keys, ["affine", "crop", "colour"]).shape == x.shape
