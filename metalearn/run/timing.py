"""Seconds of one new task for a finished run, measured after all rows of a comparison are trained.

The methods of a comparison are trained at different times, under different load. Here each is timed
again in the same way: new tasks learned one at a time, and in a batch."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn.config.sections import Evaluate
from metalearn.evaluate.cost_block import EACH, examples_beside, per_query, per_task
from metalearn.evaluate.ensemble import ensemble
from metalearn.machine import cores, set_threads
from metalearn.run.checkpoints import select_checkpoint
from metalearn.run.cost import batch_size, learning_ledger
from metalearn.run.trained.load import load_run
from metalearn.types import Meta, Method, TaskSource

Json = dict[str, Any]
Seconds = dict[str, float]  # of one task, by phase


@dataclass(frozen=True)
class TimedRun:
    """A finished run that can learn its test tasks again."""

    method: Method
    meta: Meta
    source: TaskSource
    evaluate: Evaluate
    threads: int

    def round(self, number: int) -> dict[str, Seconds]:
        """Return the seconds of one task by phase: `alone`, `batched`, `at_start`, `one_query`.

        `batched` is a task of a batch, `at_start` the same with no step, `one_query` also with one
        query only. Task `number` is learned alone, as a search may take longer for one task than
        for another; a search on the host has no batch."""
        set_threads(self.threads)
        seconds = {"alone": self._seconds(number % self.evaluate.episodes, 1)}
        if self.method.traits.host_side:
            return seconds
        size = batch_size(self.evaluate, self.meta)
        seconds["batched"] = self._seconds(0, size)
        if self.method.traits.uses_steps and self.evaluate.steps[-1] > 0:
            seconds["at_start"] = self._seconds(0, size, 0)
        with contextlib.suppress(RuntimeError, ValueError):  # a method may refuse a single query
            steps = 0 if self.method.traits.uses_steps else None
            seconds["one_query"] = self._seconds(0, size, steps, queries=1)
        return seconds

    def first_call(self) -> float:
        """Return the seconds of a first round: compilation, loading of kernels, caches."""
        started_at = time.perf_counter()
        self.round(0)
        return time.perf_counter() - started_at

    def _seconds(
        self, first: int, tasks: int, steps: int | None = None, queries: int | None = None
    ) -> Seconds:
        ledger = learning_ledger(
            *(self.method, self.meta, self.source, self.evaluate, first, tasks, steps),
            counting=False,
            queries=queries,
        )
        return {phase: ledger.seconds(phase) / tasks for phase in EACH}


def open_run(folder: Path) -> TimedRun:
    """Return the run in a directory as it was tested. Raises ConfigError if it cannot be loaded."""
    run = load_run(folder)
    method, config = run.method, run.config
    if config.evaluate.checkpoint == "ensemble":
        states, _ = select_checkpoint(config, folder, run.state)
        method = ensemble(method, [state.meta for state in states])
    threads = config.run.threads or cores()
    return TimedRun(method, run.state.meta, run.source, config.evaluate, threads)


def with_timing(
    result: Json,
    rounds: Sequence[Mapping[str, Seconds]],
    facts: Json,
    *,
    of_method: Sequence[Mapping[str, Seconds]] | None = None,
) -> Json:
    """Return result.json with medians of rounds as the seconds of new tasks.

    The medians are those of `of_method`, the rounds of all seeds with the same cost, by default of
    `rounds`, those of this seed. In each phase of new tasks, `first_pass` keeps the seconds that
    the run itself measured, and `rounds` has those of every round of the seed. `timing` is
    `facts`."""
    pooled, task = rounds if of_method is None else of_method, result.get("task") or {}
    facts_of_task = task.get("ways"), task.get("shots")
    beside = examples_beside(result.get("normalisation"), *facts_of_task)
    cost = {
        phase: _with_medians(entry, phase, rounds, pooled, beside)
        if phase in EACH and per_task(entry)
        else entry
        for phase, entry in result["cost"].items()
    }
    return {**result, "cost": cost, "timing": facts}


def _with_medians(
    entry: Json,
    phase: str,
    rounds: Sequence[Mapping[str, Seconds]],
    pooled: Sequence[Mapping[str, Seconds]],
    beside: int,
) -> Json:
    kinds = {
        "seconds_alone": "alone",
        "seconds_batched": "batched" if "batched" in rounds[0] else "alone",
    }
    if "seconds_at_start" in entry and "at_start" in rounds[0]:
        kinds["seconds_at_start"] = "at_start"
    if phase == "predict" and all("one_query" in one for one in (*rounds, *pooled)):
        kinds["seconds_one_query"] = "one_query"
    seconds_by_round = {
        name: [timed_round[kind][phase] for timed_round in rounds] for name, kind in kinds.items()
    }
    medians = {
        name: statistics.median(timed_round[kind][phase] for timed_round in pooled)
        for name, kind in kinds.items()
    }
    if "seconds_at_start" in medians:
        medians["seconds_at_start"] = min(medians["seconds_at_start"], medians["seconds_batched"])
    measured = [name for name in ("seconds", *kinds) if name in entry]
    first_pass = entry.get("first_pass") or {name: entry[name] for name in measured}
    row = {**entry, **medians, "seconds": medians["seconds_batched"]}
    query_cost = per_query(row, entry["queries"], beside) if entry.get("queries") else {}
    return {**row, **query_cost, "first_pass": first_pass, "rounds": seconds_by_round}
