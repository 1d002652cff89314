"""`metalearn nas tabulate`: every network of a space trained on an experiment's test tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Grid

from metalearn.config import experiment as config
from metalearn.config.build import DTYPES
from metalearn.config.overrides import apply_overrides
from metalearn.config.validate import validated
from metalearn.errors import ConfigError, did_you_mean
from metalearn.evaluate.curves import fingerprint, learn_keys
from metalearn.logger import log
from metalearn.machine import cores, device_of, set_threads
from metalearn.nas import SPACES, PerTaskNAS
from metalearn.nas.spaces.space import Space, describe
from metalearn.nas.tabular import (
    Table,
    empty,
    load,
    mean_architecture,
    measure,
    random_control,
    with_row,
)
from metalearn.rng import fold_in
from metalearn.storage.files import write_atomic
from metalearn.storage.lock import lock_folder
from metalearn.types import Episode, Key, TaskSource

LARGEST = 2000  # networks of a table
EVERY = 5.0  # seconds between two writes of an unfinished table
SECTIONS = ("task", "model", "run", "evaluate")


def tabulate(
    name: str,
    task: str,
    overrides: Sequence[str],
    out: Path | None,
    tasks: int,
    seeds: int,
    points: Sequence[int],
) -> None:
    """Train every network of a space and store truth and scores in one file, resumably."""
    experiment, source, options, space = _parts(name, task, overrides)
    path = out or Path("runs") / "tables" / f"{name}-{experiment.name}.npz"
    # as in learning_curve: the table has the test tasks themselves
    key = fold_in(experiment.evaluate.seed, "episodes")
    facts = {
        "task": experiment.test_task.model_dump(mode="json"),
        "split": source.spec.split,
        "data_sha256": getattr(source, "data_sha256", ""),
        "episodes_seed": experiment.evaluate.seed,
        "fingerprint": fingerprint(source, experiment.evaluate.seed),
        "torch": torch.__version__,
        "dtype": experiment.run.dtype,
    }
    fresh = empty(space, options, points, tasks, seeds, facts)
    if (count := len(fresh.genotypes)) > LARGEST:
        text = f"has {count} different networks, more than {LARGEST}: use a small search space"
        raise ConfigError((name, f"{text} (conv4-micro, mlp-reg, conv4-size)"))
    with lock_folder(path.with_suffix(".lock.d")):
        table = _load_or_start(path, fresh)
        set_threads(experiment.run.threads or cores())
        episodes = source.sample(key, tasks)
        keys = learn_keys(episodes.info["key"])
        table = _fill(table, space, options, points, seeds, episodes, keys, path)
    _show(table, space)
    print(f"table: {path}")


def parse_points(option: str) -> tuple[int, ...]:
    """`1,2,5` -> (1, 2, 5); ConfigError for anything but ascending whole numbers above 0."""
    entries = [entry.strip() for entry in option.split(",")]
    points = tuple(int(entry) for entry in entries if entry.isdecimal())
    if len(points) != len(entries) or list(points) != sorted(set(points)) or points[0] < 1:
        text = f"must be ascending integers >= 1, such as 1,2,5,10,20 (got {option!r})"
        raise ConfigError(("--points", text))
    return points


def _parts(
    name: str, task: str, overrides: Sequence[str]
) -> tuple[config.Experiment, TaskSource, PerTaskNAS, Space]:
    if name not in SPACES:
        raise ConfigError((name, f"unknown search space; {did_you_mean(name, SPACES)}"))
    experiment_overrides = [text for text in overrides if text.partition(".")[0] in SECTIONS]
    plan = config.load(task, experiment_overrides)
    experiment = plan.experiments[0]
    methods = [
        entry.method
        for entry in plan.experiments
        if isinstance(entry.method, PerTaskNAS) and entry.method.space.name == name
    ]
    start: dict[str, Any]
    if methods:
        start = methods[0].model_dump(mode="json")
    else:
        start = {"space": _space_fields(name, experiment)}
    method_overrides = [f"method.{text}" for text in overrides if text not in experiment_overrides]
    data, _ = apply_overrides({"method": start}, method_overrides)
    problems: list[tuple[str, str]] = []
    options = validated(PerTaskNAS, data["method"], "", problems)
    if problems or not isinstance(options, PerTaskNAS):
        raise ConfigError(*((location.removeprefix("."), text) for location, text in problems))
    dtype = DTYPES[experiment.run.dtype]
    device = device_of(experiment.run.device)
    source: TaskSource = experiment.test_task.build(
        split=experiment.evaluate.split, seed=0, device=device, dtype=dtype
    )
    policy: Any = experiment.model.build(source.spec).normalisation
    return experiment, source, options, options.space.build(source.spec, policy)


def _space_fields(name: str, experiment: config.Experiment) -> dict[str, Any]:
    """Return the fields of a space; shared ones, such as filters, are the experiment's model's."""
    fields = SPACES[name].model_fields
    model = experiment.model.model_dump(mode="json")
    return {**{key: value for key, value in model.items() if key in fields}, "name": name}


def _load_or_start(path: Path, fresh: Table) -> Table:
    if not path.exists():
        return fresh
    stored = load(path)
    if stored.header != fresh.header:
        changed = sorted(key for key in fresh.header if stored.header.get(key) != fresh.header[key])
        text = f"contains another table ({', '.join(changed)} differ): choose another --out"
        raise ConfigError((str(path), text))
    return stored


def _fill(
    table: Table,
    space: Space,
    options: PerTaskNAS,
    points: Sequence[int],
    seeds: int,
    episodes: Episode,
    keys: Key,
    path: Path,
) -> Table:
    """Train the networks that are not trained yet.

    The table is written every few seconds, and if an exception ends the training."""
    todo = [number for number, trained in enumerate(table.done) if not trained]
    begin = written = time.monotonic()
    try:
        for count, number in enumerate(todo, 1):
            genotype = tuple(int(choice) for choice in table.genotypes[number])
            table = with_row(
                table, number, measure(space, options, points, seeds, episodes, keys, genotype)
            )
            if time.monotonic() - written > EVERY or count == len(todo):
                write_atomic(path, table.save())
                written = time.monotonic()
                seconds_left = (written - begin) / count * (len(todo) - count)
                text = f"{int(table.done.sum())} of {len(table.done)} networks, about"
                log.info(f"{text} {seconds_left / 60:.0f} min left")
    except BaseException:
        if table.done.any():
            write_atomic(path, table.save())
        raise
    return table


def _show(table: Table, space: Space) -> None:
    """Print the best networks, and the regret of random search."""
    values = table.values(None)
    metric, sign = ("accuracy", 1) if table.classification else ("loss", -1)
    grid = Grid("network", metric, "parameters", "FLOPs")
    for row in (-values).argsort(kind="stable")[:5]:
        genotype = tuple(int(choice) for choice in table.genotypes[row])
        grid.add_row(
            describe(space, genotype),
            f"{sign * values[row]:.4f}",
            f"{table.params[row]:,}",
            f"{table.flops[row]:,}",
        )
    Console().print(grid)
    if table.unbounded:
        text = "half of the networks diverge at the first point on some task"
        print(f"{text}: train with a smaller inner_lr")
    elif table.diverged:
        counted = "" if table.classification else " and count as the largest loss that counts"
        print(f"{table.diverged:.2%} of the trainings diverged{counted}")
    print(f"a network drawn at random: regret {mean_architecture(table):.4f}")
    for draws in (4, 16, 64):
        if draws < len(values):
            exact = random_control(table, draws, truth=True)
            text = f"random search, {draws} candidates: regret {exact:.4f}, by support sets alone"
            print(f"{text} {random_control(table, draws):.4f}")
    default = space.canonical(space.default)
    print(
        f"the field's own network: regret {values.max() - values[table.index(space, default)]:.4f}"
    )
