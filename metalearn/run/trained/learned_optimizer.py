"""`metalearn.LearnedOptimizer`: learned optimizers from run directories and saved files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError
from metalearn.learned_optimizers import torch_optimizer
from metalearn.learned_optimizers.rules.learned_rule import LearnedRuleComponent, Theta
from metalearn.logger import log
from metalearn.run.directory import stored_experiment
from metalearn.run.warm_start import tested_checkpoint
from metalearn.storage import checkpoint


class LearnedOptimizer(torch_optimizer.LearnedOptimizer):
    __doc__ = torch_optimizer.LearnedOptimizer.__doc__

    @classmethod
    def load(cls, path: str | Path, params: Any, num_steps: int) -> LearnedOptimizer:
        """Load the optimizer of a run directory, a checkpoint in it, or a saved file.

        `num_steps` is the total number of steps that will be made; a rule that was trained on
        shorter runs may perform worse, and a warning is logged."""
        rule, theta = load_rule(Path(path))
        optimizer = cls(params, rule, theta, num_steps)
        _warn_if_longer(Path(path), num_steps)
        return optimizer


def load_rule(path: Path) -> tuple[LearnedRuleComponent, Theta]:
    """Return (rule, theta) of a run directory, a checkpoint or a saved file.

    Raises ConfigError if there is none."""
    if path.is_dir():
        return _from_run(path, _tested_checkpoint(path), path)
    if _is_checkpoint(path):
        return _from_run(path.parent.parent, path, path)
    return torch_optimizer.read_rule(path)


def _warn_if_longer(path: Path, num_steps: int) -> None:
    """Warn if the rule of a run was learned for fewer steps; a saved file does not record them."""
    if not (path.is_dir() or _is_checkpoint(path)):
        return
    run_folder = path if path.is_dir() else path.parent.parent
    trained_steps = stored_experiment(run_folder).base_method.rule_steps
    if trained_steps is not None and num_steps > trained_steps:
        text = (
            f"num_steps={num_steps}, and the rule was learned for runs of at most {trained_steps}"
        )
        log.warning(f"{run_folder}: {text} steps: look at the loss, it may diverge beyond them")


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file is in the checkpoints of a run directory."""
    run_folder = path.parent.parent
    return path.parent.name == "checkpoints" and (run_folder / "config.yaml").is_file()


def _from_run(folder: Path, file: Path, source: Path) -> tuple[LearnedRuleComponent, Theta]:
    method = stored_experiment(folder).base_method
    rule = method.learned_rule
    if not isinstance(rule, LearnedRuleComponent):
        text = f"its method, {method.name}, does not learn an optimizer: use a run of one that"
        raise ConfigError((str(folder), f"{text} does, such as learned_optimizer"))
    return rule, _theta(file, source, method.rule_branch)


def _tested_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that a finished run was tested with, or the newest one."""
    if (folder / "result.json").exists():
        return tested_checkpoint(folder)
    steps = checkpoint.steps_in(folder / "checkpoints")
    if not steps:
        text = f"contains no checkpoint yet: continue with metalearn resume {folder}"
        raise ConfigError((str(folder), text))
    return checkpoint.path_of(folder / "checkpoints", steps[-1])


def _theta(file: Path, source: Path, branch: str | None) -> Theta:
    """Return the leaves of the rule in a checkpoint's meta, or all if it has only the rule."""
    named = checkpoint.read(file)
    meta = {
        name.removeprefix("meta."): value
        for name, value in named.items()
        if name.startswith("meta.")
    }
    rule_leaves = {
        name.removeprefix(f"{branch}."): value
        for name, value in meta.items()
        if name.startswith(f"{branch}.")
    }
    if not meta:
        raise ConfigError((str(source), "has learned nothing across tasks"))
    return rule_leaves or meta
