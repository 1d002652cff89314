"""`metalearn nas race`: searchers on a table whose truth is known, against random search and
against its theory.

Two reckonings. `truth`: a searcher is told the mean query value over all tasks, so it searches the
truth itself. `scores`: each task alone; a searcher is told the scores of its support set, and the
pick is worth what the task's queries say. After n evaluations the pick is the best of what n full
trainings paid for. Searchers that train networks themselves are given each task's support set, as
in per-task search, and their pick is placed among all networks.

A verdict says worse where the 95 % t interval (over seeds) of the paired difference of regret to
random search lies above 0 and the difference above 1 % of the regret of a network drawn at random,
better where it lies below 0, and not worse otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from metalearn.component import Component
from metalearn.config.build import DTYPES
from metalearn.config.overrides import split
from metalearn.config.registry import TABLES
from metalearn.config.validate import validated
from metalearn.errors import ConfigError, DataError, did_you_mean
from metalearn.evaluate.curves import fingerprint
from metalearn.logger import log
from metalearn.machine import device_of
from metalearn.nas import SEARCHERS, PerTaskNAS
from metalearn.nas.fit import Folds, divide
from metalearn.nas.search import Data, Searcher, choose, drive
from metalearn.nas.space import Cost, Genotype, Space, classes, words
from metalearn.nas.tabular import Table, load
from metalearn.rng import fold_in
from metalearn.storage.files import plain, write_atomic, write_json
from metalearn.tabular import race_results as results
from metalearn.tree import take, vmap
from metalearn.types import EpisodeSpec, Key, NullLedger, TaskSource

Json = dict[str, Any]
Problems = list[tuple[str, str]]
# Name -> (searcher, the fields that the name stands for). The table alone answers the first.
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
RACERS = {**BY_TABLE, **BY_TRAINING}
HEADER = ("space", "spec", "normalisation", "points", "tasks", "seeds", "training")
ALONE = f"the table alone answers --searcher {', '.join(BY_TABLE)}"


@dataclass(frozen=True)
class Words:
    """What was typed."""

    table: Path
    searchers: Sequence[str] = ()
    sets: Sequence[str] = ()
    budget: int = 64
    seeds: int = 20
    out: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None
    device: str = "cpu"


class Tasks(NamedTuple):
    """The table's tasks, as searchers that train are given them."""

    folds: Folds  # leading T, L
    keys: Key  # [T], of per-task search


@dataclass(frozen=True)
class Ready:
    """Everything checked: who races, on what."""

    table: Table
    space: Space
    racers: dict[str, Component]
    searchers: dict[str, Searcher]
    tasks: Tasks | None


def race(asked: Words) -> Json:
    """Run every searcher, then print and write what was found; nothing is written before all of it
    is there.
    """
    ready = check(asked)
    fields = results.landscapes(ready.table)
    curves = [
        row
        for name in ready.racers
        if name in BY_TABLE
        for row in _curves(ready, name, fields, asked)
    ]
    found = plain(
        {
            "schema": 1,
            "table": str(asked.table),
            "header": ready.table.header,
            "budget": asked.budget,
            "seeds": asked.seeds,
            "networks": len(ready.table.genotypes),
            "diverged": ready.table.diverged,
            "chance": {reckoning: results.chance(lands) for reckoning, lands in fields.items()},
            "curves": curves,
            "paired": _paired(curves, fields),
            "rule": results.RULE,
            "picks": [_picks(ready, name, asked) for name in ready.racers if name in BY_TRAINING],
            "noise": results.noise(ready.table),
        }
    )
    _store(asked, dict(found))
    return dict(found)


def _curves(
    ready: Ready, name: str, fields: dict[str, list[results.Landscape]], asked: Words
) -> list[Json]:
    """The two rows of a searcher that the table answers."""
    evaluations, rows = results.counts(asked.budget), []
    for reckoning, lands in fields.items():
        log.info(f"{name}, {reckoning}: {asked.seeds * len(lands)} searches")
        picks = results.raced(
            ready.table, ready.space, ready.searchers[name], lands, asked.seeds, evaluations
        )
        row = {
            "searcher": name,
            "reckoning": reckoning,
            "options": ready.racers[name].model_dump(mode="json"),
        }
        row |= results.curve(picks, lands, evaluations)
        rows.append(row | (results.theory(picks, lands, evaluations) if name == "random" else {}))
    return rows


def _paired(curves: Sequence[Json], fields: dict[str, list[results.Landscape]]) -> list[Json]:
    """Every other searcher against random search at the whole budget, on the same seeds."""
    random = {row["reckoning"]: row for row in curves if row["searcher"] == "random"}
    found = []
    for row in curves:
        if row["searcher"] != "random":
            which = row["reckoning"]
            other, of_chance = random[which], results.chance(fields[which])
            said = results.paired(
                row["at_budget"], other["at_budget"], other["exact"][-1], of_chance
            )
            found.append(
                {"searcher": row["searcher"], "against": "random", "reckoning": which, **said}
            )
    return found


def _picks(ready: Ready, name: str, asked: Words) -> Json:
    """The places of the picks of a searcher that trains: it is given one task after the other, and
    no query.
    """
    assert ready.tasks is not None
    folds, keys = ready.tasks
    rows, lands = results.rows_of(ready.table), results.landscapes(ready.table)["scores"]
    genotypes: list[Genotype] = []
    for task, land in enumerate(lands):
        log.info(f"{name}: task {task + 1} of {len(lands)}")
        data = Data(take(folds, task), NullLedger())
        search = ready.searchers[name](fold_in(keys[task], "searcher"), asked.budget, data)
        trials = drive(search, results.asked(rows, land), asked.budget)
        genotypes.append(choose(ready.space, trials, 0.0).genotype)
    found = results.placed(genotypes, ready.table, asked.budget)
    for place, genotype in zip(found["tasks"], genotypes):
        place["words"] = words(ready.space, genotype)
    return {"searcher": name, "options": ready.racers[name].model_dump(mode="json"), **found}


def _store(asked: Words, found: Json) -> None:
    from metalearn.tabular import figures as looks

    looks.show(found)
    for row in found["curves"]:
        if not row.get("agrees", True):
            log.warning(
                f"random search, {row['reckoning']}: its mean regret is not what theory says"
            )
    if asked.out is not None:
        write_json(asked.out, found)
    drawn = asked.plot if found["curves"] else None
    if drawn is not None:
        write_atomic(drawn, looks.drawing(found).encode())
    if asked.markdown is not None:
        looks.write_markdown(asked.markdown, found, drawn)
    written = [str(path) for path in (asked.out, drawn, asked.markdown) if path is not None]
    if written:
        log.info(f"written: {', '.join(written)}")


# what was asked for


def check(asked: Words) -> Ready:
    """Table, searchers, files and numbers, before anything is run; ConfigError with all that is
    wrong.
    """
    problems: Problems = []
    racers = chosen(asked, problems)
    if asked.seeds < 2:
        problems.append(("--seeds", f"{asked.seeds} should be at least 2: an interval needs two"))
    if asked.budget < 1:
        problems.append(("--budget", f"{asked.budget} should be at least 1"))
    try:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device_of(asked.device)):
            raise ConfigError(("", f"{asked.device!r} should be auto, cpu, cuda or cuda:<n>"))
    except ConfigError as error:
        problems += [("--device", text) for _, text in error.problems]
    _outputs(asked, problems)
    searchers: dict[str, Searcher] = {}
    try:
        table = opened(asked.table)
        _usable(table, asked, problems)
        trains = any(name in BY_TRAINING for name in racers)
        space, tasks = rebuilt(table, str(asked.table), trains, asked.device)
    except ConfigError as error:
        raise ConfigError(*problems, *error.problems) from None
    for name, racer in racers.items():
        try:
            searchers[name] = racer.build(space)  # type: ignore[attr-defined]
        except ConfigError as error:
            problems += [(name, text) for _, text in error.problems]
    if problems:
        raise ConfigError(*problems)
    return Ready(table, space, racers, searchers, tasks)


def chosen(asked: Words, problems: Problems) -> dict[str, Component]:
    """The searchers with their fields; random search is among them where the table answers any."""
    names = list(dict.fromkeys(asked.searchers or RACERS))
    unknown = [name for name in names if name not in RACERS]
    problems += [
        ("--searcher", f"no searcher is called {name!r}; {did_you_mean(name, RACERS)}")
        for name in unknown
    ]
    if any(name in BY_TABLE for name in names):
        names = list(dict.fromkeys(("random", *names)))
    given = _fields(asked.sets, names, problems)
    made: dict[str, Component] = {}
    for name in (name for name in names if name in RACERS):
        kind, fixed = RACERS[name]
        racer = validated(
            SEARCHERS[kind], {"name": kind, **given.get(name, {}), **fixed}, name, problems
        )
        if racer is not None:
            made[name] = racer
    return made


def _fields(sets: Sequence[str], names: Sequence[str], problems: Problems) -> dict[str, Json]:
    """`evolution.population=8` -> {"evolution": {"population": 8}}."""
    given: dict[str, Json] = {}
    for text in sets:
        try:
            path, value = split(text)
        except ConfigError:
            path, value = [], None
        if len(path) != 2:
            problems.append(
                (
                    "--set",
                    f"{text!r} should be SEARCHER.FIELD=VALUE, such as evolution.population=8",
                )
            )
        elif path[0] not in RACERS:
            problems.append(
                (
                    "--set",
                    f"{text!r}: no searcher is called {path[0]!r}; {did_you_mean(path[0], RACERS)}",
                )
            )
        elif path[0] not in names:
            problems.append(
                ("--set", f"{text!r}: {path[0]} does not race; add --searcher {path[0]}")
            )
        elif path[1] in ("name", *RACERS[path[0]][1]):
            problems.append(("--set", f"{text!r}: {path[1]} is what the name {path[0]} stands for"))
        else:
            given.setdefault(path[0], {})[path[1]] = value
    return given


def _outputs(asked: Words, problems: Problems) -> None:
    """Files that can be written, none of them another or the table."""
    paths = {"--out": asked.out, "--markdown": asked.markdown, "--plot": asked.plot}
    given = {option: path for option, path in paths.items() if path is not None}
    for option, path in given.items():
        if path.is_dir():
            problems.append((option, f"{path} is a folder: name a file"))
        wall = next(
            (parent for parent in path.parents if parent.exists() and not parent.is_dir()), None
        )
        if wall is not None:
            problems.append((option, f"{path} cannot be written: {wall} is no folder"))
        if path.resolve() == asked.table.resolve():
            problems.append((option, f"{path} is the table itself: give another name"))
    if asked.plot is not None and asked.plot.suffix != ".svg":
        problems.append(("--plot", f"{asked.plot} should end in .svg"))
    for (one, path), (other, second) in combinations(given.items(), 2):
        if path.resolve() == second.resolve():
            problems.append((other, f"{second} is the file of {one}, too: give two names"))


def opened(path: Path) -> Table:
    """The table of a file; DataError for a file that is none."""
    table = load(path)
    lacks = [name for name in HEADER if name not in table.header]
    if lacks:
        raise DataError(
            (
                str(path),
                f"is no table of metalearn nas tabulate: its header lacks {', '.join(lacks)}",
            )
        )
    return table


def _usable(table: Table, asked: Words, problems: Problems) -> None:
    """A table on which a race means something."""
    place, done, networks = str(asked.table), int(table.done.sum()), len(table.done)
    if not table.complete:
        text = (
            f"holds {done} of {networks} networks: finish it with the metalearn nas "
            f"tabulate that began it"
        )
        problems.append((place, text))
    elif table.hopeless:
        text = (
            "half of the networks diverge at the first point on some task: train with a "
            "smaller inner_lr"
        )
        problems.append((place, text))
    if asked.budget > networks:
        problems.append(("--budget", f"{asked.budget} is above the table's {networks} networks"))


# from a table's header


def rebuilt(table: Table, place: str, trains: bool, device: str) -> tuple[Space, Tasks | None]:
    """The space, whose costs are the table's, and, where a searcher trains, the tasks that the
    table was made on.
    """
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
    rows = results.rows_of(table)
    if sorted(rows) != sorted(classes(space)):
        text = (
            f"holds {len(rows)} networks, which are not the {len(classes(space))} of {space.name}"
        )
        raise ConfigError((place, text))

    def cost(genotype: Genotype) -> Cost:
        return Cost(int(table.params[rows[genotype]]), int(table.flops[rows[genotype]]))

    space = space._replace(cost=cost)
    return space, None if source is None else _tasks(header, source, options)


def _tasks(header: Json, source: TaskSource, options: PerTaskNAS) -> Tasks:
    """The folds and keys with which per-task search meets these tasks when the evaluator hands it
    them.
    """
    episodes = source.sample(fold_in(header["episodes_seed"], "episodes"), header["tasks"])
    keys = fold_in(episodes.info["key"], "learn", "search")
    divided = vmap(lambda one, key: divide(source.spec, one, key, options.folds, options.repeats))
    return Tasks(divided(episodes.support, fold_in(keys, "folds")), keys)


def source_of(header: Json, place: str, device: str) -> TaskSource:
    """Where the table's tasks come from; ConfigError where the header does not say, or where other
    tasks come out.
    """
    lacks = [
        name
        for name in ("task", "split", "episodes_seed", "fingerprint", "dtype")
        if name not in header
    ]
    if lacks:
        raise ConfigError(
            (
                place,
                f"does not say which tasks to train on: its header lacks {', '.join(lacks)}; "
                f"{ALONE}",
            )
        )
    problems: Problems = []
    sources, name = TABLES["tasks"], str(header["task"].get("source"))
    if name not in sources:
        raise ConfigError(
            (place, f"is of a task source {name!r} that does not exist here; {ALONE}")
        )
    task: Any = validated(sources[name], header["task"], "task", problems)
    if problems:
        raise ConfigError(*((place, f"{where} {text}; {ALONE}") for where, text in problems))
    options = {
        "split": header["split"],
        "seed": 0,
        "device": device_of(device),
        "dtype": DTYPES[header["dtype"]],
    }
    try:
        source: TaskSource = task.build(**options)
    except ConfigError as error:
        raise ConfigError(
            *((f"{place}: {where}", f"{text}; {ALONE}") for where, text in error.problems)
        ) from error
    if fingerprint(source, header["episodes_seed"]) != header["fingerprint"]:
        raise ConfigError(
            (
                place,
                f"was made on other tasks than its header makes here (another fingerprint); "
                f"{ALONE}",
            )
        )
    return source
