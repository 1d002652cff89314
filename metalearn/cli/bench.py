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
    Path | None, typer.Option("--out", help="The JSON file to write; a figure is put beside it.")
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="The SVG file to write; default: beside --out.")
]
Markdown = Annotated[
    Path | None,
    typer.Option("--markdown", help="A Markdown file whose section of this machine is replaced."),
]
Repeats = Annotated[
    int, typer.Option("--repeats", help="Rounds in which each engine has one turn.", min=1)
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
    typer.Option("--tasks", help="Tasks per batch; default: the workload's own number.", min=1),
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
    typer.Option("--executor", help="Executor of native, such as vmap or compiled:4; repeatable."),
]
Scaling = Annotated[
    bool,
    typer.Option(
        "--scaling",
        help="Time 1 to 512 tasks per batch and measure memory in chunks. Without names of "
        "workloads nothing else is timed.",
    ),
]
Merge = Annotated[bool, typer.Option("--merge", help="Keep the rows of other workloads in --out.")]
Cold = Annotated[bool, typer.Option("--cold", help="Compile anew, as in a first run.")]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks", help="Compare steps of this many processes with steps of one; no table.", min=2
    ),
]
TF32 = Annotated[
    bool, typer.Option("--tf32", help="Use TF32 products (ten bits of mantissa) on CUDA.")
]

GpuSuite = Annotated[
    bool,
    typer.Option(
        "--gpu-suite",
        help="Run everything that a GPU has to show into the folder --out: tests, executors in "
        "each precision, peers, 60,000 iterations. Repeated, it continues.",
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
    """Time one meta-step against learn2learn, higher, TorchOpt and JAX, in turns.

    Gradients are compared first."""
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
        chosen = {"tasks": tasks, "engines": engine or (), "executors": executor or ()}
        flags = {"scaling": scaling, "merge": merge, "cold": cold, "tf32": tf32}
        options: dict[str, Any] = {**timing, **chosen, **flags}
        measure(BenchOptions(names or (), out, plot, markdown, **options))


def _ranks(ranks: Any, names: list[str], out: Path | None, rounds: int, seconds: float) -> None:
    from metalearn.bench.ranks import bench as run

    run(ranks, names, out, rounds, seconds)
