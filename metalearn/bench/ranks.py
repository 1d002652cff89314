"""`metalearn bench --ranks N`: times a meta-step on one process and on N, in turns, and its parts.

    one        all T tasks, sampling and update included, in one process
    alone      a rank's slice of the tasks and the update, without the others: what N ranks would
    take if they were free
    together   the step as N ranks make it; together - alone is the sum of gradients, and
    waiting

`speed-up` is one / together by the clock; `of CPU time` the same of the seconds that rank 0
computed, which other load on the machine hardly changes, and which does not include waiting. Every
process has one thread. Rank 0 runs all three in turns while the others wait, so that temporary
load affects all equally."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metalearn.config.build import Parts, build
from metalearn.config.experiment import Experiment, load
from metalearn.distributed.ranks import Ranks
from metalearn.errors import ConfigError, did_you_mean
from metalearn.executors.chunks import identity
from metalearn.executors.step import RankSum, TrainStep, build_train_step, make_batch_sampler
from metalearn.machine import set_threads
from metalearn.report import markdown
from metalearn.rng import fold_in
from metalearn.run.warm_start import initial_state
from metalearn.storage.environment import describe
from metalearn.storage.files import write_json
from metalearn.tree import leaves
from metalearn.types import MetaState

WARM = 3  # steps before the first that is timed: compiling, caches
TURN = 0.25  # seconds that a turn lasts at least
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """One row of the table: an experiment with overrides."""

    experiment: str
    overrides: tuple[str, ...]

    def plan(self) -> Experiment:
        overrides = (*self.overrides, "run.threads=1", "run.seeds=[0]", "run.device=cpu")
        return load(self.experiment, overrides).experiments[0]


def conv(tasks: int, filters: int = 64) -> Size:
    """Return the paper's strided Conv4 on 5-way 1-shot Omniglot.

    It is eager, as compiling would take most of the time."""
    overrides = (
        f"run.tasks_per_step={tasks}",
        f"model.filters={filters}",
        "run.executor=chunk",
        "run.chunk=4",
    )
    return Size("maml_omniglot_5w1s", overrides)


def perceptron(width: int, tasks: int = 32) -> Size:
    """Return a sinusoid with two hidden layers: many parameters, little computation."""
    return Size(
        "maml_sinusoid",
        (f"model.sizes=[{width},{width}]", f"run.tasks_per_step={tasks}", "run.executor=vmap"),
    )


SIZES = {
    "conv4": (conv(32),),
    "tasks": tuple(conv(tasks) for tasks in (8, 16, 64)),
    "parameters": tuple(perceptron(width) for width in (40, 256, 1024, 2048)),
}


def select_sizes(names: Sequence[str]) -> list[Size]:
    """Return the sizes with these names, default all; raises ConfigError for an unknown name."""
    unknown = [
        (name, f"unknown name; {did_you_mean(name, SIZES)}") for name in names if name not in SIZES
    ]
    if unknown:
        raise ConfigError(*unknown)
    return [size for name in (names or SIZES) for size in SIZES[name]]


def bench(
    ranks: Ranks, names: Sequence[str], out: Path | None, rounds: int, seconds: float
) -> None:
    """Measure, print and write; the file is rewritten after every row."""
    rows: list[Row] = []
    for size in select_sizes(names):
        rows.append(_row(ranks, size, rounds, seconds))
        print(table(rows[-1:])[-1], flush=True)
        if out is not None:
            content = {"schema": 1, "environment": describe("cpu"), "rows": rows}
            ranks.on_rank0(partial(write_json, out, content))
    print("\n".join(["", *table(rows)]))


def _row(ranks: Ranks, size: Size, rounds: int, seconds: float) -> Row:
    experiment = size.plan()
    set_threads(1)
    parts = build(experiment, to_train=True)
    state = initial_state(experiment, parts)
    task_slice = ranks.share(experiment.run.tasks_per_step)
    steppers = {
        "one": _Stepper(_train_step(experiment, parts), state, ranks, alone=True),
        "alone": _Stepper(
            _train_step(experiment, parts, task_slice, identity_sum), state, ranks, alone=True
        ),
        "together": _Stepper(_train_step(experiment, parts, task_slice, ranks.sum), state, ranks),
    }
    turns_by_name = _in_turns(ranks, steppers, rounds, seconds)
    clock, cpu_seconds = (
        {name: [turn[column] for turn in turns] for name, turns in turns_by_name.items()}
        for column in (0, 1)
    )
    medians, cpu_medians = (
        {name: float(np.median(times)) for name, times in seconds_by_name.items()}
        for seconds_by_name in (clock, cpu_seconds)
    )
    quartiles = {
        name: [float(q) for q in np.quantile(times, (0.25, 0.75))] for name, times in clock.items()
    }
    return {
        "experiment": size.experiment,
        "overrides": list(size.overrides),
        "ranks": ranks.size,
        "tasks": experiment.run.tasks_per_step,
        "parameters": sum(leaf.numel() for leaf in leaves(state.meta)),
        "median_seconds": medians,
        "quartiles": quartiles,
        "cpu_seconds": cpu_medians,
        "rounds": len(turns_by_name["one"]),
        "speedup": float(np.median(np.divide(clock["one"], clock["together"]))),
        "cpu_ratio": float(np.median(np.divide(cpu_seconds["one"], cpu_seconds["together"]))),
    }


def identity_sum(vector: Tensor) -> Tensor:
    """Return the sum over one process, which still packs its gradients into a vector."""
    return vector


def _train_step(
    experiment: Experiment,
    parts: Parts,
    task_slice: tuple[int, int] | None = None,
    sum_over_ranks: RankSum = identity,
) -> TrainStep:
    run = experiment.run
    return build_train_step(
        parts.method,
        make_batch_sampler(parts.train, parts.method, run.examples_per_step),
        fold_in(0, "train"),
        tasks=run.tasks_per_step,
        device=parts.device,
        executor=run.executor,
        chunk=run.chunk,
        workers=1,
        task_slice=task_slice,
        sum_over_ranks=sum_over_ranks,
    )


class _Stepper:
    """Runs steps of one kind, with its own state and count; if `alone`, only rank 0 does."""

    def __init__(
        self, train_step: TrainStep, state: MetaState, ranks: Ranks, *, alone: bool = False
    ) -> None:
        self._train_step, self._state, self._step_index = train_step, state, 0
        self._idle = alone and not ranks.is_first
        self.turn(WARM)
        seconds, _ = self.turn(2)
        self.steps = ranks.on_rank0(lambda: max(1, round(TURN / seconds)))

    def turn(self, steps: int) -> tuple[float, float]:
        """Return seconds per step: wall-clock time, and CPU time of this process."""
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(0 if self._idle else steps):
            step_input = self._train_step.step_input(self._step_index)
            self._state, _ = self._train_step.step(self._state, step_input)
            self._step_index += 1
        return (time.perf_counter() - start) / steps, (time.process_time() - cpu_start) / steps


def _in_turns(
    ranks: Ranks, steppers: dict[str, _Stepper], rounds: int, seconds: float
) -> dict[str, list[tuple[float, float]]]:
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in steppers}
    names, start = list(steppers), time.perf_counter()
    for round_index in range(rounds):
        if round_index >= 3 and ranks.on_rank0(lambda: time.perf_counter() - start > seconds):
            break
        for offset in range(len(names)):
            name = names[(offset + round_index) % len(names)]
            turns[name].append(steppers[name].turn(steppers[name].steps))
    return turns


def table(rows: Sequence[Row]) -> list[str]:
    """Return lines of Markdown."""
    heads = ["experiment", "tasks", "parameters", "ranks", "one", "alone", "together", "the rest"]
    lines = []
    for row in rows:
        sizes = [str(row["tasks"]), f"{row['parameters']:,}", str(row["ranks"])]
        one, alone, together = (
            1000 * row["median_seconds"][name] for name in ("one", "alone", "together")
        )
        times = [f"{value:.3g} ms" for value in (one, alone, together)]
        ratios = [f"{row[name]:.2f}" for name in ("speedup", "cpu_ratio")]
        rest = f"{together - alone:.2g} ms"
        lines.append([row["experiment"], *sizes, *times, rest, *ratios])
    return markdown.table([*heads, "speed-up", "of CPU time"], lines, left=1).splitlines()
