"""The options of `metalearn nas race`: searchers, table and files, checked together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from metalearn.config.overrides import split
from metalearn.config.validate import validated
from metalearn.errors import ConfigError, did_you_mean
from metalearn.machine import device_of
from metalearn.nas import SEARCHERS
from metalearn.nas.searchers.search import Searcher
from metalearn.nas.spaces.space import Space
from metalearn.nas.tabular import Table
from metalearn.tabular.table_tasks import Tasks, open_table, rebuild

Json = dict[str, Any]
Problems = list[tuple[str, str]]
# Name -> (searcher, its fields). Those of BY_TABLE need the table alone.
BY_TABLE: dict[str, tuple[str, Json]] = {
    "random": ("random", {}),
    "evolution": ("evolution", {}),
    "tpe": ("tpe", {}),
    "halving": ("halving", {}),
    "params": ("proxy", {"measure": "params"}),
    "flops": ("proxy", {"measure": "flops"}),
}
BY_TRAINING: dict[str, tuple[str, Json]] = {
    "darts": ("darts", {"first_order": False}),
    "darts-first-order": ("darts", {"first_order": True}),
    "one-shot": ("one-shot", {}),
    "grad_norm": ("proxy", {"measure": "grad_norm"}),
    "snip": ("proxy", {"measure": "snip"}),
    "jacob_cov": ("proxy", {"measure": "jacob_cov"}),
}
UNBOUNDED = (
    "half of the networks diverge at the first point on some task: train with a smaller inner_lr"
)
RACERS = {**BY_TABLE, **BY_TRAINING}


@dataclass(frozen=True)
class RaceOptions:
    """The options of `metalearn nas race`."""

    table: Path
    searchers: Sequence[str] = ()
    sets: Sequence[str] = ()
    budget: int = 64
    seeds: int = 20
    out: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class RaceSetup:
    """The checked racers, and the table and tasks of the race."""

    table: Table
    space: Space
    racers: dict[str, Any]
    searchers: dict[str, Searcher]
    tasks: Tasks | None


def check(options: RaceOptions) -> RaceSetup:
    """Check table, searchers, files and numbers; raises ConfigError with all problems."""
    problems: Problems = []
    racers = chosen(options, problems)
    if options.seeds < 2:
        problems.append(("--seeds", f"must be >= 2 (got {options.seeds}): an interval needs two"))
    if options.budget < 1:
        problems.append(("--budget", f"must be >= 1 (got {options.budget})"))
    try:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device_of(options.device)):
            raise ConfigError(("", f"{options.device!r} must be auto, cpu, cuda or cuda:<n>"))
    except ConfigError as error:
        problems += [("--device", text) for _, text in error.problems]
    _outputs(options, problems)
    searchers: dict[str, Searcher] = {}
    try:
        table = open_table(options.table)
        _usable(table, options, problems)
        trains = any(name in BY_TRAINING for name in racers)
        space, tasks = rebuild(table, str(options.table), trains, options.device)
    except ConfigError as error:
        raise ConfigError(*problems, *error.problems) from None
    for name, racer in racers.items():
        try:
            searchers[name] = racer.build(space)
        except ConfigError as error:
            problems += [(name, text) for _, text in error.problems]
    if problems:
        raise ConfigError(*problems)
    return RaceSetup(table, space, racers, searchers, tasks)


def chosen(options: RaceOptions, problems: Problems) -> dict[str, Any]:
    """Return the searchers with their fields, with random search if any of them uses the table."""
    names = list(dict.fromkeys(options.searchers or RACERS))
    unknown = [name for name in names if name not in RACERS]
    problems += [
        ("--searcher", f"unknown search algorithm {name!r}; {did_you_mean(name, RACERS)}")
        for name in unknown
    ]
    if any(name in BY_TABLE for name in names):
        names = list(dict.fromkeys(("random", *names)))
    fields = _fields(options.sets, names, problems)
    racers: dict[str, Any] = {}
    for name in (name for name in names if name in RACERS):
        kind, fixed = RACERS[name]
        racer = validated(
            SEARCHERS[kind], {"name": kind, **fields.get(name, {}), **fixed}, name, problems
        )
        if racer is not None:
            racers[name] = racer
    return racers


def _fields(sets: Sequence[str], names: Sequence[str], problems: Problems) -> dict[str, Json]:
    """`evolution.population=8` -> {"evolution": {"population": 8}}."""
    fields: dict[str, Json] = {}
    for text in sets:
        try:
            path, value = split(text)
        except ConfigError:
            path, value = [], None
        if len(path) != 2:
            problem = " must be SEARCHER.FIELD=VALUE, such as evolution.population=8"
        elif path[0] not in RACERS:
            problem = f": unknown search algorithm {path[0]!r}; {did_you_mean(path[0], RACERS)}"
        elif path[0] not in names:
            problem = f": {path[0]} is not among the search algorithms; add --searcher {path[0]}"
        elif path[1] in ("name", *RACERS[path[0]][1]):
            problem = f": {path[1]} is fixed by the name {path[0]}"
        else:
            fields.setdefault(path[0], {})[path[1]] = value
            continue
        problems.append(("--set", f"{text!r}{problem}"))
    return fields


def _outputs(options: RaceOptions, problems: Problems) -> None:
    """Check that all files can be written and differ from each other and from the table."""
    paths = {"--out": options.out, "--markdown": options.markdown, "--plot": options.plot}
    outputs = {option: path for option, path in paths.items() if path is not None}
    for option, path in outputs.items():
        if path.is_dir():
            problems.append((option, f"{path} is a directory: use the name of a file"))
        wall = next(
            (parent for parent in path.parents if parent.exists() and not parent.is_dir()), None
        )
        if wall is not None:
            problems.append((option, f"{path} cannot be written: {wall} is not a directory"))
        if path.resolve() == options.table.resolve():
            problems.append((option, f"{path} is the table itself: choose another name"))
    if options.plot is not None and options.plot.suffix != ".svg":
        problems.append(("--plot", f"{options.plot} must end with .svg"))
    for (first_option, path), (second_option, second_path) in combinations(outputs.items(), 2):
        if path.resolve() == second_path.resolve():
            text = f"{second_path} and {first_option} have the same file: choose two names"
            problems.append((second_option, text))


def _usable(table: Table, options: RaceOptions, problems: Problems) -> None:
    """Check that a race on the table is meaningful."""
    file, trained, networks = str(options.table), int(table.done.sum()), len(table.done)
    if not table.complete:
        text = f"contains {trained} of {networks} networks"
        problems.append((file, f"{text}: finish it with the same metalearn nas tabulate command"))
    elif table.unbounded:
        problems.append((file, UNBOUNDED))
    if options.budget > networks:
        problems.append(("--budget", f"{options.budget} is above the table's {networks} networks"))
