"""What every task source of the table keeps; a new line is tested by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import equal, part
from PIL import Image

from metalearn.component import Component
from metalearn.rng import fold_in
from metalearn.tasks import TASKS, render
from metalearn.tree import leaves as tree_leaves
from metalearn.types import Episode, TaskSource

KEY = fold_in(31, "tasks")
COUNT = 7
SHAPE = {"shots": 2, "queries": 3}  # of every task here; classification adds ways
SPLITS = ("train", "valid", "test")


@pytest.fixture
def options(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> dict[str, Any]:
    """Options of a source that builds quickly; sources without an entry use their defaults."""
    if name == "omniglot":
        request.getfixturevalue("data_root")  # skips, with the reason, where the file is not there
        return {"ways": 3, **SHAPE}
    if name == "arrays":
        values = np.random.default_rng(0).random((180, 4))
        np.savez(tmp_path / "rows.npz", x=values, y=np.repeat(np.arange(20), 9))
        return {"path": str(tmp_path / "rows.npz"), "ways": 3, **SHAPE}
    if name == "image_folder":
        monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
        noise = np.random.default_rng(0)
        for place in range(15):
            (tmp_path / "own" / f"class{place}").mkdir(parents=True)
            for image in range(6 + place % 2):
                pixels = noise.integers(0, 255, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own" / f"class{place}" / f"{image}.png")
        return {
            "path": str(tmp_path / "own"),
            "size": 8,
            "fractions": (0.4, 0.3, 0.3),
            "ways": 3,
            **SHAPE,
        }
    if name == "glyphs":
        monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))
        monkeypatch.setattr(render, "render", few_letters)
        return {"ways": 3, **SHAPE}
    return {"ways": 3, **SHAPE} if TASKS[name].model_fields["ways"].default != 1 else SHAPE


# Not episodes of N ways and K shots, or those of other sources: tests/test_objectives.py and
# tests/test_mixture.py look at these.
OBJECTIVES = ("quadratics", "landscapes", "logistic", "mixture")


def few_letters(seed: int) -> render.Rendered:
    """Five letters a split, in place of all, which take seconds."""
    every = [
        (letter, split)
        for split, some in zip(SPLITS, ("ABCDE", "אבגדה", "ΘΞΨΩΣ"))
        for letter in some
    ]
    images = np.stack(
        [render.drawings(letter, ["DejaVuSans", "DejaVuSans-Bold"], seed) for letter, _ in every]
    )
    return render.Rendered(
        images, [letter for letter, _ in every], [render.SPLITS[split][0] for _, split in every]
    )


def build(name: str, options: dict[str, Any], split: str = "train", **more: Any) -> TaskSource:
    source: TaskSource = TASKS[name](**options).build(split, 0, **more)  # type: ignore[attr-defined]
    return source


each_source = pytest.mark.parametrize("name", [name for name in TASKS if name not in OBJECTIVES])


def leaves(episode: Episode) -> list[torch.Tensor]:
    return tree_leaves(episode)


@each_source
def test_an_episode_depends_on_its_key_and_number_alone(name: str, options: dict[str, Any]) -> None:
    """The same twice, alone, in chunks, from another object, with any torch generator state."""
    source = build(name, options)
    whole = source.sample(KEY, COUNT)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert equal(whole, build(name, options).sample(KEY, COUNT))
    for first, last in ((0, 1), (3, 4), (2, 7)):
        assert equal(source.sample(KEY, last - first, start=first), part(whole, first, last))
    assert equal(
        source.sample(KEY, 2, start=1_000_003), part(source.sample(KEY, 3, start=1_000_002), 1, 3)
    )
    assert torch.equal(torch.get_rng_state(), before)
    other = source.sample(fold_in(KEY, "other"), COUNT)
    assert not torch.equal(other.support.x, whole.support.x)
    assert len({str(x.tolist()) for x in whole.support.x}) == COUNT


@each_source
@pytest.mark.parametrize("split", SPLITS)
def test_shapes_are_those_of_the_spec(name: str, split: str, options: dict[str, Any]) -> None:
    source = build(name, options, split)
    spec, episode = source.spec, source.sample(KEY, COUNT)
    assert spec.split == split and (spec.shots, spec.queries) == (2, 3) and spec.device == "cpu"
    for batch, count in ((episode.support, spec.shots), (episode.query, spec.queries)):
        size = spec.ways * count
        assert (
            batch.x.shape == (COUNT, size, *spec.x_shape)
            and batch.x.dtype == spec.dtype == torch.float32
        )
        target = (COUNT, size) if spec.classification else (COUNT, size, spec.outputs)
        assert batch.y.shape == target
        assert batch.y.dtype == (torch.int64 if spec.classification else spec.dtype)
    assert all(
        leaf.isfinite().all() and leaf.shape[0] == COUNT and leaf.device.type == "cpu"
        for leaf in leaves(episode)
    )
    assert episode.info["key"].shape == (COUNT,) and episode.info["key"].dtype == torch.int64
    assert episode.info["key"].unique().numel() == COUNT
    assert episode.info["step"].shape == (COUNT,) and episode.info["step"].dtype == spec.dtype


@each_source
@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_a_permutation_and_no_example_is_in_both_sets(
    name: str, split: str, options: dict[str, Any]
) -> None:
    source = build(name, options, split)
    spec, episode = source.spec, source.sample(KEY, COUNT)
    for t in range(COUNT):
        both = torch.cat([episode.support.x[t], episode.query.x[t]]).flatten(1)
        assert len({str(x.tolist()) for x in both}) == len(both)
        if spec.classification:
            ids = episode.info["class_ids"][t].tolist()
            assert len(set(ids)) == spec.ways == spec.outputs and all(
                0 <= i < spec.num_classes for i in ids
            )
            for batch, count in ((episode.support, spec.shots), (episode.query, spec.queries)):
                assert sorted(batch.y[t].tolist()) == sorted(list(range(spec.ways)) * count)
    if spec.classification:  # neither the order of labels nor the classes behind them stand still
        assert len({str(y.tolist()) for y in episode.support.y}) > 1
        assert len({str(y.tolist()) for y in episode.query.y}) > 1
        assert len({str(ids.tolist()) for ids in episode.info["class_ids"]}) > 1


@each_source
def test_a_source_without_queries(name: str, options: dict[str, Any]) -> None:
    source = build(name, {**options, "queries": 0})
    episode = source.sample(KEY, COUNT)
    assert source.spec.queries == 0
    assert episode.query.x.shape == (COUNT, 0, *source.spec.x_shape) and episode.query.y.shape[
        :2
    ] == (COUNT, 0)
    assert episode.support.x.shape[1] == source.spec.ways * 2 and episode.support.x.isfinite().all()


@each_source
def test_float64_draws_the_same_episodes(name: str, options: dict[str, Any]) -> None:
    fine, coarse = build(name, options, dtype=torch.float64), build(name, options)
    assert fine.spec == dataclasses.replace(coarse.spec, dtype=torch.float64)
    for a, b in zip(leaves(fine.sample(KEY, 3)), leaves(coarse.sample(KEY, 3)), strict=True):
        assert a.dtype == (torch.float64 if b.is_floating_point() else b.dtype)
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-5)
    assert fine.examples(KEY, 4).x.dtype == torch.float64


@each_source
def test_examples_are_labelled_over_all_classes(name: str, options: dict[str, Any]) -> None:
    source = build(name, options)
    spec, batch = source.spec, source.examples(KEY, 500)
    assert (
        batch.x.shape == (500, *spec.x_shape)
        and batch.x.isfinite().all()
        and batch.x.dtype == spec.dtype
    )
    again, other = source.examples(KEY, 500), source.examples(fold_in(KEY, "other"), 500)
    assert (
        torch.equal(batch.x, again.x)
        and torch.equal(batch.y, again.y)
        and not torch.equal(batch.x, other.x)
    )
    if spec.classification:
        assert batch.y.shape == (500,) and batch.y.dtype == torch.int64
        seen = batch.y.unique().numel()
        assert (
            batch.y.min() >= 0
            and batch.y.max() < spec.num_classes
            and seen > min(spec.num_classes, 500) * 0.3
        )
    else:
        assert batch.y.shape == (500, spec.outputs)


@each_source
def test_splits_give_different_tasks(name: str, options: dict[str, Any]) -> None:
    sources = {split: build(name, options, split).sample(KEY, 3) for split in SPLITS}
    drawn = [
        {str(x.tolist()) for x in episode.support.x.flatten(0, 1)} for episode in sources.values()
    ]
    assert not drawn[0] & drawn[1] and not drawn[0] & drawn[2] and not drawn[1] & drawn[2]


@pytest.mark.parametrize(("name", "component"), TASKS.items())
def test_components_keep_their_form(name: str, component: type[Component]) -> None:
    """Constructible from defaults, frozen, equal after JSON; unknown fields are refused."""
    required = {field for field, info in component.model_fields.items() if info.is_required()}
    given = {"path": "somewhere", "sources": ({"source": "digits"},)}
    assert required <= set(given)
    given = {name: value for name, value in given.items() if name in required}
    made = component(**given)
    assert made.source == name and component.model_validate_json(made.model_dump_json()) == made  # type: ignore[attr-defined]
    assert all(
        info.description for info in component.model_fields.values()
    ) and component.sentence().endswith(".")
    with pytest.raises(ValueError, match="frozen"):
        made.source = name  # type: ignore[attr-defined]
    for wrong in ({"shot": 1}, {"shots": 0}, {"queries": -1}, {"ways": 0}):
        with pytest.raises(ValueError):
            component(**given, **wrong)


@pytest.mark.gpu
@each_source
def test_a_gpu_draws_the_same_episodes(name: str, options: dict[str, Any]) -> None:
    """Whole numbers alike, floats within rounding."""
    here, there = (
        build(name, options).sample(KEY, COUNT),
        build(name, options, device="cuda").sample(KEY, COUNT),
    )
    for a, b in zip(leaves(here), leaves(there), strict=True):
        assert b.device.type == "cuda"
        torch.testing.assert_close(a, b.cpu(), rtol=1e-5, atol=1e-5)
