"""`metalearn.LearnedOptimizer`: learned optimizers from run directories and saved files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError
from metalearn.learned_optimizers import torch_optimizer
from metalearn.learned_optimizers.rules.learned_rule import LearnedRuleComponent, Theta
from metalearn.logger import log
from metalearn.run.directory import stored_experiment
from metalearn.run.warm_start import best_file
from metalearn.storage import checkpoint


class LearnedOptimizer(torch_optimizer.LearnedOptimizer):
    __doc__ = torch_optimizer.LearnedOptimizer.__doc__

    @classmethod
    def load(cls, path: str | Path, params: Any, num_steps: int) -> LearnedOptimizer:
        """Load the optimizer of a run directory, a checkpoint in it, or a saved file.

        `num_steps` is the total number of steps that will be made; a rule that was trained on
        shorter runs may perform worse, and a warning is logged."""
        rule, theta = found_in(Path(path))
        made = cls(params, rule, theta, num_steps)
        _warn_beyond(Path(path), num_steps)
        return made


def found_in(path: Path) -> tuple[LearnedRuleComponent, Theta]:
    """(rule, theta) of a run directory, a checkpoint or a saved file.

    ConfigError where there is none."""
    if path.is_dir():
        return _from_run(path, _tested(path), path)
    if _is_checkpoint(path):
        return _from_run(path.parent.parent, path, path)
    return torch_optimizer.read(path)


def _warn_beyond(path: Path, num_steps: int) -> None:
    """Warn where the rule of a run was learned for fewer steps; a saved file does not know."""
    if not (path.is_dir() or _is_checkpoint(path)):
        return
    home = path if path.is_dir() else path.parent.parent
    trained = stored_experiment(home).base_method.rule_steps
    if trained is not None and num_steps > trained:
        text = f"num_steps={num_steps}, and the rule was learned for runs of at most {trained}"
        log.warning(f"{home}: {text} steps: look at the loss, it may diverge beyond them")


def _is_checkpoint(path: Path) -> bool:
    """Whether it lies in the checkpoints of a run directory."""
    home = path.parent.parent
    return path.parent.name == "checkpoints" and (home / "config.yaml").is_file()


def _from_run(folder: Path, file: Path, place: Path) -> tuple[LearnedRuleComponent, Theta]:
    method = stored_experiment(folder).base_method
    rule = method.learned_rule
    if not isinstance(rule, LearnedRuleComponent):
        text = f"its method, {method.name}, does not learn an optimizer: use a run of one that"
        raise ConfigError((str(folder), f"{text} does, such as learned_optimizer"))
    return rule, _theta(file, place, method.rule_branch)


def _tested(folder: Path) -> Path:
    """The checkpoint that a finished run was tested with; of an interrupted run the newest."""
    if (folder / "result.json").exists():
        return best_file(folder)
    steps = checkpoint.steps_in(folder / "checkpoints")
    if not steps:
        text = f"contains no checkpoint yet: continue with metalearn resume {folder}"
        raise ConfigError((str(folder), text))
    return checkpoint.path_of(folder / "checkpoints", steps[-1])


def _theta(file: Path, place: Path, branch: str | None) -> Theta:
    """The rule's part of a checkpoint's meta, which may be nothing else."""
    named = checkpoint.read(file)
    meta = {
        name.removeprefix("meta."): value
        for name, value in named.items()
        if name.startswith("meta.")
    }
    part = {
        name.removeprefix(f"{branch}."): value
        for name, value in meta.items()
        if name.startswith(f"{branch}.")
    }
    if not meta:
        raise ConfigError((str(place), "has learned nothing across tasks"))
    return part or meta
