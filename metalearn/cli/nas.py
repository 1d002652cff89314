"""`metalearn nas`: commands of architecture search; torch is imported when one needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metalearn.cli.plugin_option import Plugins, load

app = typer.Typer(
    no_args_is_help=True,
    help="Architecture search: tables of small search spaces.",
    rich_markup_mode=None,
)


@app.callback()
def nas() -> None:
    """Architecture search: tables of small search spaces."""


Points = Annotated[
    str, typer.Option("--points", help="Training steps at which networks are scored.")
]


Trainings = Annotated[
    int,
    typer.Option("--seeds", help="Number of training runs per network and task.", min=1, max=100),
]


@app.command()
def tabulate(
    space: Annotated[
        str, typer.Argument(help="A small search space: conv4-micro, mlp-reg or conv4-size.")
    ],
    task: Annotated[
        str, typer.Option("--task", help="Experiment whose first test tasks are used.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Fields of per_task_nas, such as inner_lr=0.3 space.filters=8; or task.*, "
            "run.*, ..."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Table to write; default: runs/tables/<space>-<experiment>.npz."
        ),
    ] = None,
    tasks: Annotated[
        int, typer.Option("--tasks", help="Number of test tasks.", min=2, max=10_000)
    ] = 20,
    seeds: Trainings = 3,
    points: Points = "1,2,5,10,20",
    plugin: Plugins = None,
) -> None:
    """Train every network of a small search space on the same tasks, as ground truth.

    Repeat the command to resume. The table is the ground truth of `metalearn nas race`."""
    from metalearn.errors import exit_codes

    with exit_codes():
        from metalearn.tabular import tabulate as table

        load(plugin)
        table.tabulate(space, task, overrides or [], out, tasks, seeds, table.parse_points(points))


Table = Annotated[Path, typer.Argument(help="A table written by metalearn nas tabulate.")]
Searchers = Annotated[
    list[str] | None,
    typer.Option(
        "--searcher",
        help="Search algorithm: random, evolution, tpe, halving, params or flops (evaluated from "
        "the table); darts, darts-first-order, one-shot, grad_norm, snip or jacob_cov (they train "
        "on the tasks of the table). Repeatable; default: all.",
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Option of a search algorithm: evolution.population=8; repeatable."),
]
Budget = Annotated[
    int, typer.Option("--budget", help="Budget of one search, in full training runs.")
]
Seeds = Annotated[
    int,
    typer.Option("--seeds", help="Number of search seeds, the same for all search algorithms."),
]
RaceOut = Annotated[Path | None, typer.Option("--out", help="JSON file to write.")]
Markdown = Annotated[
    Path | None,
    typer.Option(
        "--markdown", help="Markdown file in which the section for this table is replaced."
    ),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="SVG figure of regret against evaluations.")
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="Device of search algorithms that train: auto, cpu, cuda or cuda:<n>.",
    ),
]


@app.command()
def race(
    table: Table,
    searcher: Searchers = None,
    sets: Sets = None,
    budget: Budget = 64,
    seeds: Seeds = 20,
    out: RaceOut = None,
    markdown: Markdown = None,
    plot: Plot = None,
    device: Device = "cpu",
    plugin: Plugins = None,
) -> None:
    """Compare search algorithms with simulated and exact random search on a table.

    For algorithms that train networks, the rank of the chosen networks is reported."""
    from metalearn.errors import exit_codes

    with exit_codes():
        from metalearn.tabular.race import race as run
        from metalearn.tabular.race_options import RaceOptions

        load(plugin)
        names = (searcher or (), sets or ())
        run(RaceOptions(table, *names, budget, seeds, out, markdown, plot, device))
