"""Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999, algorithm 1), by the protocol of the
authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from metalearn import rng
from metalearn.algorithms.maml import traits
from metalearn.component import Component, option
from metalearn.inner.adapt import adapt
from metalearn.inner.method import (
    begin,
    learner_of_tasks,
    outer_update,
    stats_gradient,
    step_over_tasks,
)
from metalearn.inner.rules import SGD, Rule, adam
from metalearn.losses import criterion
from metalearn.tree import sub, trainable, tree_map
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Grads,
    Key,
    Lanes,
    Learner,
    Meta,
    Method,
    Metrics,
    Params,
)

ORDER = int(
    rng.fold_in(0, "minibatches")
)  # a number, made at import: a step that hashes a name cannot be compiled


class Reptile(Component):
    """Learn an initialization by moving it towards where each task's own training ends.

    phi = S steps of Adam (beta1 = 0) from theta on minibatches of the support set;
    theta <- theta - eps * mean over tasks of (theta - phi),  eps from `outer` (published: 1 falling
    linearly to 0). The query set is never used: tasks may have none, and `support_loss` [] is the
    mean loss over the inner steps."""

    name: Literal["reptile"] = option("reptile", "the method")
    inner_steps: int = option(
        5, "S, steps on minibatches during meta-training", acts="train", ge=1, le=1000
    )
    inner_lr: float = option(
        1e-3, "step size of the inner Adam, in training and on new tasks", gt=0
    )
    inner_batch: int | None = option(
        10,
        "examples of the support set in a minibatch of meta-training; null: all of them",
        acts="train",
        ge=1,
    )
    adapt_batch: int | None = option(
        5,
        "examples of the support set in a minibatch on new tasks; null: all of them",
        acts="adapt",
        ge=1,
    )
    outer: Rule = option(
        SGD(lr=1.0, schedule="linear"), "rule of the meta-update, on theta - phi", acts="train"
    )

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`, with or without queries; `meta_steps` where the outer
        rule has a schedule.
        """
        # Departure: TensorFlow's Adam adds epsilon to the root of the uncorrected second moment
        # ("epsilon hat", end of section 2 of Kingma & Ba); here it is added after the correction.
        # Same value, 1e-8; it shows only where gradients are about as small.
        rule, outer, loss_of = (
            adam(self.inner_lr, beta1=0.0),
            self.outer.build(meta_steps),
            criterion(spec),
        )

        def loss(params: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(learner.apply(params, batch.x), batch.y)

        def task_grad(meta: Meta, episode: Episode, lane: Lanes) -> tuple[Grads, Metrics, Lanes]:
            steps = self.inner_steps
            batch = minibatches(
                rng.fold_in(episode.info["key"], ORDER), episode.support, self.inner_batch, steps
            )
            path = adapt(loss, meta, rule, batch, steps, state=lane, keep=(steps,))
            grads = stats_gradient(
                learner, lambda tree: tree, meta, sub(meta, path.points[-1]), episode.support.x
            )
            return grads, {"support_loss": path.losses.mean().detach()}, path.state

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Params]:
            # Departure: the slots of a new task start at zero. The authors' evaluation starts each
            # test task from the slots that training left, which are no part of `meta`.
            batch = minibatches(key, support, self.adapt_batch, points[-1])
            return adapt(loss, meta, rule, batch, points[-1], keep=points).points

        def predict_one(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        def lanes(key: Key, num: int) -> Lanes:
            # Adam's slots, its count included, live on from task to task, as in the authors' code,
            # which resets only the parameters. Departure with more than one task a step: there the
            # tasks of a step follow each other on one set of slots; here each lane has its own, so
            # that they run side by side.
            slots = rule.init(trainable(learner.init(key))[0])
            return tree_map(lambda x: x.expand(num, *x.shape).clone(), slots)

        update = outer_update(outer)
        return Method(
            spec=spec,
            traits=traits(learner),
            init=lambda key: begin(learner.init(key), outer, lanes(key, 1)),
            learn=learner_of_tasks(adapt_one, predict_one),
            task_grad=task_grad,
            update=update,
            step=step_over_tasks(task_grad, update),
            lanes=lanes,
        )


def minibatches(
    key: Key, support: Batch, size: int | None, steps: int
) -> Batch | Callable[[int], Batch]:
    """The minibatch of each step; the whole set where `size` is None.

    Fresh permutations of the support set, one after another, cut into pieces of `size`: drawn
    without replacement, and a piece may end one permutation and begin the next. The first pieces do
    not depend on `steps`."""
    if size is None or steps == 0:
        return support
    count = support.x.shape[0]
    passes = -(-steps * size // count)
    order = rng.bits(key, (passes, count)).argsort(-1).flatten()  # [passes * count]

    def batch(step: int) -> Batch:
        index = order[step * size : (step + 1) * size]
        return Batch(support.x[index], support.y[index])

    return batch
