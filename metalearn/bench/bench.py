"""Measure workloads: build the engines, check their gradients, measure memory and time."""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from metalearn.bench.contenders import Contender, contenders
from metalearn.bench.engines.engine import Engine, LeftOut
from metalearn.bench.engines.imaml import ImplicitProblem
from metalearn.bench.engines.in_context import InContextProblem
from metalearn.bench.engines.l2o import LearnedProblem
from metalearn.bench.engines.native import STEPS
from metalearn.bench.engines.r2d2 import R2D2Problem
from metalearn.bench.limit import LIMIT, convolution, reference_and_flops
from metalearn.bench.measure import (
    Turns,
    first_step,
    fresh_cache,
    in_turns,
    peak_bytes,
    peak_on_cuda,
    quartiles,
)
from metalearn.bench.problem import Problem, gap
from metalearn.bench.workloads import Workload
from metalearn.logger import log
from metalearn.machine import cores, set_threads
from metalearn.types import Params

# largest gradient_error of a float32 engine that is timed; rounding gives 1e-7 to 3e-3 (ReLUs flip)
BOUND = 1e-2
BOUND_TF32 = 5e-2  # the same where products keep ten bits
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is measured, and for how long."""

    engines: tuple[str, ...]
    device: str = "cpu"
    threads: int | None = None  # None: each workload's own
    executors: tuple[str, ...] = ()
    tasks: int | None = None  # instead of each workload's own number
    turns: Turns = field(default_factory=Turns)
    cold: bool = False  # every engine of ours compiles again
    tf32: bool = False  # on CUDA: matrix products and convolutions with ten bits of mantissa


@dataclass(frozen=True)
class VerifiedEngine:
    """An engine that has passed the check."""

    contender: Contender
    engine: Engine
    row: Row


# of the families that build more than a model and MAML or ProtoNet
PROBLEMS: dict[str, type[Problem]] = {
    "l2o": LearnedProblem,
    "in_context": InContextProblem,
    "r2d2": R2D2Problem,
    "imaml": ImplicitProblem,
}


@dataclass
class Outcome:
    """Results of a workload: its rows, skipped engines with reasons, facts about the workload."""

    rows: list[Row]
    left_out: list[Row]
    facts: Row


def measure_workload(workload: Workload, settings: Settings) -> Outcome:
    """Measure all engines on one workload.

    An engine whose gradient is wrong, or that fails, is a row with `error`."""
    work = workload.with_tasks(settings.tasks) if settings.tasks else workload
    threads = set_threads(settings.threads or work.threads or cores())
    set_precision(settings)
    problem = PROBLEMS.get(work.family, Problem)(work, settings.device)
    text = f"{work.name}: {work.sentence()}; {work.tasks} tasks, {threads}"
    log.info(f"{text} thread{'s' if threads > 1 else ''}")
    facts: Row = {"sentence": work.sentence(), "tasks": work.tasks, "threads": threads}
    outcome = Outcome([], [], facts)
    expected = None
    if work.family not in ("sampling", "validation"):
        expected, outcome.facts["flops"] = reference_and_flops(problem)
    if not work.regression:
        assert problem.ready  # sampled now, outside of all measurements
    verified: list[VerifiedEngine] = []
    for contender in contenders(problem, settings.engines, settings.executors):
        verified += _prepare(problem, contender, expected, settings, outcome)
    _time_engines(problem, verified, settings.turns, outcome)
    forget()
    return outcome


def set_precision(settings: Settings) -> None:
    """On CUDA, full float32 in torch's products or TF32; JAX is set by its own engine."""
    if settings.device.startswith("cuda"):
        precision = "tf32" if settings.tf32 else "ieee"
        setattr(torch.backends, "fp32_precision", precision)  # noqa: B010  # for mypy


def _prepare(
    problem: Problem,
    contender: Contender,
    expected: Params | None,
    settings: Settings,
    outcome: Outcome,
) -> list[VerifiedEngine]:
    """Build the contender's engines, run one step, check them; if several forms share a row, return
    the fastest."""
    verified: list[VerifiedEngine] = []
    base_row: Row = _row(problem, contender)
    try:
        start = time.perf_counter()
        with fresh_cache(settings.cold), peak_on_cuda(problem.device, contender.engine, base_row):
            forms = contender.build(base_row)
            build_seconds = (time.perf_counter() - start) / len(forms)
            candidates = [
                VerifiedEngine(contender, engine, _form_row(base_row, engine)) for engine in forms
            ]
            for candidate in candidates:
                candidate.row["compile_seconds"] = build_seconds + first_step(candidate.engine)
        for candidate in candidates:
            candidate.row["peak_bytes"] = base_row["peak_bytes"]
            agrees = _agrees(problem, candidate, expected, settings)
            outcome.rows.append(candidate.row)
            if agrees:
                verified.append(candidate)
    except LeftOut as reason:
        outcome.left_out.append(
            {"workload": problem.workload.name, "engine": contender.engine, "why": str(reason)}
        )
        log.info(f"  skipped: {contender.label}: {reason}")
    # one engine that fails, in whatever way, must not cost the others their rows
    except Exception as error:
        _fail(problem, contender, None, error, outcome)
    return verified if contender.every_form or len(verified) < 2 else [_fastest(verified, outcome)]


def _row(problem: Problem, contender: Contender) -> Row:
    row: Row = {"workload": problem.workload.name, "engine": contender.engine}
    if contender.engine == "native":
        row["executor"] = contender.executor  # null if no executor runs it, such as sampling
    if contender.chunk:
        row["chunk"] = contender.chunk
    row["tasks"] = problem.workload.tasks
    names = ("median_seconds", "iqr_seconds", "quartiles_seconds", "rounds")
    return row | dict.fromkeys((*names, "compile_seconds", "peak_bytes", "gradient_error"))


def _form_row(row: Row, engine: Engine) -> Row:
    return {**row, "form": engine.form} if engine.form else dict(row)


def _agrees(
    problem: Problem, ready: VerifiedEngine, expected: Params | None, settings: Settings
) -> bool:
    """Return whether the engine computes the reference's gradient; if not, its row has an `error`
    and it is not timed."""
    if expected is None or ready.engine.gradient is None:
        return True
    bound = BOUND_TF32 if settings.tf32 else BOUND
    error = gap(ready.engine.gradient(problem.check), expected)
    ready.row["gradient_error"] = error
    if error <= bound:
        return True
    ready.row["error"] = (
        f"the relative error of its meta-gradient is {error:.1e}, above {bound:.0e}"
    )
    log.info(f"  not timed: {ready.contender.label}: {ready.row['error']}")
    return False


def _fail(
    problem: Problem,
    contender: Contender,
    ready: VerifiedEngine | None,
    error: Exception,
    outcome: Outcome,
) -> None:
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if ready is None:
        outcome.rows.append(_row(problem, contender) | {"error": text})
    else:
        ready.row["error"] = text
    log.info(f"  failed: {contender.label}: {text}")


def _fastest(forms: list[VerifiedEngine], outcome: Outcome) -> VerifiedEngine:
    """Return the form with the fastest step, of three each in turns; drop the other rows."""
    times = in_turns({candidate.engine.form: candidate.engine for candidate in forms}, Turns(3, 0))
    order = sorted(forms, key=lambda candidate: quartiles(times[candidate.engine.form])[1])
    for slower in order[1:]:
        ratio = quartiles(times[slower.engine.form])[1] / quartiles(times[order[0].engine.form])[1]
        faster = order[0].engine.form
        text = f"  {slower.contender.label}: {faster} is timed; {slower.engine.form} takes"
        log.info(f"{text} {ratio:.2f} times as long")
        outcome.rows.remove(slower.row)
    return order[0]


def _time_engines(
    problem: Problem, verified: list[VerifiedEngine], turns: Turns, outcome: Outcome
) -> None:
    """Measure peak memory of each engine, then time all in turns, together with a plain
    convolution if the model is Conv4."""
    runnable: list[VerifiedEngine] = []
    for candidate in verified:
        try:
            # the second: what fails fails here, not in the others' turns
            first_step(candidate.engine)
            if problem.device == "cpu":
                candidate.row["peak_bytes"] = peak_bytes(candidate.engine)
            runnable.append(candidate)
        except Exception as error:  # such as out of memory: a row that says so
            _fail(problem, candidate.contender, candidate, error, outcome)
    if not runnable:
        return
    engines = {str(index): candidate.engine for index, candidate in enumerate(runnable)}
    has_limit = problem.workload.model == "conv4" and outcome.facts.get("flops")
    plain = convolution(problem) if has_limit else None
    if plain is not None:
        engines[LIMIT] = plain.engine
    times = in_turns(engines, turns)
    for index, candidate in enumerate(runnable):
        low, middle, high = quartiles(times[str(index)])
        candidate.row.update(
            median_seconds=middle, iqr_seconds=high - low, quartiles_seconds=[low, high]
        )
        candidate.row["rounds"] = len(times[str(index)])
        if candidate.contender.executor:
            candidate.row["run_seconds"] = candidate.row["compile_seconds"] + (STEPS - 1) * middle
    if plain is not None:
        outcome.facts["conv_flops_per_second"] = plain.flops / quartiles(times[LIMIT])[1]


def forget() -> None:
    """Release what a workload compiled.

    The next one finds compilers and memory as it did."""
    torch.compiler.reset()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
