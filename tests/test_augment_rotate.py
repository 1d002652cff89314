"""Quarter turns as an augmentation: exact, uniform, in training and on new tasks alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pictures import KEY, SIDE, numbered
from torch import Tensor

import metalearn as ml
from metalearn.augment import augment
from metalearn.errors import ConfigError
from metalearn.rng import fold_in, uniform
from metalearn.tasks import Digits, Omniglot, OmniglotAlphabets
from metalearn.tasks.images import ImageSource
from metalearn.types import EpisodeSpec

COUNT = 4000
KEYS = fold_in(fold_in(0, "keys"), torch.arange(COUNT))


def turns_of(x: Tensor, turned: Tensor) -> Tensor:
    """The number of quarter turns of each image, which must be exactly one of four: [B]."""
    same = [(torch.rot90(x, n, (-2, -1)) == turned).flatten(1).all(1) for n in range(4)]
    found = torch.stack(same, 1)
    assert (found.sum(1) == 1).all()
    return found.int().argmax(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_has_one_of_four_exact_turns_equally_likely(channels: int) -> None:
    x = uniform(fold_in(0, "x"), (COUNT, channels, 5, 5))
    turns = turns_of(x, augment(x, KEYS, ["rotate"]))
    counts = turns.bincount(minlength=4).double()
    chi_square = float(((counts - COUNT / 4) ** 2 / (COUNT / 4)).sum())
    assert chi_square < 16.3  # 0.1 % of uniform draws are beyond, with 3 degrees of freedom
    alone = augment(x[7:8], KEYS[7:8], ["rotate"])
    assert torch.equal(alone, augment(x, KEYS, ["rotate"])[7:8])


def test_turns_are_drawn_apart_from_other_changes() -> None:
    """Turning before a flip, and flips do not depend on turns."""
    x = uniform(fold_in(0, "x"), (64, 3, 8, 8))
    turned = augment(x, KEYS[:64], ["rotate"])
    both = augment(x, KEYS[:64], ["flip", "rotate"])
    assert torch.equal(both, augment(turned, KEYS[:64], ["flip"]))
    assert len(set(turns_of(x, turned).tolist())) == 4


def test_turns_are_the_same_mapped_and_compiled() -> None:
    x, keys = uniform(fold_in(0, "x"), (3, 6, 1, 4, 4)), KEYS[:18].reshape(3, 6)
    expected = torch.stack([augment(a, b, ["rotate"]) for a, b in zip(x, keys, strict=True)])
    mapped = torch.func.vmap(lambda a, b: augment(a, b, ["rotate"]))
    assert torch.equal(mapped(x, keys), expected)
    compiled = torch.compile(mapped, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, keys), expected)
    assert augment(x[0, :0], keys[0, :0], ["rotate"]).shape == (0, 1, 4, 4)


def test_training_and_pretraining_images_alone_are_turned() -> None:
    plain, changed = (Digits(ways=3, shots=4, queries=2, augment=how) for how in ((), ("rotate",)))
    for split in ("valid", "test"):
        a, b = (task.build(split).sample(KEY, 2) for task in (plain, changed))
        assert torch.equal(a.query.x, b.query.x)
    a, b = (task.build("train") for task in (plain, changed))
    before, after = a.sample(KEY, 4), b.sample(KEY, 4)
    turns = turns_of(before.support.x.flatten(0, 1), after.support.x.flatten(0, 1))
    assert len(set(turns.tolist())) == 4 and torch.equal(before.support.y, after.support.y)
    one, same = a.examples(KEY, 32), b.examples(KEY, 32)
    assert len(set(turns_of(one.x, same.x).tolist())) == 4 and torch.equal(one.y, same.y)


@pytest.mark.parametrize(
    "method",
    [
        ml.transfer.RFS(copies=2, augment=("rotate",)),
        ml.transfer.FineTune(copies=2, augment=("rotate",)),
        ml.algorithms.PMF(augment=("rotate",)),
    ],
)
def test_images_of_a_new_task_are_turned_and_must_be_square(method: Any) -> None:
    source = Digits(ways=3, shots=2, queries=2).build()
    learner, episode = ml.models.MLP(sizes=(6,)).build(source.spec), source.sample(KEY, 2)
    found = []
    for how in (("rotate",), ()):
        built = method.model_copy(update={"augment": how}).build(learner, source.spec)
        meta, key = built.init(fold_in(0)).meta, fold_in(1, torch.arange(2))
        learned = built.learn(meta, episode.support, episode.query.x, (3,), key=key)
        found.append(learned.predictions)
    assert (found[0] - found[1]).abs().max() > 1e-4
    wide = replace(source.spec, x_shape=(1, 8, 6))
    with pytest.raises(
        ConfigError, match=r"augment: rotate .* square images \(got 8x6.*omit rotate"
    ):
        method.build(ml.models.MLP(sizes=(6,)).build(wide), wide)


def test_a_source_of_wide_images_refuses_turns() -> None:
    pool = numbered(6, 4)[..., : SIDE - 2].contiguous()
    shape = tuple(pool.shape[-3:])
    spec = EpisodeSpec("classification", 2, 1, 1, shape, 2, len(pool))
    assert ImageSource(pool, spec, changes=("flip",)).spec is spec
    with pytest.raises(ConfigError, match=rf"square images \(got {SIDE}x{SIDE - 2}\)"):
        ImageSource(pool, spec, changes=("flip", "rotate"))


def test_turns_contradict_classes_of_turned_characters() -> None:
    for kind, rotations in (
        (Omniglot, "classes"),
        (Omniglot, "classes_train"),
        (OmniglotAlphabets, "classes_train"),
    ):
        with pytest.raises(ValueError, match=f"another class, because rotations: {rotations}"):
            kind(rotations=rotations, augment=("crop", "rotate"))
        assert kind(rotations=rotations, augment=("crop",)) and kind(augment=("rotate",))
    assert Omniglot(rotations="per_task", augment=("rotate",))
