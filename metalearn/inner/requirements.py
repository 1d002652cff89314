"""What a method requires of its tasks; one sentence for each refusal."""

from __future__ import annotations

from metalearn.errors import ConfigError
from metalearn.types import EpisodeSpec


def require_queries(name: str, spec: EpisodeSpec) -> None:
    """Refuse tasks without queries, where the loss to differentiate would be the mean of none."""
    if spec.queries < 1:
        text = f"{name} learns from the query loss and needs at least 1 query, not {spec.queries}"
        raise ConfigError(("task.queries", f"{text}; reptile learns from support sets alone"))


def require_classes(name: str, spec: EpisodeSpec) -> None:
    """Refuse regression where a method compares classes."""
    if not spec.classification:
        text = f"{name} compares classes and needs a classification task, not {spec.kind}"
        raise ConfigError(("method.name", f"{text}; use fine_tune or maml, which learn both kinds"))
