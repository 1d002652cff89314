"""The option `--plugin` of the commands."""

from __future__ import annotations

from typing import Annotated

import typer

Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="Module or .py file with your own components; repeatable."),
]


def load(plugins: list[str] | None) -> None:
    """Import plug-ins, which register their components."""
    if plugins:
        from metalearn.config.plugins import load_plugins

        load_plugins(plugins)
