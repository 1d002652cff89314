"""Seconds of finished runs: the noise of their measurement, and why they allow no verdict.

A verdict in seconds needs new tasks timed in interleaved rounds on an idle machine, and training
that did not wait for cores. Other processes during the rounds affect all methods. A slow round
affects the method whose seconds it is in."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from metalearn.evaluate import cost_block
from metalearn.results.records import Array, Group, Json, Run, mean

Kind = Literal["seconds_batched", "seconds_alone"]
BUSY = 0.1  # fraction of time that others took of the cores, above which seconds decide nothing
SLOW_ROUND = 2.0  # times the median of its method
# the columns of seconds that the rounds enter; verdicts use those in a batch
COLUMNS: dict[Kind, str] = {
    "seconds_batched": "learning per new task",
    "seconds_alone": "learning one task alone",
}


def seconds_problems(groups: Sequence[Group]) -> dict[str, str]:
    """Return why the seconds of methods allow no verdict, by label.

    Methods whose seconds allow one are left out."""
    loads = [text for group in groups for run in group.runs if (text := _load_problem(run))]
    problems = {}
    for group in groups:
        own = [timing_problem(run) or up_front_problem(run) for run in group.runs]
        texts = [text for text in (*own, *loads, _slow_problem(group)) if text]
        if texts:
            problems[group.label] = texts[0]
    return problems


def up_front_problem(run: Run) -> str:
    """Return why the up-front seconds of a run allow no verdict; empty if they do.

    They are measured during training, when other rows may train side by side. That is no problem
    as long as the cores suffice: what counts is the time in which training could have run, and
    waited for a core that another process had."""
    share = cost_block.waiting_share(run.cost)
    if share is None:
        return "the time that its training waited for a core was not recorded"
    if share > BUSY:
        return f"its training waited for a core in {share:.0%} of its time"
    return ""


def timing_problem(run: Run) -> str:
    """Return why the seconds of a run's new tasks allow no verdict; empty if they do."""
    timing = run.result.get("timing")
    if timing is None:
        return "not timed again after training"
    if not _rounds(run.cost, "seconds_alone"):
        return "the seconds of each round were not recorded"
    return _load_problem(run)


def _load_problem(run: Run) -> str:
    """Return why other processes make the seconds of all methods doubtful; empty if they do not."""
    timing = run.result.get("timing")
    if timing is None:
        return ""
    if timing.get("others") is None:
        return "the load by other processes is unknown"
    if timing["others"] > BUSY:
        return f"other processes used {timing['others']:.0%} of the cores"
    return ""


def _slow_problem(group: Group) -> str:
    ratio = slow_rounds(group).get("seconds_batched")
    return f"a round took {ratio:.1f} times the median" if ratio else ""


def slow_rounds(group: Group) -> dict[Kind, float]:
    """Return the ratios of `round_ratios` that are above SLOW_ROUND."""
    return {kind: ratio for kind, ratio in round_ratios(group).items() if ratio > SLOW_ROUND}


def round_ratios(group: Group) -> dict[Kind, float]:
    """Return the longest round of a method over the median of its rounds, alone and in a batch.

    Seeds with unequal FLOPs per task have a median each, the lower one of two rounds. Empty without
    rounds, or if each task has its own search."""
    if has_search_per_task(group):
        return {}
    ratios: dict[Kind, float] = {}
    for runs in _runs_by_work(group):
        for kind in COLUMNS:
            seconds = [value for run in runs for value in _rounds(run.cost, kind)]
            middle = statistics.median_low(seconds) if seconds else 0.0
            if middle:
                ratios[kind] = max(ratios.get(kind, 0.0), max(seconds) / middle)
    return ratios


def has_search_per_task(group: Group) -> bool:
    """Return whether each new task has its own search.

    Each round then learns another task, and searches take unequal time: rounds do not compare."""
    return any(sum(_rounds(run.cost, "seconds_alone", ("search",))) for run in group.runs)


def _rounds(cost: Json, kind: str, phases: Sequence[str] = cost_block.EACH) -> list[float]:
    """Return the seconds of one new task in each round of a run, the sum of these phases."""
    rounds = [((cost.get(phase) or {}).get("rounds") or {}).get(kind) for phase in phases]
    return [sum(values) for values in zip(*(values for values in rounds if values))]


def timing_variances(
    group: Group, seconds_of: Callable[[Run], float | None]
) -> tuple[tuple[float, float], ...]:
    """Return the variance of the seconds per task by their measurement, relative to their square.

    `seconds_of` returns the seconds of a task of a run; (variance, degrees of freedom) are those of
    `timing_covariances`."""
    whole = mean([seconds_of(run) for run in group.runs])

    def parts(run: Run) -> list[float] | None:
        seconds = seconds_of(run)
        return None if seconds is None else [seconds]

    tables = timing_covariances(group, parts) if whole else ()
    return tuple((float(table[0, 0]) / (whole or 1.0) ** 2, freedom) for table, freedom in tables)


def timing_covariances(
    group: Group, parts_of: Callable[[Run], Sequence[float] | None]
) -> tuple[tuple[Array, float], ...]:
    """Return the covariance of parts of the seconds per task, means over seeds, by measuring them.

    `parts_of` returns k parts from the medians of a run; here it is called with the seconds of each
    round in their place. (covariance [k, k], degrees of freedom) for each set of seeds that share
    a median: pi / (2 R) times that of its R rounds, as for the median of many values, on R - 1
    degrees of freedom. A seed with a median of its own adds nothing: seeds were timed in different
    rounds, so the variance between them includes that of timing."""
    if any(parts_of(run) is None for run in group.runs):
        return ()
    found = []
    for runs in _runs_by_work(group):
        errors = np.concatenate([_errors_of_rounds(run, parts_of) for run in runs])  # [R, k]
        if len(runs) > 1 and len(errors) > 1:
            share = len(runs) / len(group.runs)
            covariance = np.atleast_2d(np.cov(errors.T)) * math.pi / (2 * len(errors))
            found.append((share**2 * covariance, len(errors) - 1.0))
    return tuple(found)


def _errors_of_rounds(run: Run, parts_of: Callable[[Run], Sequence[float] | None]) -> Array:
    """Return the seconds of each round of a run minus the medians: [R, k]."""
    medians = np.asarray(parts_of(run), np.float64)
    rounds = [parts_of(one) for one in _with_rounds_as_medians(run)]
    table = np.asarray([parts for parts in rounds if parts is not None], np.float64)
    return table.reshape(-1, len(medians)) - medians


def _runs_by_work(group: Group) -> list[list[Run]]:
    """Return the runs that share a median: those with equal FLOPs per task."""
    by_work: dict[object, list[Run]] = {}
    for run in group.runs:
        work = cost_block.work_per_task(run.cost)
        by_work.setdefault(run.seed if work is None else work, []).append(run)
    return list(by_work.values())


def _with_rounds_as_medians(run: Run) -> list[Run]:
    """Return the run once for every round, with the seconds of that round instead of medians."""
    table = {phase: (run.cost.get(phase) or {}).get("rounds") or {} for phase in cost_block.EACH}
    count = min((len(values) for rounds in table.values() for values in rounds.values()), default=0)
    copies = []
    for number in range(count):
        cost = dict(run.cost)
        for phase, rounds in table.items():
            if rounds:
                seconds = {name: values[number] for name, values in rounds.items()}
                cost[phase] = {**cost[phase], **seconds, "seconds": seconds["seconds_batched"]}
        copies.append(replace(run, result={**run.result, "cost": cost}))
    return copies
