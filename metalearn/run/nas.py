"""`metalearn nas`: commands about architecture search; nothing here imports torch until a command needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Architecture search: tables of small spaces.", rich_markup_mode=None)


@app.callback()
def nas() -> None:
    """Architecture search: tables of small spaces."""


@app.command()
def tabulate(
    space: Annotated[str, typer.Argument(help="conv4-micro, mlp-reg or conv4-size")],
    task: Annotated[str, typer.Option("--task", help="an experiment, whose first test tasks are learned")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="fields of per_task_nas, such as inner_lr=0.3 space.filters=8; or task.*, run.*, ..."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="the table; default runs/tables/<space>-<experiment>.npz")
    ] = None,
    tasks: Annotated[int, typer.Option("--tasks", help="test tasks", min=2, max=10_000)] = 20,
    seeds: Annotated[int, typer.Option("--seeds", help="trainings of each network on each task", min=1, max=100)] = 3,
    points: Annotated[str, typer.Option("--points", help="training steps that are looked at")] = "1,2,5,10,20",
) -> None:
    """Train every network of a small space on the same tasks: the truth for searchers. Goes on where it stopped."""
    from metalearn.run.cli import exit_codes, say

    with exit_codes():
        from metalearn.run import tabulate as room

        room.tabulate(space, task, overrides or [], out, tasks, seeds, room.points_of(points), say)
