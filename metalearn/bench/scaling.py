"""Seconds against tasks per batch, and whether memory grows with the chunk or with the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from metalearn.bench.bench import Outcome, Row, Settings, forget, measure_workload
from metalearn.bench.engines import native
from metalearn.bench.measure import first_step, peak_bytes, peak_on_cuda
from metalearn.bench.problem import Problem
from metalearn.bench.workloads import WORKLOADS
from metalearn.executors.memory import Live
from metalearn.executors.timings import ExecutorChoice
from metalearn.logger import log

TASKS = (1, 4, 16, 64, 256, 512)
CHUNK, FEW, MANY = 32, 32, 512  # the check of memory: tasks per chunk, and two numbers of tasks
STEPS = 2  # of many tasks, whose memory is measured


def curve(name: str, settings: Settings, tasks: Sequence[int] = TASKS) -> Outcome:
    """Measure one workload at each number of tasks, ours without auto's trials at each."""
    result, work = Outcome([], [], {}), WORKLOADS[name]
    for count in tasks:
        problem = Problem(work.with_tasks(count), settings.device)
        executors = settings.executors or tuple(
            choice for choice in native.candidates(problem) if choice != "auto"
        )
        outcome = measure_workload(work, replace(settings, tasks=count, executors=executors))
        result.rows += outcome.rows
        result.left_out += [row for row in outcome.left_out if row not in result.left_out]
    return result


def memory(settings: Settings, name: str, few: int = FEW, many: int = MANY) -> Row:
    """Compare peak memory of `many` tasks in chunks with that of `few`, sampling included.

    On a CPU the resident peak depends on the order in which the C library's blocks come and go: it
    rises over the first dozen of chunks, whether these are one step's or many's. So it is measured
    over equally many chunks."""
    peaks, live_peaks = [], []
    for tasks in (few, many):
        problem = Problem(WORKLOADS[name].with_tasks(tasks), settings.device)
        row: Row = {"peak_bytes": None}
        with peak_on_cuda(problem.device, "native", row):
            engine = native.engine(problem, ExecutorChoice("chunk", CHUNK))
            first_step(engine)
        steps = STEPS * max(many // tasks, 1)
        peaks.append(peak_bytes(engine, steps) if problem.device == "cpu" else row["peak_bytes"])
        with Live() as live:
            engine.step()
        live_peaks.append(live.peak)
        forget()
    ratio, tensors = (
        pair[1] / pair[0] if pair[0] and pair[1] else None for pair in (peaks, live_peaks)
    )
    ratio_text = "not measured here" if ratio is None else f"{ratio:.2f} times"
    text = f"{ratio_text} the peak of {few} tasks ({tensors:.2f} times of live tensors)"
    log.info(f"memory: {name}, {many} tasks in chunks of {CHUNK} take {text}")
    return {
        "workload": name,
        "executor": "chunk",
        "chunk": CHUNK,
        "tasks": [few, many],
        "peak_bytes": peaks,
        "ratio": ratio,
        "live_bytes": live_peaks,
        "live_ratio": tensors,
    }
