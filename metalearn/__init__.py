"""Meta-learning, measured: how fast, and at what total cost, is a new task learned?

Names resolve at first use (PEP 562), so that `import metalearn` and `metalearn --help` do not wait
for torch.
"""

from __future__ import annotations

import importlib
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
__all__ = [*MODULES, *NAMES]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"metalearn.{name}")
    if name in NAMES:
        return getattr(importlib.import_module(NAMES[name]), name)
    raise AttributeError(f"module 'metalearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
