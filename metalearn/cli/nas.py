"""`metalearn nas`: commands about architecture search; nothing here imports torch until a command
needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, help="Architecture search: tables of small spaces.", rich_markup_mode=None
)


@app.callback()
def nas() -> None:
    """Architecture search: tables of small spaces."""


@app.command()
def tabulate(
    space: Annotated[str, typer.Argument(help="conv4-micro, mlp-reg or conv4-size")],
    task: Annotated[
        str, typer.Option("--task", help="an experiment, whose first test tasks are learned")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="fields of per_task_nas, such as inner_lr=0.3 space.filters=8; or task.*, "
            "run.*, ..."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="the table; default runs/tables/<space>-<experiment>.npz"),
    ] = None,
    tasks: Annotated[int, typer.Option("--tasks", help="test tasks", min=2, max=10_000)] = 20,
    seeds: Annotated[
        int, typer.Option("--seeds", help="trainings of each network on each task", min=1, max=100)
    ] = 3,
    points: Annotated[
        str, typer.Option("--points", help="training steps that are looked at")
    ] = "1,2,5,10,20",
) -> None:
    """Train every network of a small space on the same tasks: the truth for searchers. Goes on
    where it stopped.
    """
    from metalearn.errors import exit_codes

    with exit_codes():
        from metalearn.tabular import tabulate as room

        room.tabulate(space, task, overrides or [], out, tasks, seeds, room.points_of(points))


@app.command()
def race(
    table: Annotated[Path, typer.Argument(help="a table of metalearn nas tabulate")],
    searcher: Annotated[
        list[str] | None,
        typer.Option(
            "--searcher",
            help="random, evolution, tpe, halving, params, flops (the table answers them); "
            "darts, darts-first-order, "
            "one-shot, grad_norm, snip, jacob_cov (they train on the table's tasks); "
            "repeatable, default all",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="a searcher's field, such as evolution.population=8; repeatable"
        ),
    ] = None,
    budget: Annotated[
        int, typer.Option("--budget", help="evaluations of a search, in full trainings")
    ] = 64,
    seeds: Annotated[
        int, typer.Option("--seeds", help="searches from other starts, the same for every searcher")
    ] = 20,
    out: Annotated[Path | None, typer.Option("--out", help="the JSON file to write")] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown", help="a Markdown file, in which this table's section is replaced"
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="the SVG of regret against evaluations")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="of searchers that train: auto, cpu, cuda or cuda:<n>")
    ] = "cpu",
) -> None:
    """Race searchers on a table against random search and its theory, and place the picks of those
    that train.
    """
    from metalearn.errors import exit_codes

    with exit_codes():
        from metalearn.tabular import race as room

        room.race(
            room.Words(
                table, searcher or (), sets or (), budget, seeds, out, markdown, plot, device
            )
        )
