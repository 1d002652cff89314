"""Seconds of new tasks, measured for all rows of a comparison in turns, once every row is trained.

Each row is timed ROUNDS times. A round goes through all rows, so that temporary load of the machine
affects all of them equally, with one seed of each: the next one in the next round. Rows with more
than ROUNDS seeds have a round for each.

The seconds of a row are the median over its rounds, whatever the seed: its seeds do the same work,
and a seed alone has one or two rounds, whose median an interruption of one would decide. Only seeds
whose FLOPs per task are not equal, or not known, such as those with an architecture each, have the
medians of their own rounds. The variance between rounds is a part of the intervals of break-even
counts in seconds (results/design/timing.py), as seeds that share a median do not show it.

timing.json holds the rounds so far: an interrupted timing continues with the next round, a finished
one is not repeated. If the rows are not those of timing.json, it starts again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError, Stopped
from metalearn.evaluate.cost_block import work_per_task
from metalearn.logger import log
from metalearn.machine import Activity, clock_mhz, load_average
from metalearn.run.signals import signals
from metalearn.run.timing import TimedRun, open_run, with_timing
from metalearn.storage.files import read_json, write_json
from metalearn.storage.schema import RowsTiming, check_schema, read_result

ROUNDS = 5
FILE = "timing.json"
Json = dict[str, Any]


def time_rows(out: Path, folders: Sequence[Path]) -> bool:
    """Time the finished rows of a comparison, and write the medians to their result.json.

    `folders` are run directories under `out`. Returns False if all of them were timed before."""
    folders_with_result = [folder for folder in folders if (folder / "result.json").exists()]
    rows = {str(folder.relative_to(out)): folder for folder in folders_with_result}
    timing = _read_timing(out, rows)
    if len(timing["rounds"]) < _count(rows):
        with signals(_raise_stopped):
            timing = _measure_rounds(out, rows, timing)
    results = {name: read_result(folder) for name, folder in rows.items()}
    pools = {name: _same_work(name, results) for name in rows if _seconds_of_seed(name, timing)}
    facts = {name: _facts(name, timing, pool) for name, pool in pools.items()}
    new = [name for name in pools if results[name].get("timing") != facts[name]]
    for name in new:
        own, of_method = _seconds_of_seed(name, timing), _seconds_of(pools[name], timing)
        result = with_timing(results[name], own, facts[name], of_method=of_method)
        write_json(rows[name] / "result.json", result)
    return bool(new)


def _same_work(name: str, results: Mapping[str, Json]) -> list[str]:
    """Return the seeds of a row that do the same work per task as this one, itself included."""
    work = work_per_task(results[name]["cost"])
    if work is None:
        return [name]
    row = Path(name).parent
    return [
        other
        for other, result in results.items()
        if Path(other).parent == row and work_per_task(result["cost"]) == work
    ]


def _count(rows: Mapping[str, Path]) -> int:
    """Return the number of rounds."""
    return max([ROUNDS, *Counter(folder.parent for folder in rows.values()).values()])


def _seconds_of_seed(name: str, timing: Json) -> list[Any]:
    """Return the seconds of a seed in the rounds in which it was timed."""
    return [one["seconds"][name] for one in timing["rounds"] if name in one["seconds"]]


def _seconds_of(names: Iterable[str], timing: Json) -> list[Any]:
    """Return the seconds of several seeds in the rounds in which they were timed."""
    return [seconds for name in names for seconds in _seconds_of_seed(name, timing)]


def _seeds_of_round(names: Iterable[str], number: int) -> list[str]:
    """Return one seed of every row, for a round of this number."""
    seeds: dict[str, list[str]] = {}
    for name in names:
        seeds.setdefault(str(Path(name).parent), []).append(name)
    return [own[number % len(own)] for own in seeds.values()]


def _measure_rounds(out: Path, rows: Mapping[str, Path], timing: Json) -> Json:
    """Measure the remaining rounds, and write each to timing.json as it ends."""
    count = _count(rows)
    log.info(
        f"timing {len(rows)} runs, {count} rounds, interleaved: avoid other load on this machine"
    )
    runs = {name: run for name, folder in rows.items() if (run := _open(folder)) is not None}
    first = {name: run.first_call() for name, run in runs.items()}
    timing = {**timing, "first_call": {**first, **timing["first_call"]}}
    for number in range(len(timing["rounds"]), count):
        before, load = Activity.now(), load_average()
        seconds = {name: runs[name].round(number) for name in _seeds_of_round(runs, number)}
        others = Activity.now().others_since(before)
        facts = {"others": others, "load_average": [load, load_average()]}
        one = {**facts, "clock_mhz": clock_mhz(), "seconds": seconds}
        timing = {**timing, "rounds": [*timing["rounds"], one]}
        write_json(out / FILE, timing)
    return timing


def _open(folder: Path) -> TimedRun | None:
    try:
        return open_run(folder)
    except ConfigError as error:
        log.warning(f"{folder} is not timed: {error}")
        return None


def _read_timing(out: Path, rows: Mapping[str, Path]) -> Json:
    """Return timing.json if it is about these rows, else one without rounds."""
    hashes = {name: str(read_result(folder).get("config_hash")) for name, folder in rows.items()}
    fresh: Json = {"schema": 1, "rows": hashes, "first_call": {}, "rounds": []}
    file = out / FILE
    if not file.exists():
        return fresh
    try:
        timing = check_schema(RowsTiming, read_json(file), file)
    except ConfigError as error:
        log.warning(f"{error}: timing all runs again")
        return fresh
    return timing if timing["rows"] == hashes else fresh


def _facts(name: str, timing: Json, pool: Sequence[str]) -> Json:
    """Return `timing` of a result.json; `others` is None if it is unknown for a round."""
    rounds = timing["rounds"]
    others = [one["others"] for one in rounds]
    return {
        "rounds": len(rounds),
        "of_seed": len(_seconds_of_seed(name, timing)),
        "of_method": len(_seconds_of(pool, timing)),
        "rows": len(timing["first_call"]),
        "others": None if None in others else max(others),
        "load_average": [rounds[0]["load_average"][0], rounds[-1]["load_average"][1]],
        "clock_mhz": [one["clock_mhz"] for one in rounds],
        "first_call_seconds": timing["first_call"][name],
    }


def _raise_stopped() -> None:
    raise Stopped("stopped by a signal during the timing; repeat the command to continue")
