"""Weights & Biases: the only file that imports it."""

from __future__ import annotations

from typing import Any

from metalearn.errors import ConfigError


def new_sweep(data: dict[str, Any], program: str) -> str:
    """Register a sweep file with W&B; the commands that start its agents. ConfigError without an account."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(("--wandb", "needs the package wandb: pip install wandb")) from error
    # An agent's trial is `metalearn train` with dotted overrides, in a folder of its own.
    run = 'exec metalearn train "$0" "$@" --out "runs/sweeps/$WANDB_SWEEP_ID/$WANDB_RUN_ID"'
    command = ["${env}", "sh", "-c", run, "${program}", "${args_no_hyphens}"]
    asked = {"project": "metalearn", "command": command, **data, "program": program}
    try:
        made = wandb.sweep(asked)
    except Exception as error:  # W&B's own errors, the network's and the server's have no common type
        reason = " ".join(str(error).split()) or type(error).__name__
        text = f"W&B did not take the sweep ({reason}): `wandb login` first, or leave --wandb out and run it here"
        raise ConfigError(("--wandb", text)) from error
    entity = f"{asked['entity']}/" if "entity" in asked else ""
    return f"wandb agent {entity}{asked['project']}/{made}"
