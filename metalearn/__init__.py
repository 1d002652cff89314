"""Meta-learning, measured: how fast, and at what total cost, is a new task learned?

Names resolve at first use (PEP 562), so that `import metalearn` and `metalearn --help` do not wait
for torch."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0.2.0"

# fmt: off
MODULES = (
    "tasks", "models", "inner", "algorithms", "in_context", "learned_optimizers", "transfer", "nas",
    "evaluate", "interop", "run", "rng", "types", "losses", "tree", "errors", "compare", "report",
    "sweep", "testing",
)
# fmt: on
NAMES = {
    "fold_in": "metalearn.rng",
    "register": "metalearn.config.plugins",
    "train": "metalearn.compare.python",
    "experiment": "metalearn.compare.python",
    "resume": "metalearn.compare.python",
    "section": "metalearn.report.section",
    "reproduce": "metalearn.compare.python",
    "evaluate_run": "metalearn.cli.commands",
    "load_run": "metalearn.run.trained.load",
    "FewShotClassifier": "metalearn.run.trained.estimators",
    "FewShotRegressor": "metalearn.run.trained.estimators",
    "LearnedOptimizer": "metalearn.run.trained.learned_optimizer",
    "Batch": "metalearn.types",
    "Episode": "metalearn.types",
    "EpisodeSpec": "metalearn.types",
    "Learner": "metalearn.types",
    "UpdateRule": "metalearn.types",
    "MetaState": "metalearn.types",
    "Method": "metalearn.types",
    "Traits": "metalearn.types",
    "Component": "metalearn.component",
    "ConfigError": "metalearn.errors",
    "option": "metalearn.component",
}
# Former names of modules, as in older scripts: they and their submodules import the new ones.
MOVED = {
    "metalearn.run.bench": "metalearn.bench",
    "metalearn.run.commands": "metalearn.cli.commands",
    "metalearn.run.l2o": "metalearn.l2o",
    "metalearn.run.learned_optimizer": "metalearn.run.trained.learned_optimizer",
    "metalearn.run.load": "metalearn.run.trained.load",
    "metalearn.run.sweep": "metalearn.sweep",
}
__all__ = [*MODULES, *NAMES]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"metalearn.{name}")
    if name in NAMES:
        return getattr(importlib.import_module(NAMES[name]), name)
    raise AttributeError(f"module 'metalearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _MovedModules:
    """Finder and loader of MOVED: a module with the names of the new one."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        is_moved = any(f"{name}.".startswith(f"{former}.") for former in MOVED)
        return ModuleSpec(name, _MovedModules, is_package=True) if is_moved else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        former = next(name for name in MOVED if f"{module.__name__}.".startswith(f"{name}."))
        present = MOVED[former] + module.__name__.removeprefix(former)
        new = importlib.import_module(present)
        warnings.warn(f"{module.__name__} is now {present}", DeprecationWarning, stacklevel=2)
        module.__dict__.update(
            {name: value for name, value in vars(new).items() if name not in vars(module)}
        )


if _MovedModules not in sys.meta_path:
    # First, because a remaining folder of a former package would be a namespace package.
    sys.meta_path.insert(0, _MovedModules)
