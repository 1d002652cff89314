"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017, arXiv:1703.03400, algorithm 1)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from metalearn.algorithms.need import need_queries
from metalearn.component import Component, option
from metalearn.inner.adapt import adapt
from metalearn.inner.method import (
    begin,
    learner_of_tasks,
    meta_gradient,
    outer_update,
    step_over_tasks,
)
from metalearn.inner.rules import Adam, Rule, any_rate, sgd
from metalearn.losses import criterion, metrics
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Learner, Meta, Method, Params, Traits


class MAML(Component):
    """Learn an initialization from which a few gradient steps solve a new task.

    phi_0 = theta;  phi_{s+1} = phi_s - inner_lr * grad L_support(phi_s);
    minimise over theta the mean over tasks of L_query(phi_S)
    """

    name: Literal["maml"] = option("maml", "the method")
    inner_steps: int = option(
        1, "S, gradient steps on the support set during meta-training", acts="train", ge=1, le=1000
    )
    inner_lr: float = option(
        0.01, "step size of the inner loop, in training and on new tasks", gt=0
    )
    first_order: bool = option(
        False, "FOMAML: treat each inner gradient as a constant (section 5.2)", acts="train"
    )
    outer: Rule = option(Adam(lr=1e-3), "rule of the meta-update", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`; `meta_steps` where the outer rule has a schedule."""
        need_queries(self.name, spec)
        rule, outer = sgd(any_rate(self.inner_lr, spec)), self.outer.build(meta_steps)
        loss_of = criterion(spec)

        def loss(params: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(learner.apply(params, batch.x), batch.y)

        def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
            path = adapt(
                loss,
                meta,
                rule,
                episode.support,
                self.inner_steps,
                keep=(self.inner_steps,),
                first_order=self.first_order,
            )
            said = learner.apply(path.points[-1], episode.query.x, context=episode.support.x)
            return loss_of(said, episode.query.y), metrics(spec, said, episode.query.y)

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Params]:
            return adapt(loss, meta, rule, support, points[-1], keep=points).points

        def predict_one(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        task_grad, update = meta_gradient(task_loss, learner), outer_update(outer)
        return Method(
            spec=spec,
            traits=traits(learner),
            init=lambda key: begin(learner.init(key), outer),
            learn=learner_of_tasks(adapt_one, predict_one),
            task_grad=task_grad,
            update=update,
            step=step_over_tasks(task_grad, update),
        )


def traits(learner: Learner) -> Traits:
    """Traits of a gradient-based initialization."""
    return Traits(
        consumes="episodes",
        transductive=learner.normalisation == "query_batch",
        normalisation=learner.normalisation,
        fixed_ways=True,
    )
