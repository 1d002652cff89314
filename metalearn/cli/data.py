"""`metalearn data list | prepare NAME | verify NAME`: lines of text, or ConfigError."""

from __future__ import annotations

from metalearn.errors import ConfigError, did_you_mean
from metalearn.tasks import DATA_SET_OF, DATA_SETS
from metalearn.tasks.store import DataSet, data_root


def lines() -> list[str]:
    """Return every data set with its description and whether it is prepared."""
    width = max(len(name) for name in DATA_SETS)
    head = [f"data folder: {data_root()} (set METALEARN_DATA to use another)"]
    rows = []
    for name, entry in DATA_SETS.items():
        files = entry.prepared()
        state = f"prepared: {files[0]}" if files else entry.absent
        rows.append(f"{name:<{width}}  {entry.sentence}; {state}")
    return [
        *head,
        *rows,
        "your own images need no preparation: task source image_folder, one folder per class",
    ]


def prepare(name: str) -> list[str]:
    """Fetch or render a data set into the data folder, unless it is there; raises ConfigError."""
    return _entry(name).prepare()


def verify(name: str) -> list[str]:
    """Check the content of a prepared data set; raises ConfigError."""
    return _entry(name).verify()


def _entry(name: str) -> DataSet:
    """Return the data set of a name, or that of a task source."""
    name = DATA_SET_OF.get(name, name)
    if name not in DATA_SETS:
        raise ConfigError(("NAME", f"unknown data set {name!r}; {did_you_mean(name, DATA_SETS)}"))
    return DATA_SETS[name]
