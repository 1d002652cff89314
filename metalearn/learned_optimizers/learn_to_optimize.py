"""A learned optimizer as a way of learning new tasks (Andrychowicz et al. 2016; Ravi & Larochelle
2017).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.adapt import adapt
from metalearn.inner.method import init_state, outer_update, step_over_tasks, vmapped_learn
from metalearn.inner.requirements import require_no_noise
from metalearn.inner.rules import Adam, Rule
from metalearn.learned_optimizers.inner_run import steady
from metalearn.learned_optimizers.learned import LearnedRule, Theta, carried, update_of
from metalearn.learned_optimizers.learned_adam import LearnedAdam
from metalearn.learned_optimizers.starts import SENTENCE, WORDS, Init, Start, needs_start, start_of
from metalearn.learned_optimizers.tables import LearnedRuleChoice
from metalearn.losses import criterion, metrics
from metalearn.rng import fold_in
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Grads,
    Key,
    Learner,
    Meta,
    MetaState,
    Method,
    Metrics,
    Params,
    Traits,
    UpdateRule,
)

THETA = "rule"  # in the meta: what the outer rule moves, beside "params", which stand still


class LearnToOptimize(MethodComponent):
    """Learn the update rule that new tasks are learned by, from a random, pretrained or
    meta-learned start.

    phi_{s+1} = phi_s + rule_theta(grad L_support(phi_s));  minimise over theta the mean over tasks,
    and over the steps s of `loss_at`, of L_query(phi_s). The start phi_0 is not learned here, so
    that what an optimizer adds is told apart from what an initialization does. Andrychowicz et al.
    minimise the training loss: on a few examples that is to overfit faster.
    """

    family: ClassVar[str] = "optimizer"
    name: Literal["learned_optimizer"] = option("learned_optimizer", "the method")
    rule: LearnedRuleChoice = option(
        LearnedAdam(lr=0.01), "the update rule that is learned", acts="train"
    )
    init: Init = option("random", SENTENCE, acts="train")
    inner_steps: int = option(
        5,
        "S, steps on the support set during meta-training, and the horizon that the rule is told",
        ge=1,
        le=1000,
    )
    loss_at: tuple[int, ...] | None = option(
        None,
        "steps whose query losses are averaged; null: the last one",
        acts="train",
        min_length=1,
    )
    first_order: bool = option(
        True,
        "treat each inner gradient as a constant, as Andrychowicz et al. do (section 2.1)",
        acts="train",
    )
    clip: float = option(
        1.0,
        "largest norm of one task's meta-gradient; a longer one is shortened",
        acts="train",
        gt=0,
    )
    outer: Rule = option(Adam(lr=0.01), "rule of the meta-update", acts="train")

    @model_validator(mode="after")
    def _losses_lie_on_the_path(self) -> LearnToOptimize:
        at = self.losses_at
        if list(at) != sorted(set(at)) or at[0] < 1 or at[-1] > self.inner_steps:
            text = (
                f"loss_at: {list(at)} should be ascending, without repeats, from 1 to "
                f"inner_steps {self.inner_steps}"
            )
            raise ValueError(text)
        return self

    @property
    def losses_at(self) -> tuple[int, ...]:
        return (self.inner_steps,) if self.loss_at is None else self.loss_at

    @property
    def gradients_per_task(self) -> int:
        return self.losses_at[-1] + len(self.losses_at)

    @property
    def needs_start(self) -> str:
        return needs_start(self.init)

    @property
    def factors(self) -> dict[str, str]:
        return {"start": WORDS[self.init], "optimizer": self.rule.name}

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`, ConfigError without queries; `meta_steps` for the outer
        rule's schedule.
        """
        require_no_noise(self.name, learner)
        if spec.queries < 1:
            text = (
                f"learned_optimizer learns from the query loss and needs at least 1 query, "
                f"not {spec.queries}"
            )
            raise ConfigError(("task.queries", text))
        outer, start = self.outer.build(meta_steps), start_of(self.init, learner, spec)
        learned = self.rule.build(spec.dtype, like=learner.init(fold_in(0, "shapes")))
        task_grad, update = self._task_grad(learner, spec, learned, start), update_of_theta(outer)
        policy = learner.normalisation

        def adapt_one(
            meta: Meta, support: Batch, points: tuple[int, ...], key: Key
        ) -> list[Params]:
            rule = learned.rule(meta[THETA], self.inner_steps)
            loss = support_loss(learner, spec)
            return adapt(
                loss, start.of_task(meta, key), rule, support, points[-1], keep=points
            ).points

        def predict_one(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        def init(key: Key) -> MetaState:
            theta = learned.init(fold_in(key, THETA))
            state = init_state(theta, outer)
            return state._replace(meta={**start.meta(key), THETA: theta})

        return Method(
            spec=spec,
            traits=Traits(
                consumes="episodes",
                transductive=policy == "query_batch",
                normalisation=policy,
                fixed_ways=self.init == "meta"
                or self.rule.name == "learned_rates",  # a rate a parameter, of heads too
                step_invariant=True,
            ),
            init=init,
            learn=vmapped_learn(adapt_one, predict_one),
            task_grad=task_grad,
            update=update,
            step=step_over_tasks(task_grad, update),
        )

    def _task_grad(
        self, learner: Learner, spec: EpisodeSpec, learned: LearnedRule, start: Start
    ) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
        loss, loss_of, last = support_loss(learner, spec), criterion(spec), self.losses_at[-1]
        move = update_of(learned)  # one function for all tasks and steps, which is compiled once

        def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
            phi = start.of_task(meta, episode.info["key"])
            support, x, y = episode.support, episode.query.x, episode.query.y

            def query_loss(theta: Theta) -> tuple[Tensor, Metrics]:
                rule = carried(learned, theta, self.inner_steps)._replace(update=move)
                path = adapt(
                    loss,
                    phi,
                    rule,
                    support,
                    last,
                    keep=self.losses_at,
                    first_order=self.first_order,
                    step_invariant=True,
                )
                said = [learner.apply(params, x, context=support.x) for params in path.points]
                losses = torch.stack([loss_of(each, y) for each in said])
                return losses.mean(), metrics(spec, said[-1], y)

            value, pull, found = torch.func.vjp(query_loss, meta[THETA], has_aux=True)  # type: ignore[misc]
            (grads,) = pull(torch.ones_like(value), retain_graph=False)
            grads, told = steady(grads, self.clip)
            return {THETA: grads}, {**found, **told}

        return task_grad


def support_loss(learner: Learner, spec: EpisodeSpec) -> Callable[[Params, Batch, int], Tensor]:
    """The loss that a rule goes down."""
    loss_of = criterion(spec)
    return lambda params, batch, step: loss_of(learner.apply(params, batch.x), batch.y)


def update_of_theta(outer: UpdateRule) -> Callable[[MetaState, Grads], MetaState]:
    """`Method.update`: one step of the outer rule on theta; the parameters beside
    it stand still.
    """
    move = outer_update(outer)

    def update(state: MetaState, grads: Grads) -> MetaState:
        after = move(state._replace(meta=state.meta[THETA]), grads[THETA])
        return after._replace(meta={**state.meta, THETA: after.meta})

    return update
