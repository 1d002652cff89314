"""The command line; nothing here imports torch until a command needs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from metalearn import clock
from metalearn.cli.bench import bench
from metalearn.cli.nas import app as nas_app
from metalearn.cli.new import new
from metalearn.cli.plugin_option import Plugins
from metalearn.cli.plugin_option import load as load_plugins
from metalearn.distributed.launch import on_devices, recorded_devices
from metalearn.errors import ConfigError, exit_codes
from metalearn.logger import show_messages

assert clock.BEGIN  # imported first: the cost of a command counts from here

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Meta-learning benchmark: how fast, and at what total cost, is a new task learned?",
    epilog="Examples:  metalearn compare demo  |  metalearn train maml_sinusoid "
    "run.meta_steps=99  |  metalearn list",
)
data_app = typer.Typer(
    no_args_is_help=True, help="Data sets: list, prepare, verify.", rich_markup_mode=None
)
app.add_typer(data_app, name="data")
app.add_typer(nas_app, name="nas")

Experiment = Annotated[
    str, typer.Argument(help="An experiment file, or a name from `metalearn list experiments`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Dotted overrides, such as method.inner_lr=0.4; values are YAML."),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Output directory; default: runs/<experiment>.")
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        help="Number of processes, one GPU each on CUDA; the tasks of each step are split among "
        "them. Default: 1; for resume: as recorded.",
        min=1,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check and print the resolved config; write nothing.")
]


def _on_devices(
    devices: int | None, act: Callable[[Any, Any], None], plugins: list[str] | None
) -> None:
    """Call `act(commands, ranks)` in each of `devices` processes."""

    def work(ranks: Any) -> None:
        from metalearn.cli import commands

        load_plugins(plugins)
        act(commands, ranks)

    with exit_codes():
        on_devices(devices, work)


@app.command()
def train(
    experiment: Experiment,
    overrides: Overrides = None,
    out: Out = None,
    devices: Devices = None,
    dry_run: DryRun = False,
    plugin: Plugins = None,
) -> None:
    """Meta-train and test one method."""
    args = experiment, overrides or [], out, dry_run
    _on_devices(
        1 if dry_run else devices, lambda commands, ranks: commands.train(*args, ranks), plugin
    )


@app.command()
def compare(
    experiment: Experiment,
    overrides: Overrides = None,
    out: Out = None,
    devices: Devices = None,
    dry_run: DryRun = False,
    plugin: Plugins = None,
) -> None:
    """Run several methods on the same episodes and write one report.

    Concurrent calls with the same --out divide the remaining runs."""
    args = experiment, overrides or [], out, dry_run
    _on_devices(
        1 if dry_run else devices, lambda commands, ranks: commands.compare(*args, ranks), plugin
    )


@app.command()
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, finished or not.")],
    overrides: Overrides = None,
    out: Out = None,
    devices: Devices = None,
    plugin: Plugins = None,
) -> None:
    """Test a run again, or on another task source; never overwrites result.json."""
    args = run_dir, overrides or [], out
    _on_devices(devices, lambda commands, ranks: commands.evaluate(*args, ranks), plugin)


@app.command()
def predict(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    support: Annotated[
        Path,
        typer.Option(
            "--support",
            help="Labelled examples: a folder with one subfolder per class, or a .csv or .npz "
            "file.",
        ),
    ],
    query: Annotated[
        Path,
        typer.Option("--query", help="Inputs to predict: a folder, or a .csv or .npz file."),
    ],
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Number of inner steps; default: the headline step.", min=0),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV file; default: standard output.")
    ] = None,
    invert: Annotated[
        bool,
        typer.Option("--invert", help="Invert the images (for dark ink on a light background)."),
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Adapt to one new task from labelled examples and predict unlabelled ones."""
    with exit_codes():
        from metalearn.cli import predict as command

        load_plugins(plugin)
        command.predict(run_dir, support, query, steps, out, invert)


@app.command()
def recommend(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a comparison.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Number of new tasks.")],
    queries: Annotated[
        str | None, typer.Option("--queries", help="Queries per task; default: as in the test.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Score at which a task counts as solved; default: the target of the comparison.",
        ),
    ] = None,
    axis: Annotated[str, typer.Option("--axis", help="Unit of cost: flops or seconds.")] = "flops",
) -> None:
    """Recommend the cheapest method for a given number of new tasks."""
    with exit_codes():
        from metalearn.cli import recommend as command

        command.run(run_dir, tasks, queries, target, axis)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="Resume even if config.yaml was edited.")
    ] = False,
    devices: Devices = None,
    plugin: Plugins = None,
) -> None:
    """Resume an interrupted run; a finished run is left unchanged."""
    with exit_codes():
        count = devices or recorded_devices(run_dir)
    _on_devices(
        count, lambda commands, ranks: commands.resume(run_dir, allow_change, ranks), plugin
    )


@app.command()
def sweep(
    file: Annotated[
        str, typer.Argument(help="A W&B sweep file, or a name from `metalearn list sweeps`.")
    ],
    job_options: Annotated[
        list[str] | None,
        typer.Argument(help="Job options for --slurm, such as partition=gpu.", metavar="KEY=VALUE"),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", help="Number of worker processes.", min=1, max=512)
    ] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Output directory; default: runs/<sweep>.")
    ] = None,
    wandb: Annotated[
        bool,
        typer.Option("--wandb", help="Register the file as a W&B sweep, to be run by W&B agents."),
    ] = False,
    slurm: Annotated[
        bool,
        typer.Option(
            "--slurm", help="Submit the workers as SLURM jobs with the given KEY=VALUE options."
        ),
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Run a hyperparameter sweep.

    Repeat the command, here or on another machine, to resume or to add workers."""
    with exit_codes():
        if job_options and not slurm:
            raise ConfigError(
                (job_options[0], "KEY=VALUE belongs to --slurm; a sweep takes no overrides")
            )
        from metalearn.sweep.command import sweep as run

        load_plugins(plugin)
        if not run(file, workers, out, wandb, (job_options or []) if slurm else None):
            raise SystemExit(1)


@app.command()
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Experiments with a published result; default: all of them."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Directory for the runs and the summary.")
    ] = Path("runs"),
) -> None:
    """Run experiments that have a published result, and compare with that result.

    Finished runs are reused."""
    with exit_codes():
        from metalearn.cli import commands

        commands.reproduce(names or [], out)


@app.command()
def report(
    dirs: Annotated[
        list[Path], typer.Argument(help="Directories of runs and comparisons, or of sweeps.")
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    plugin: Plugins = None,
) -> None:
    """Write one self-contained HTML report of runs and comparisons, or of sweeps."""
    with exit_codes():
        from metalearn.cli import commands

        load_plugins(plugin)
        commands.report(dirs, out)


app.command()(bench)
app.command()(new)


@app.command()
def l2o(
    experiment: Experiment,
    overrides: Overrides = None,
    out: Out = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            help="Another problem to test on, such as 'model.sizes=[40] task.shots=5'; repeatable.",
        ),
    ] = None,
    inner_seeds: Annotated[
        int,
        typer.Option(
            "--inner-seeds",
            help="Number of random initializations and data orders per task.",
            min=1,
        ),
    ] = 5,
    tuning_tasks: Annotated[
        int,
        typer.Option(
            "--tuning-tasks",
            help="Number of training tasks on which learning rates are tuned.",
            min=2,
        ),
    ] = 500,
    plugin: Plugins = None,
) -> None:
    """Meta-train an update rule and compare it with tuned hand-designed optimizers."""
    with exit_codes():
        load_plugins(plugin)
        from metalearn.l2o.command import L2OOptions, run

        options = L2OOptions(
            experiment, tuple(overrides or ()), out, tuple(also or ()), inner_seeds, tuning_tasks
        )
        print(f"table: {run(options) / 'optimizers.md'}")


@app.command(name="list")
def list_(
    table: Annotated[
        str | None,
        typer.Argument(
            help="One of experiments, sweeps, tasks, models, methods, rules, ...; default: all."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, including the options of components.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """List experiments and components, with a one-line description each."""
    with exit_codes():
        from metalearn.cli.commands import catalogue

        load_plugins(plugin)
        tables = catalogue(table)
        if as_json:
            print(json.dumps(tables, indent=1))
            return
        for name, rows in tables.items():
            print(f"{name}:")
            for row in rows:
                print(f"  {row['name']:<24} {row['sentence']}")


@app.command()
def doctor() -> None:
    """Show versions, devices and missing packages, and how to install them."""
    with exit_codes():
        from metalearn.cli import doctor as checks

        findings = checks.report()
        for text in checks.lines(findings):
            print(text)
        if not checks.healthy(findings):
            raise SystemExit(1)


def _data(act: Callable[[Any], list[str]]) -> None:
    with exit_codes():
        from metalearn.cli import data

        for text in act(data):
            print(text)


@data_app.command("list")
def data_list() -> None:
    """List data sets and show which are prepared."""
    _data(lambda data: data.lines())


@data_app.command("prepare")
def data_prepare(name: Annotated[str, typer.Argument(help="A data set.")]) -> None:
    """Prepare a data set; an existing file is kept."""
    _data(lambda data: data.prepare(name))


@data_app.command("verify")
def data_verify(name: Annotated[str, typer.Argument(help="A data set.")]) -> None:
    """Check the prepared file of a data set."""
    _data(lambda data: data.verify(name))


def main() -> None:
    """The console script."""
    show_messages()
    app()


if __name__ == "__main__":
    main()
