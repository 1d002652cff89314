"""The command line; nothing here imports torch until a command needs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from metalearn import clock
from metalearn.cli.nas import app as nas_app
from metalearn.distributed.launch import on_devices, recorded
from metalearn.errors import ConfigError, exit_codes
from metalearn.logger import show_messages

assert clock.BEGIN  # imported first: the bill begins here

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Learning to learn, measured: how fast, and at what total cost, is a new task learned?",
    epilog="Examples:  metalearn compare demo  |  metalearn train maml_sinusoid "
    "run.meta_steps=99  |  metalearn list",
)
data_app = typer.Typer(
    no_args_is_help=True,
    help="Data sets: what there is, preparing, verifying.",
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(nas_app, name="nas")

Experiment = Annotated[
    str, typer.Argument(help="an experiment file, or a name from `metalearn list experiments`")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="dotted overrides, such as method.inner_lr=0.4; values are YAML"),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="where to write; default runs/<experiment>")
]
Devices = Annotated[
    int | None,
    typer.Option("--devices", help="processes that share the tasks of a step; default 1", min=1),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="check and print the resolved config; write nothing")
]


@app.command()
def train(
    experiment: Experiment,
    overrides: Overrides = None,
    out: Out = None,
    devices: Devices = None,
    dry_run: DryRun = False,
) -> None:
    """Meta-train and test one method."""

    def work(team: Any) -> None:
        from metalearn.cli import commands

        commands.train(experiment, overrides or [], out, dry_run, team)

    with exit_codes():
        on_devices(1 if dry_run else devices, work)


@app.command()
def compare(
    experiment: Experiment,
    overrides: Overrides = None,
    out: Out = None,
    devices: Devices = None,
    dry_run: DryRun = False,
) -> None:
    """Run several methods on the same episodes and write one report; two calls share what is not
    finished.
    """

    def work(team: Any) -> None:
        from metalearn.cli import commands

        commands.compare(experiment, overrides or [], out, dry_run, team)

    with exit_codes():
        on_devices(1 if dry_run else devices, work)


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="a finished run directory")],
    overrides: Overrides = None,
    out: Out = None,
    devices: Devices = None,
) -> None:
    """Test a finished run again, or on another task source; never overwrites result.json."""

    def work(team: Any) -> None:
        from metalearn.cli import commands

        commands.evaluate(run_dir, overrides or [], out, team)

    with exit_codes():
        on_devices(devices, work)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="a run directory")],
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="continue although config.yaml was edited")
    ] = False,
    devices: Devices = None,
) -> None:
    """Continue an interrupted run; on a finished one it says so."""

    def work(team: Any) -> None:
        from metalearn.cli import commands

        commands.resume(run_dir, allow_change, team)

    with exit_codes():
        on_devices(devices or recorded(run_dir), work)


@app.command()
def sweep(
    file: Annotated[
        str, typer.Argument(help="a W&B sweep file, or a name from `metalearn list sweeps`")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="with --slurm: of the jobs, such as partition=gpu", metavar="KEY=VALUE"
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", help="processes to run trials with", min=1, max=512)
    ] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="where to write; default runs/<sweep>")
    ] = None,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="hand the file to W&B's own sweep")
    ] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="submit the workers as jobs; key=value ... say how")
    ] = False,
) -> None:
    """Run many settings of one experiment; give the command again, here or elsewhere, to go on or
    to add workers.
    """
    with exit_codes():
        if words and not slurm:
            raise ConfigError(
                (words[0], "key=value belongs to --slurm; what a sweep changes stands in its file")
            )
        from metalearn.sweep.command import sweep as run

        if not run(file, workers, out, wandb, (words or []) if slurm else None):
            raise SystemExit(1)


@app.command()
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="experiments with a published number; default: all that have one"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="where runs/<experiment> and the record lie")
    ] = Path("runs"),
) -> None:
    """Run experiments with a published number, hold them against it, and record both; finished runs
    are kept.
    """
    with exit_codes():
        from metalearn.cli import commands

        commands.reproduce(names or [], out)


@app.command()
def report(
    dirs: Annotated[list[Path], typer.Argument(help="run and comparison directories, or sweeps")],
    out: Annotated[Path, typer.Option("--out", help="the page to write")] = Path("report.html"),
) -> None:
    """One self-contained page about runs and comparisons, or about sweeps."""
    with exit_codes():
        from metalearn.cli import commands

        commands.report(dirs, out)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="workloads, such as sinusoid_1step; default all")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="the JSON file to write; a picture goes beside it")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="the SVG to write; default beside --out")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown", help="a Markdown file, in which this machine's section is replaced"
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", help="rounds in which each engine has its turn", min=1)
    ] = 15,
    seconds: Annotated[
        float, typer.Option("--seconds", help="of a workload, then no new round begins", min=0)
    ] = 60,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:<n>")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="CPU threads; default all cores, 1 for the sinusoid", min=1),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option("--tasks", help="tasks a batch, not the workload's own", min=1)
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine", help="native, learn2learn, higher, torchopt, jax, torch; repeatable"
        ),
    ] = None,
    executor: Annotated[
        list[str] | None,
        typer.Option("--executor", help="of native, such as vmap or compiled:4; repeatable"),
    ] = None,
    scaling: Annotated[
        bool,
        typer.Option(
            "--scaling",
            help="1 to 512 tasks a batch, and memory in chunks; alone, without the table",
        ),
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="keep what --out holds of other workloads")
    ] = False,
    cold: Annotated[bool, typer.Option("--cold", help="compile anew, as a first run does")] = False,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks", help="a step made by so many processes and by one; no table", min=2
        ),
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="on CUDA: products with ten bits of mantissa")
    ] = False,
) -> None:
    """Speed of one meta-step against learn2learn, higher, TorchOpt and JAX, in turns, once all
    gradients agree.
    """
    with exit_codes():
        if ranks is not None:
            on_devices(ranks, lambda team: _bench_ranks(team, names or [], out, repeats, seconds))
            return
        from metalearn.bench.command import Words
        from metalearn.bench.command import bench as run

        words = Words(
            names or (),
            out,
            plot,
            markdown,
            repeats,
            seconds,
            device,
            threads,
            tasks,
            engine or (),
            executor or (),
            scaling,
            merge,
            cold,
            tf32,
        )
        run(words)


def _bench_ranks(
    team: Any, names: list[str], out: Path | None, rounds: int, seconds: float
) -> None:
    from metalearn.bench.ranks import bench as run

    run(team, names, out, rounds, seconds)


@app.command()
def l2o(
    experiment: Experiment,
    overrides: Overrides = None,
    out: Out = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            help="another problem to test on, such as 'model.sizes=[40] task.shots=5'; repeatable",
        ),
    ] = None,
    inner_seeds: Annotated[
        int, typer.Option("--inner-seeds", help="starts and data orders of each task", min=1)
    ] = 5,
    tuning_tasks: Annotated[
        int, typer.Option("--tuning-tasks", help="training tasks that choose rates", min=2)
    ] = 500,
) -> None:
    """Meta-train an update rule with every seed and hold it against tuned hand-made optimizers on
    fresh problems.
    """
    with exit_codes():
        from metalearn.l2o.command import Words, run

        words = Words(
            experiment, tuple(overrides or ()), out, tuple(also or ()), inner_seeds, tuning_tasks
        )
        print(f"table: {run(words) / 'optimizers.md'}")


@app.command(name="list")
def list_(
    table: Annotated[
        str | None,
        typer.Argument(help="experiments, sweeps, tasks, models, methods, rules, ...; default all"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Everything that exists, with its sentence."""
    with exit_codes():
        from metalearn.cli.commands import catalogue

        found = catalogue(table)
        if as_json:
            print(json.dumps(found, indent=1))
            return
        for name, rows in found.items():
            print(f"{name}:")
            for row in rows:
                print(f"  {row['name']:<24} {row['sentence']}")


@app.command()
def doctor() -> None:
    """Versions, device, optional parts, what is missing and how to get it."""
    with exit_codes():
        from metalearn.cli import doctor as room

        findings = room.report()
        for text in room.lines(findings):
            print(text)
        if not room.healthy(findings):
            raise SystemExit(1)


def _data(act: Callable[[], Any]) -> None:
    with exit_codes():
        for text in act():
            print(text)


@data_app.command("list")
def data_list() -> None:
    """The data sets, and which of them are prepared."""
    with exit_codes():
        from metalearn.cli import data

        _data(data.lines)


@data_app.command("prepare")
def data_prepare(name: Annotated[str, typer.Argument(help="a data set")]) -> None:
    """Make a data set's prepared file; one that is there is left alone."""
    with exit_codes():
        from metalearn.cli import data

        _data(lambda: data.prepare(name))


@data_app.command("verify")
def data_verify(name: Annotated[str, typer.Argument(help="a data set")]) -> None:
    """Check a data set's prepared file."""
    with exit_codes():
        from metalearn.cli import data

        _data(lambda: data.verify(name))


def main() -> None:
    """The console script."""
    show_messages()
    app()


if __name__ == "__main__":
    main()
