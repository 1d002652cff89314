"""The space and the tasks that a table was made on, rebuilt from its header."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from metalearn.config.build import DTYPES
from metalearn.config.registry import TABLES
from metalearn.config.validate import validated
from metalearn.errors import ConfigError, DataError
from metalearn.evaluate.curves import fingerprint
from metalearn.machine import device_of
from metalearn.nas import PerTaskNAS
from metalearn.nas.fit import Folds, divide
from metalearn.nas.spaces.space import Cost, Genotype, Space, classes
from metalearn.nas.tabular import Table, load
from metalearn.rng import fold_in
from metalearn.tabular import race_results as results
from metalearn.tree import vmap
from metalearn.types import EpisodeSpec, Key, TaskSource

Json = dict[str, Any]
Problems = list[tuple[str, str]]
HEADER = ("space", "spec", "normalisation", "points", "tasks", "seeds", "training")
TASKS = ("task", "split", "episodes_seed", "fingerprint", "dtype")


class Tasks(NamedTuple):
    """The table's tasks, as searchers that train are given them."""

    folds: Folds  # leading T, L
    keys: Key  # [T], of per-task search


def opened(path: Path) -> Table:
    """The table of a file; DataError for a file that is none."""
    table = load(path)
    lacks = [name for name in HEADER if name not in table.header]
    if lacks:
        text = f"is not a table of metalearn nas tabulate: its header lacks {', '.join(lacks)}"
        raise DataError((str(path), text))
    return table


def rebuilt(table: Table, place: str, trains: bool, device: str) -> tuple[Space, Tasks | None]:
    """The space with the table's costs and, where a searcher trains, the table's tasks."""
    header = table.header
    try:
        options = PerTaskNAS.model_validate(header["training"])
        policy, made = header["normalisation"], header["spec"]
        outputs = made["ways"] if made["kind"] == "classification" else 1
        spec = EpisodeSpec(
            made["kind"],
            made["ways"],
            made["shots"],
            1,
            tuple(made["x_shape"]),
            outputs,
            made["ways"],
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError((place, f"has a header that cannot be read: {error}")) from error
    source = source_of(header, place, device) if trains else None
    space: Space = options.space.build(spec if source is None else source.spec, policy)
    rows = results.row_numbers(table)
    if sorted(rows) != sorted(classes(space)):
        text = f"holds {len(rows)} networks, which are not"
        raise ConfigError((place, f"{text} the {len(classes(space))} of {space.name}"))

    def cost(genotype: Genotype) -> Cost:
        return Cost(int(table.params[rows[genotype]]), int(table.flops[rows[genotype]]))

    space = space._replace(cost=cost)
    return space, None if source is None else _tasks(header, source, options)


def _tasks(header: Json, source: TaskSource, options: PerTaskNAS) -> Tasks:
    """The folds and keys with which per-task search meets these tasks when the evaluator hands it
    them."""
    episodes = source.sample(fold_in(header["episodes_seed"], "episodes"), header["tasks"])
    keys = fold_in(episodes.info["key"], "learn", "search")
    divided = vmap(lambda one, key: divide(source.spec, one, key, options.folds, options.repeats))
    return Tasks(divided(episodes.support, fold_in(keys, "folds")), keys)


def source_of(header: Json, place: str, device: str) -> TaskSource:
    """The source of the table's tasks; ConfigError where it is unknown or gives others."""
    lacks = [name for name in TASKS if name not in header]
    if lacks:
        text = f"does not specify its tasks: its header lacks {', '.join(lacks)}"
        raise _only_the_table((place, text))
    problems: Problems = []
    sources, name = TABLES["tasks"], str(header["task"].get("source"))
    if name not in sources:
        raise _only_the_table((place, f"has the unknown task source {name!r}"))
    task: Any = validated(sources[name], header["task"], "task", problems)
    if problems:
        raise _only_the_table(*((place, f"{where} {text}") for where, text in problems))
    dtype, on = DTYPES[header["dtype"]], device_of(device)
    try:
        source: TaskSource = task.build(split=header["split"], seed=0, device=on, dtype=dtype)
    except ConfigError as error:
        found = ((f"{place}: {where}", text) for where, text in error.problems)
        raise _only_the_table(*found) from error
    if fingerprint(source, header["episodes_seed"]) != header["fingerprint"]:
        text = "was made with other tasks than its header gives here (different fingerprint)"
        raise _only_the_table((place, text))
    return source


def _only_the_table(*problems: tuple[str, str]) -> ConfigError:
    """Problems of the tasks, which searchers that the table alone answers do not need."""
    hint = "search algorithms that do not train need no tasks: select them with --searcher"
    return ConfigError(*((place, f"{text}; {hint}") for place, text in problems))
