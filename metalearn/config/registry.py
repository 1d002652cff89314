"""Tables of all components by name, one line per component."""

from __future__ import annotations

from typing import Any

from metalearn.algorithms import ALGORITHMS
from metalearn.component import Component, MethodComponent
from metalearn.in_context import IN_CONTEXT
from metalearn.inner.rules import RULES
from metalearn.learned_optimizers import ESTIMATORS, HORIZONS, LEARNED_OPTIMIZERS, LEARNED_RULES
from metalearn.models import MODELS
from metalearn.nas import NAS, NAS_MODELS, SEARCHERS, SPACES
from metalearn.tasks import TASKS, Given
from metalearn.tracking import SINKS
from metalearn.transfer import TRANSFER

METHODS: dict[str, type[MethodComponent]] = {
    **ALGORITHMS,
    **IN_CONTEXT,
    **TRANSFER,
    **NAS,
    **LEARNED_OPTIMIZERS,
}
TABLES: dict[str, dict[str, type[Component]]] = {
    "tasks": {**TASKS, "task_sources": Given},
    "models": {**MODELS, **NAS_MODELS},
    "methods": METHODS,  # type: ignore[dict-item]
    "rules": RULES,  # type: ignore[dict-item]
    "learned_rules": LEARNED_RULES,  # type: ignore[dict-item]
    "estimators": ESTIMATORS,  # type: ignore[dict-item]
    "horizons": HORIZONS,  # type: ignore[dict-item]
    "spaces": SPACES,  # type: ignore[dict-item]
    "searchers": SEARCHERS,  # type: ignore[dict-item]
    "trackers": SINKS,  # type: ignore[dict-item]
}
REPORT: dict[str, Any] = {}  # sections of the report, by their questions
