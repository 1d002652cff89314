"""What a method asks of the tasks that it is built for; one sentence for each refusal."""

from __future__ import annotations

from metalearn.errors import ConfigError
from metalearn.types import EpisodeSpec


def need_queries(name: str, spec: EpisodeSpec) -> None:
    """Refuse tasks without queries: the query loss, which the method differentiates, would be the
    mean of nothing.
    """
    if spec.queries < 1:
        raise ConfigError(
            (
                "task.queries",
                f"{name} learns from the query loss and needs at least 1 query, not "
                f"{spec.queries}; "
                "reptile learns from support sets alone",
            )
        )


def need_classes(name: str, spec: EpisodeSpec) -> None:
    """Refuse regression where a method is about classes."""
    if not spec.classification:
        raise ConfigError(
            (
                "method.name",
                f"{name} compares examples with class means and needs a classification task, not "
                f"{spec.kind}; maml, anil, boil, reptile and meta_sgd learn both",
            )
        )
