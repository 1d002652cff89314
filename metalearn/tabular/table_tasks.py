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
    """The table's tasks in the form that searchers that train get."""

    folds: Folds  # leading T, L
    keys: Key  # [T], of per-task search


def open_table(path: Path) -> Table:
    """Return the table of a file; raises DataError for any other file."""
    table = load(path)
    lacks = [name for name in HEADER if name not in table.header]
    if lacks:
        text = f"is not a table of metalearn nas tabulate: its header lacks {', '.join(lacks)}"
        raise DataError((str(path), text))
    return table


def rebuild(table: Table, file: str, trains: bool, device: str) -> tuple[Space, Tasks | None]:
    """Return the space with the table's costs and, if a searcher trains, the table's tasks."""
    header = table.header
    try:
        options = PerTaskNAS.model_validate(header["training"])
        policy, fields = header["normalisation"], header["spec"]
        outputs = fields["ways"] if fields["kind"] == "classification" else 1
        spec = EpisodeSpec(
            fields["kind"],
            fields["ways"],
            fields["shots"],
            1,
            tuple(fields["x_shape"]),
            outputs,
            fields["ways"],
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError((file, f"has a header that cannot be read: {error}")) from error
    source = build_source(header, file, device) if trains else None
    space: Space = options.space.build(spec if source is None else source.spec, policy)
    rows = results.row_numbers(table)
    if sorted(rows) != sorted(classes(space)):
        text = f"holds {len(rows)} networks, which are not"
        raise ConfigError((file, f"{text} the {len(classes(space))} of {space.name}"))

    def cost(genotype: Genotype) -> Cost:
        return Cost(int(table.params[rows[genotype]]), int(table.flops[rows[genotype]]))

    space = space._replace(cost=cost)
    return space, None if source is None else _tasks(header, source, options)


def _tasks(header: Json, source: TaskSource, options: PerTaskNAS) -> Tasks:
    """Return the folds and keys that per-task search has for these tasks in an evaluation."""
    episodes = source.sample(fold_in(header["episodes_seed"], "episodes"), header["tasks"])
    keys = fold_in(episodes.info["key"], "learn", "search")
    divide_tasks = vmap(
        lambda support, key: divide(source.spec, support, key, options.folds, options.repeats)
    )
    return Tasks(divide_tasks(episodes.support, fold_in(keys, "folds")), keys)


def build_source(header: Json, file: str, device: str) -> TaskSource:
    """Return the source of the table's tasks; raises ConfigError if unknown or changed."""
    lacks = [name for name in TASKS if name not in header]
    if lacks:
        text = f"does not specify its tasks: its header lacks {', '.join(lacks)}"
        raise _task_error((file, text))
    problems: Problems = []
    sources, name = TABLES["tasks"], str(header["task"].get("source"))
    if name not in sources:
        raise _task_error((file, f"has the unknown task source {name!r}"))
    task: Any = validated(sources[name], header["task"], "task", problems)
    if problems:
        raise _task_error(*((file, f"{where} {text}") for where, text in problems))
    dtype, device = DTYPES[header["dtype"]], device_of(device)
    try:
        source: TaskSource = task.build(split=header["split"], seed=0, device=device, dtype=dtype)
    except ConfigError as error:
        task_problems = ((f"{file}: {where}", text) for where, text in error.problems)
        raise _task_error(*task_problems) from error
    if fingerprint(source, header["episodes_seed"]) != header["fingerprint"]:
        text = "was made with other tasks than its header gives here (different fingerprint)"
        raise _task_error((file, text))
    return source


def _task_error(*problems: tuple[str, str]) -> ConfigError:
    """Return an error about the tasks, which searchers that use the table alone do not need."""
    hint = "search algorithms that do not train need no tasks: select them with --searcher"
    return ConfigError(*((location, f"{text}; {hint}") for location, text in problems))
