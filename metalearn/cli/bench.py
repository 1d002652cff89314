"""`metalearn bench`: its options; nothing here imports torch until it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from metalearn.distributed.launch import on_devices
from metalearn.errors import exit_codes

Names = Annotated[
    list[str] | None, typer.Argument(help="Workloads, such as sinusoid_1step; default: all.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="JSON file to write; a figure is saved next to it.")
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="SVG file to write; default: next to --out.")
]
Markdown = Annotated[
    Path | None,
    typer.Option(
        "--markdown", help="Markdown file in which the section for this machine is replaced."
    ),
]
Repeats = Annotated[
    int,
    typer.Option("--repeats", help="Number of rounds; every engine runs once per round.", min=1),
]
Seconds = Annotated[
    float, typer.Option("--seconds", help="Time budget per workload, in seconds.", min=0)
]
Device = Annotated[str, typer.Option("--device", help="Device: auto, cpu, cuda or cuda:<n>.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads; default: all cores, 1 for the sinusoid.", min=1),
]
Tasks = Annotated[
    int | None,
    typer.Option("--tasks", help="Tasks per batch; default: as set by the workload.", min=1),
]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        help="Engine to time: native, learn2learn, higher, torchopt, jax or torch; repeatable.",
    ),
]
Executors = Annotated[
    list[str] | None,
    typer.Option(
        "--executor",
        help="Executor of the native engine, such as vmap or compiled:4; repeatable.",
    ),
]
Scaling = Annotated[
    bool,
    typer.Option(
        "--scaling",
        help="Time 1 to 512 tasks per batch and measure the memory of chunked steps. If no "
        "workload is named, nothing else is timed.",
    ),
]
Merge = Annotated[
    bool, typer.Option("--merge", help="Keep the results of other workloads already in --out.")
]
Cold = Annotated[bool, typer.Option("--cold", help="Ignore the compile cache.")]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        help="Compare steps on this many processes with steps on one process; writes no table.",
        min=2,
    ),
]
TF32 = Annotated[
    bool, typer.Option("--tf32", help="Use TF32 matrix products (10-bit mantissa) on CUDA.")
]

GpuSuite = Annotated[
    bool,
    typer.Option(
        "--gpu-suite",
        help="Run the full GPU suite and write it to the folder --out: tests, executors in each "
        "precision, other packages, 60,000 iterations. Repeat the command to resume.",
    ),
]
SuiteSeconds = Annotated[
    float | None,
    typer.Option("--suite-seconds", help="Time budget of one call of --gpu-suite.", min=60),
]


def bench(
    names: Names = None,
    out: Out = None,
    plot: Plot = None,
    markdown: Markdown = None,
    repeats: Repeats = 15,
    seconds: Seconds = 60,
    device: Device = "auto",
    threads: Threads = None,
    tasks: Tasks = None,
    engine: Engines = None,
    executor: Executors = None,
    scaling: Scaling = False,
    merge: Merge = False,
    cold: Cold = False,
    ranks: Ranks = None,
    tf32: TF32 = False,
    gpu_suite: GpuSuite = False,
    suite_seconds: SuiteSeconds = None,
) -> None:
    """Benchmark one meta-step against learn2learn, higher, TorchOpt and JAX, interleaved.

    First checks that all compute the same gradients."""
    with exit_codes():
        if ranks is not None:
            on_devices(ranks, lambda group: _ranks(group, names or [], out, repeats, seconds))
            return
        if gpu_suite:
            from metalearn.bench.gpu_suite import suite

            suite(out or Path("runs/gpu"), markdown, suite_seconds)
            return
        from metalearn.bench.command import BenchOptions, measure

        timing = {"repeats": repeats, "seconds": seconds, "device": device, "threads": threads}
        selection = {"tasks": tasks, "engines": engine or (), "executors": executor or ()}
        flags = {"scaling": scaling, "merge": merge, "cold": cold, "tf32": tf32}
        options: dict[str, Any] = {**timing, **selection, **flags}
        measure(BenchOptions(names or (), out, plot, markdown, **options))


def _ranks(ranks: Any, names: list[str], out: Path | None, rounds: int, seconds: float) -> None:
    from metalearn.bench.ranks import bench as run

    run(ranks, names, out, rounds, seconds)
