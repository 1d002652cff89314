"""`metalearn data list | prepare NAME | verify NAME`: the functions behind it; lines of text, or
ConfigError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from metalearn.errors import ConfigError, did_you_mean
from metalearn.tasks import images, omniglot, store


class DataSet(NamedTuple):
    """A data set that has to be prepared before its first use, or on it."""

    sentence: str
    state: Callable[[], str]
    prepare: Callable[[], list[str]]
    verify: Callable[[], list[str]]


def lines() -> list[str]:
    """Every data set with its sentence and whether it is here."""
    width = max(len(name) for name in DATA_SETS)
    head = [f"data folder: {store.data_root()} (set METALEARN_DATA to use another)"]
    rows = [
        f"{name:<{width}}  {entry.sentence}; {entry.state()}" for name, entry in DATA_SETS.items()
    ]
    return [
        *head,
        *rows,
        "your own images need no preparation: task source image_folder, one folder of images a "
        "class",
    ]


def prepare(name: str) -> list[str]:
    """Fetch or render a data set into the data folder, unless it is there; raises ConfigError."""
    return _entry(name).prepare()


def verify(name: str) -> list[str]:
    """Check a prepared data set against what it must hold; raises ConfigError."""
    return _entry(name).verify()


def _entry(name: str) -> DataSet:
    if name not in DATA_SETS:
        raise ConfigError(("NAME", f"no data set {name!r}; {did_you_mean(name, DATA_SETS)}"))
    return DATA_SETS[name]


def _omniglot_state() -> str:
    path = omniglot.prepared_path()
    return (
        f"prepared: {path}"
        if path.exists()
        else "not prepared; run `metalearn data prepare omniglot`"
    )


def _glyphs() -> list[str]:
    """Render, or read from the cache, and say what is there."""
    from metalearn.tasks.glyphs import Glyphs

    found = []
    for split in images.SPLITS:
        source = Glyphs(ways=2, shots=1, queries=1).build(split=split)
        found.append(
            f"glyphs {split}: {source.spec.num_classes} letters, data sha256 {source.data_sha256}"
        )
    return found


DATA_SETS = {
    "omniglot": DataSet(
        "1,623 handwritten characters of 50 alphabets, 20 drawings each, 28x28 (Lake et al. 2015)",
        _omniglot_state,
        omniglot.prepare,
        omniglot.verify,
    ),
    "glyphs": DataSet(
        "letters of many scripts rendered from the fonts that matplotlib ships",
        lambda: "needs no download; rendered on first use and cached",
        _glyphs,
        _glyphs,
    ),
}
