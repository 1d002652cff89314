"""The default data set: letters of many scripts, drawn from the fonts that matplotlib ships."""

from __future__ import annotations

import hashlib
import warnings
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from metalearn.component import option
from metalearn.errors import ConfigError, DataError
from metalearn.tasks import images, render, store

FORMAT = 1  # of the rendering and its file: increment it with every change of either


class Glyphs(images.ImageTask):
    """Letters of 15 scripts, 28x28, with handwriting-like variation; splits share no script.

    About 1,270 classes of 20 drawings each (metalearn/tasks/render.py describes how they are made):
    960 for training (Latin, Cyrillic, Canadian syllabics, Arabic, Coptic, Ogham, Lisu, Old Italic),
    140 for validation (Georgian, Hebrew, N'Ko), 170 for test (Greek, Armenian, Tifinagh, Lao); the
    exact numbers depend on the fonts of the installed matplotlib. A shape that several scripts
    share is one class of one script, so that it is in one split alone. Images are [1, 28, 28] in
    0..1, ink bright. Build's seed selects the rendering, which is cached as one file; the letters
    are the same for every seed. A rendering takes about 10 s of one core. Raises ConfigError,
    DataError.

    >>> source = ml.tasks.Glyphs(ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 1, 28, 28])
    """

    source: Literal["glyphs"] = option("glyphs", "The task source.")

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> images.ImageSource:
        """The source of one split; its `facts` hold the seed and the scripts."""
        problems = images.split_problem(split)
        if problems:  # of an unknown split the number of drawings is known, that of classes is not
            problems += images.episode_problems(1, self.shots, self.queries, 1, render.DRAWINGS)
            raise ConfigError(*problems)
        try:
            rendered = load(seed)
        except DataError as error:
            size_problems = images.episode_problems(
                1, self.shots, self.queries, 1, render.DRAWINGS, split
            )
            raise DataError(*size_problems, *error.problems) from error
        rows = [
            row for row, script in enumerate(rendered.scripts) if script in render.SPLITS[split]
        ]
        problems = images.episode_problems(
            self.ways, self.shots, self.queries, len(rows), render.DRAWINGS, split
        )
        if problems:
            raise ConfigError(*problems)
        source = images.image_source(
            torch.from_numpy(rendered.images[rows]).unsqueeze(2),
            self,
            split=split,
            device=device,
            dtype=dtype,
            data_sha256=store.sha256_of_arrays(rendered.images),
        )
        source.facts["rendering_seed"] = seed
        source.facts["scripts"] = ", ".join(render.SPLITS[split])
        return source


def file_name(seed: int = 0) -> str:
    """Return the name of a rendering's cache file: a hash of all that its content depends on."""
    try:
        versions = [metadata.version(package) for package in ("matplotlib", "pillow", "numpy")]
    except metadata.PackageNotFoundError as error:
        text = f"the letters use the fonts of matplotlib, but {error.name} is not installed"
        raise DataError(("glyphs", f"{text}: pip install {error.name}")) from error
    content = "|".join([str(FORMAT), *versions, str(seed)])
    return f"glyphs-{hashlib.sha256(content.encode()).hexdigest()[:16]}.npz"


def load(seed: int = 0) -> render.Rendered:
    """Return the classes of a seed, from the cache or rendered; a damaged file is replaced.

    Warns if a file is damaged or cannot be written."""
    name = file_name(seed)
    for path in dict.fromkeys((store.data_root() / name, store.cache_root() / name)):
        if path.is_file():
            try:
                return _read(path)
            except DataError as error:
                warnings.warn(f"{error}; rendering glyphs again", stacklevel=2)
    rendered = render.render(seed)
    _write(store.cache_root() / name, rendered)
    return rendered


def _read(path: Path) -> render.Rendered:
    """Read a cached rendering; raises DataError unless shapes fit (zip has checksums)."""
    arrays = store.load_npz(path)
    images_, letters, scripts = (
        arrays.get(name, np.empty(0)) for name in ("images", "letters", "scripts")
    )
    shape = (len(letters), render.DRAWINGS, render.SIDE, render.SIDE)
    if (
        images_.dtype != np.uint8
        or images_.shape != shape
        or len(scripts) != len(letters)
        or not len(letters)
    ):
        text = f"images are {images_.dtype} {images_.shape}, must be uint8 {shape}"
        raise DataError((str(path), text))
    return render.Rendered(images_, letters.tolist(), scripts.tolist())


def _write(path: Path, rendered: render.Rendered) -> None:
    arrays = {
        "images": rendered.images,
        "letters": np.array(rendered.letters),
        "scripts": np.array(rendered.scripts),
    }
    try:
        store.write_npz(path, arrays)
    except OSError as error:  # a full or read-only disk: the next build renders again, in 10 s
        text = f"{path}: the rendered glyphs could not be stored ({error}); they will be rendered"
        warnings.warn(f"{text} again", stacklevel=3)


def _prepare() -> list[str]:
    """Render or read from the cache; returns lines that describe the splits."""
    lines = []
    for split in images.SPLITS:
        source = Glyphs(ways=2, shots=1, queries=1).build(split=split)
        count = source.spec.num_classes
        lines.append(f"glyphs {split}: {count} letters, data sha256 {source.data_sha256}")
    return lines


DATA_SET = store.DataSet(
    "letters of many scripts rendered from the fonts that matplotlib ships",
    files="glyphs*",
    absent="not rendered yet; needs no download, the first use renders it in under a minute",
    on_use=True,
    prepare=_prepare,
    verify=_prepare,
)
