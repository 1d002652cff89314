"""RFS-distill (Tian et al. 2020, arXiv:2003.11539, section 3.2): born-again generations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.inner.heads import linear
from metalearn.inner.method import init_state, make_step_on_examples, make_update
from metalearn.inner.statistics import add_stats_delta, stats_delta
from metalearn.losses import criterion, metrics
from metalearn.noise import noise_from
from metalearn.padding import padding_scope, zero_padding
from metalearn.scopes import running_statistics
from metalearn.transfer.pretrain import HEAD, LINEAR, start_meta
from metalearn.transfer.rfs import RFS
from metalearn.tree import STATS, from_named, named_leaves, tree_map
from metalearn.types import (
    Batch,
    EpisodeSpec,
    Grads,
    Key,
    Learner,
    Meta,
    MetaState,
    Method,
    Metrics,
)

FRESH, TEACHER = "fresh", "teacher"  # branches of the meta that the outer rule does not update
NETWORK = ("params", HEAD)


class RFSDistill(RFS):
    """RFS with features that are distilled repeatedly, each generation from the previous one.

    minimise  alpha CE(y, p) + (1 - alpha) T^2 KL(p_teacher, p),  p by softmax at temperature T in
    the second term (equation 7; T as in the authors' code);  the first generation learns the labels
    only, each later one restarts from random parameters with the previous one as its teacher. The
    meta-steps are divided among the `generations`; the schedule of `outer` restarts in each.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.transfer.RFSDistill(copies=0).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departure in cost: one graph serves all steps, so the first generation computes the logits of
    # a teacher that its loss does not use, and the ledger includes that forward pass.
    needs_meta_steps: ClassVar[bool] = True
    name: Literal["rfs_distill"] = option("rfs_distill", "The method.")  # type: ignore[assignment]
    generations: int = option(
        2, "Number of networks trained one after another.", acts="train", ge=2, le=10
    )
    alpha: float = option(0.5, "Weight of the loss of the labels.", acts="train", ge=0, le=1)
    temperature: float = option(4.0, "Temperature T of both softmaxes.", acts="train", gt=0)

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; `meta_steps` are divided among the generations.

        Without `meta_steps` it can learn new tasks, but a training step raises ConfigError."""
        length = None if meta_steps is None else max(meta_steps // self.generations, 1)
        outer, base = self.outer.build(length), super().build(learner, spec, length)
        update, gradient = make_update(outer), self._gradient(learner, spec)

        def init(key: Key) -> MetaState:
            start = start_meta(learner, spec, LINEAR, key)
            copies = (tree_map(torch.clone, freeze_leaves(start)) for _ in range(2))
            return init_state({**start, **dict(zip((FRESH, TEACHER), copies))}, outer)

        def start_generation(state: MetaState, length: int) -> MetaState:
            """Return the state of a new generation at its first step, else `state`."""
            network = {name: state.meta[name] for name in NETWORK}
            initial = state.meta[FRESH]
            fresh = unfreeze_leaves(network, initial)
            meta = {**fresh, FRESH: initial, TEACHER: freeze_leaves(network)}
            restarted = init_state(meta, outer)._replace(step=state.step)
            total_steps = length * self.generations
            starts = (state.step % length == 0) & (state.step > 0) & (state.step < total_steps)
            chosen: MetaState = tree_map(lambda a, b: torch.where(starts, a, b), restarted, state)
            return chosen

        def step(state: MetaState, batch: Batch) -> tuple[MetaState, Metrics]:
            if length is None:
                text = "its generations divide meta_steps: pass their number to build"
                raise ConfigError(("meta_steps", f"{self.name} is trained for none; {text}"))
            with_teacher = partial(gradient, later=state.step >= length)
            draws_noise = learner.draws_noise
            step_fn = make_step_on_examples(with_teacher, update, spec, draws_noise=draws_noise)
            return step_fn(start_generation(state, length), batch)

        return base._replace(init=init, update=update, step=step)

    def _gradient(
        self, learner: Learner, spec: EpisodeSpec
    ) -> Callable[..., tuple[Grads, Metrics]]:
        """Return (meta, batch, later []) -> gradients and metrics, with the teacher if `later`."""
        loss_of = criterion(spec)

        def loss(network: Meta, meta: Meta, later: Tensor, batch: Batch) -> tuple[Tensor, Any]:
            with padding_scope(batch.weight), running_statistics.training_scope() as scope:
                logits = linear(network[HEAD], learner.features(network["params"], batch.x))
            teacher = unfreeze_leaves(network, meta[TEACHER])
            with noise_from(None), padding_scope(batch.weight):  # in evaluation mode
                target = linear(teacher[HEAD], learner.features(teacher["params"], batch.x))
            label_loss = loss_of(logits, *batch[1:])
            both = self.alpha * label_loss + (1 - self.alpha) * self._distance(
                logits, target, batch
            )
            scores = metrics(spec, logits, *batch[1:])
            return torch.where(later, both, label_loss), (scores, stats_delta(scope, network))

        def gradient(meta: Meta, batch: Batch, later: Tensor) -> tuple[Grads, Metrics]:
            network, batch = {name: meta[name] for name in NETWORK}, zero_padding(batch)
            differentiate = torch.func.grad(loss, has_aux=True)
            grads, (batch_metrics, delta) = differentiate(network, meta, later, batch)
            zero_grads = {name: tree_map(torch.zeros_like, meta[name]) for name in (FRESH, TEACHER)}
            return {**add_stats_delta(grads, delta), **zero_grads}, batch_metrics

        return gradient

    def _distance(self, logits: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """Return the mean of T^2 KL(p_teacher, p) over examples: []."""
        p, q = ((x / self.temperature).log_softmax(-1) for x in (logits, target))
        divergence = self.temperature**2 * (q.exp() * (q - p)).sum(-1)
        if batch.weight is None:
            return divergence.mean()
        return weighted_mean(divergence, batch.weight)


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (weight * x).sum() / weight.sum()


def freeze_leaves(network: Meta) -> Any:
    """Return the leaves of a network under names that no rule updates."""
    return {STATS + name: value for name, value in named_leaves(network).items()}


def unfreeze_leaves(like: Meta, leaves: Any) -> Any:
    """Return the network with the structure of `like` from the result of `freeze_leaves`."""
    return from_named(like, {name: leaves[STATS + name] for name in named_leaves(like)})
