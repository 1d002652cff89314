"""Meta-SGD (Li, Zhou, Chen & Li 2017, arXiv:1707.09835, algorithm 1)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.algorithms.maml import traits
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
from metalearn.inner.rules import Adam, Rule, per_parameter
from metalearn.losses import criterion, metrics
from metalearn.tree import leaves, trainable, tree_map
from metalearn.types import Batch, Episode, EpisodeSpec, Key, Learner, Meta, Method, Params


class MetaSGD(Component):
    """Learn an initialization and a step size for every single parameter.

    phi_{s+1} = phi_s - rates * grad L_support(phi_s) (elementwise; the paper has S = 1);  minimise
    over meta = {"params": phi_0, "rates"} the mean of L_query(phi_S). A rate may turn negative: it
    is not clamped, as in the paper, where the learned vector decides the direction of the step too.
    """

    name: Literal["meta_sgd"] = option("meta_sgd", "the method")
    inner_steps: int = option(
        1, "S, steps on the support set during meta-training", acts="train", ge=1, le=1000
    )
    rate_range: tuple[float, float] = option(
        (0.005, 0.1), "range that the one common start of all rates is drawn from", acts="train"
    )
    outer: Rule = option(
        Adam(lr=1e-3), "rule of the meta-update, of the parameters and the rates", acts="train"
    )

    @model_validator(mode="after")
    def _rates_ascend(self) -> MetaSGD:
        if not 0 <= self.rate_range[0] <= self.rate_range[1]:
            raise ValueError(
                f"rate_range: {self.rate_range} should be [low, high] with 0 <= low <= high"
            )
        return self

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`, ConfigError without queries; `meta_steps` for the outer
        rule's schedule.
        """
        need_queries(self.name, spec)
        outer, loss_of = self.outer.build(meta_steps), criterion(spec)

        def loss(params: Params, batch: Batch, step: int) -> Tensor:
            return loss_of(learner.apply(params, batch.x), batch.y)

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Params]:
            # More than one step is a departure from the paper: every step uses the same rates.
            rule = per_parameter(meta["rates"])
            return adapt(loss, meta["params"], rule, support, points[-1], keep=points).points

        def predict_one(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
            params = adapt_one(meta, episode.support, (self.inner_steps,), episode.info["key"])[-1]
            said = predict_one(meta, params, episode.support, episode.query.x)
            return loss_of(said, episode.query.y), metrics(spec, said, episode.query.y)

        task_grad = meta_gradient(task_loss, learner, lambda meta: meta["params"])
        update = outer_update(outer)
        return Method(
            spec=spec,
            traits=traits(learner),
            init=lambda key: begin(self._start(learner, key), outer),
            learn=learner_of_tasks(adapt_one, predict_one),
            task_grad=task_grad,
            update=update,
            step=step_over_tasks(task_grad, update),
        )

    def _start(self, learner: Learner, key: Key) -> Meta:
        params = learner.init(key)
        like = leaves(params)[0]
        rate = rng.uniform(rng.fold_in(key, "rates"), (1,), *self.rate_range, dtype=like.dtype).to(
            like.device
        )
        return {
            "params": params,
            "rates": tree_map(lambda x: rate.expand(x.shape).clone(), trainable(params)[0]),
        }
