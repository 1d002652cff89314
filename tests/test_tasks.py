"""What every task source of the table keeps; a new line is tested by itself."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.component import Component
from metalearn.tasks import TASKS, render
from metalearn.tasks.prepared.published_folders import PublishedFolder
from metalearn.tasks.prepared.splits import published
from metalearn.testing.sources import COUNT, KEY, SOURCE_CHECKS, SourceCase
from metalearn.tree import leaves

SHAPE = {"shots": 2, "queries": 3}  # of every task here; classification adds ways
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="session")
def small_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with an archive of five small images of every class of a published split."""
    root, draw = tmp_path_factory.mktemp("archives"), np.random.default_rng(0)
    for name in (name for name, kind in TASKS.items() if issubclass(kind, PublishedFolder)):
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for label in (label for part in published(name).values() for label in part):
                for number in range(5):
                    file = io.BytesIO()
                    Image.fromarray(draw.integers(0, 256, (3, 3, 3), np.uint8)).save(file, "PNG")
                    archive.writestr(f"{label}/{number}.png", file.getvalue())
    return root


@pytest.fixture
def options(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> dict[str, Any]:
    """Options of a source that builds quickly; sources without an entry use their defaults."""
    if name.startswith("omniglot"):
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
    if issubclass(TASKS[name], PublishedFolder):
        root = request.getfixturevalue("small_archives")
        monkeypatch.setenv("METALEARN_DATA", str(root))
        return {"size": 16, "ways": 3, **SHAPE}
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


each_source = pytest.mark.parametrize("name", [name for name in TASKS if name not in OBJECTIVES])


@each_source
@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__[6:])
def test_every_source(name: str, check: Any, options: dict[str, Any]) -> None:
    check(SourceCase(TASKS[name], options, {}))


@pytest.mark.parametrize(("name", "component"), TASKS.items())
def test_components_keep_their_form(name: str, component: type[Component]) -> None:
    """Constructible from defaults, frozen, equal after JSON; unknown fields are refused."""
    required = {field for field, info in component.model_fields.items() if info.is_required()}
    given = {"path": "somewhere", "sources": ({"source": "digits"},)}
    assert required <= set(given)
    given = {name: value for name, value in given.items() if name in required}
    made = component(**given)
    assert made.source == name and component.model_validate_json(made.model_dump_json()) == made  # type: ignore[attr-defined]
    assert all(info.description for info in component.model_fields.values())
    assert component.sentence().endswith(".")
    with pytest.raises(ValueError, match="frozen"):
        made.source = name  # type: ignore[attr-defined]
    for wrong in ({"shot": 1}, {"shots": 0}, {"queries": -1}, {"ways": 0}):
        with pytest.raises(ValueError):
            component(**given, **wrong)


@pytest.mark.gpu
@each_source
def test_a_gpu_draws_the_same_episodes(name: str, options: dict[str, Any]) -> None:
    """Whole numbers alike, floats within rounding."""
    given = SourceCase(TASKS[name], options, {})
    here, there = (given.build(device=one).sample(KEY, COUNT) for one in ("cpu", "cuda"))
    for a, b in zip(leaves(here), leaves(there), strict=True):
        assert b.device.type == "cuda"
        torch.testing.assert_close(a, b.cpu(), rtol=1e-5, atol=1e-5)
