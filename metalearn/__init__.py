"""Learning to learn, measured: how fast, and at what total cost, is a new task learned?

Names resolve lazily, so that `import metalearn` and `metalearn --help` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

ROOMS = (
    *(
        "tasks",
        "models",
        "inner",
        "algorithms",
        "learned_optimizers",
        "transfer",
        "nas",
        "evaluate",
        "interop",
        "run",
    ),
    *("rng", "types", "losses", "tree", "errors"),
)
NAMES = {
    "fold_in": "metalearn.rng",
    "load_run": "metalearn.run.load",
    "LearnedOptimizer": "metalearn.run.learned_optimizer",
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
__all__ = [*ROOMS, *NAMES]


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return importlib.import_module(f"metalearn.{name}")
    if name in NAMES:
        return getattr(importlib.import_module(NAMES[name]), name)
    raise AttributeError(f"module 'metalearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
