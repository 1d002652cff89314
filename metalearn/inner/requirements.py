"""What a method requires of its tasks; one sentence for each refusal."""

from __future__ import annotations

from metalearn.errors import ConfigError
from metalearn.types import Batch, EpisodeSpec, Learner


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


def require_head(name: str, learner: Learner, linear: bool = True) -> None:
    """Refuse a network without a head of its own, and with `linear` one that goes on behind it."""
    if learner.readout == "none":
        text = f"has no head, which {name} needs: from_module(net, spec, head='new') puts one there"
        raise ConfigError(("model", text))
    if linear and learner.readout == "module":
        text = f"goes on behind its head, which {name} would leave out: end the module with it"
        raise ConfigError(("model", text))


def require_random_start(name: str, learner: Learner) -> None:
    """Refuse a network that starts from the same weights for every key."""
    if not learner.random_start:
        text = f"starts from the weights of a module for every task, and {name} draws a start: give"
        raise ConfigError(("model", f"{text} a class or function that makes it, or init='uniform'"))


def require_no_noise(name: str, learner: Learner) -> None:
    """Refuse a network that draws noise in training steps where a method has no keys for it."""
    if learner.draws_noise:
        text = f"draws noise in training, such as dropout, and {name} has no keys for it"
        raise ConfigError(("model", f"{text}: net.eval() leaves it out"))


def require_no_padding(name: str, spec: EpisodeSpec, *batches: Batch) -> None:
    """Refuse tasks of variable size and weighted examples where a method has no use for weights."""
    if spec.padded or any(batch.weight is not None for batch in batches):
        text = f"{name} has no weights of examples: give one number of ways and one of shots"
        raise ConfigError(("task", text))
