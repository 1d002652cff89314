"""What a method requires of its tasks; one sentence for each refusal."""

from __future__ import annotations

from metalearn.errors import ConfigError
from metalearn.types import Batch, EpisodeSpec, Learner


def require_queries(name: str, spec: EpisodeSpec) -> None:
    """Refuse tasks without queries, where the loss to differentiate would be the mean of none."""
    if spec.queries < 1:
        text = f"{name} minimises the query loss and needs at least 1 query (got {spec.queries})"
        raise ConfigError(("task.queries", f"{text}; reptile uses only support sets"))


def require_classes(name: str, spec: EpisodeSpec) -> None:
    """Refuse regression where a method compares classes."""
    if not spec.classification:
        text = f"{name} needs a classification task (got {spec.kind})"
        raise ConfigError(("method.name", f"{text}; use fine_tune or maml for regression"))


def require_head(name: str, learner: Learner, linear: bool = True) -> None:
    """Refuse a network without a head of its own, and with `linear` one that goes on behind it."""
    if learner.readout == "none":
        text = f"has no head, which {name} needs: from_module(net, spec, head='new') adds one"
        raise ConfigError(("model", text))
    if linear and learner.readout == "module":
        text = f"has layers after its head, which {name} would skip: make the head the last layer"
        raise ConfigError(("model", text))


def require_random_start(name: str, learner: Learner) -> None:
    """Refuse a network that starts from the same weights for every key."""
    if not learner.random_start:
        text = (
            f"starts every task from the same weights, but {name} needs random initialization: pass"
        )
        raise ConfigError(
            ("model", f"{text} a class or function that creates it, or init='uniform'")
        )


def require_no_noise(name: str, learner: Learner) -> None:
    """Refuse a network that draws noise in training steps where a method has no keys for it."""
    if learner.draws_noise:
        text = f"samples noise in training, such as dropout, but {name} has no keys for it"
        raise ConfigError(("model", f"{text}: use net.eval() to disable it"))


def require_no_padding(name: str, spec: EpisodeSpec, *batches: Batch) -> None:
    """Refuse tasks of variable size and weighted examples where a method has no use for weights."""
    if spec.padded or any(batch.weight is not None for batch in batches):
        text = f"{name} does not support example weights: use fixed ways and shots"
        raise ConfigError(("task", text))
