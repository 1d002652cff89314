"""A learned update rule for new tasks (Andrychowicz et al. 2016; Ravi & Larochelle 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn.component import Component, MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.adapt import adapt, support_loss
from metalearn.inner.method import (
    StepIndices,
    init_state,
    make_learn_functions,
    make_step_over_tasks,
    make_traits,
    make_update,
)
from metalearn.inner.requirements import require_no_noise
from metalearn.inner.rules import Adam, Rule
from metalearn.learned_optimizers.inner_run import clip_or_zero
from metalearn.learned_optimizers.rules import LearnedRuleChoice
from metalearn.learned_optimizers.rules.learned_adam import LearnedAdam
from metalearn.learned_optimizers.rules.learned_rule import (
    LearnedRule,
    Theta,
    bind_theta,
    make_bound_update,
)
from metalearn.learned_optimizers.starts import INIT, LABELS, Init, Start, build_start, needs_start
from metalearn.losses import criterion, metrics
from metalearn.padding import predict_with_example_weights, zero_padding
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
    UpdateRule,
)

THETA = "rule"  # branch of the meta that the outer rule updates; "params" stay fixed


class LearnToOptimize(MethodComponent):
    """Learn the update rule for new tasks, from random, pretrained or meta-learned parameters.

    phi_{s+1} = phi_s + rule_theta(grad L_support(phi_s));  minimise over theta the mean over tasks,
    and over the steps s of `loss_at`, of L_query(phi_s). phi_0 is not learned here, so
    that the effect of an optimizer is separate from that of an initialization. Departure:
    Andrychowicz et al. minimise the training loss, which overfits on a few examples.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.learned_optimizers.LearnToOptimize(inner_steps=3).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "optimizer"
    rule_branch: ClassVar[str | None] = THETA

    name: Literal["learned_optimizer"] = option("learned_optimizer", "The method.")
    rule: LearnedRuleChoice = option(
        LearnedAdam(lr=0.01), "Update rule that is learned.", acts="train"
    )
    init: Init = option("random", INIT, acts="train")
    inner_steps: int = option(
        5,
        "S, inner steps in meta-training, and the horizon of the rule.",
        ge=1,
        le=1000,
    )
    loss_at: tuple[int, ...] | None = option(
        None,
        "Inner steps whose query losses are averaged; null: the last one.",
        acts="train",
        min_length=1,
    )
    first_order: bool = option(
        True,
        "Stop gradients through the inner gradients, as Andrychowicz et al. (section 2.1).",
        acts="train",
    )
    clip: float = option(
        1.0,
        "Maximum norm of the meta-gradient of a task; longer gradients are rescaled.",
        acts="train",
        gt=0,
    )
    outer: Rule = option(Adam(lr=0.01), "Outer optimizer.", acts="train")

    @model_validator(mode="after")
    def _check_loss_at(self) -> LearnToOptimize:
        steps = self.losses_at
        if list(steps) != sorted(set(steps)) or steps[0] < 1 or steps[-1] > self.inner_steps:
            text = f"loss_at: {list(steps)} must be ascending, without repeats, from 1 to"
            raise ValueError(f"{text} inner_steps {self.inner_steps}")
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
    def learned_rule(self) -> Component:
        return self.rule

    @property
    def rule_steps(self) -> int:
        return max(self.inner_steps, self.losses_at[-1])

    @property
    def factors(self) -> dict[str, str]:
        return {"start": LABELS[self.init], "optimizer": self.rule.name}

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; raises ConfigError without queries."""
        require_no_noise(self.name, learner)
        if spec.queries < 1:
            text = f"must be >= 1 (got {spec.queries}): learned_optimizer minimises the query loss"
            raise ConfigError(("task.queries", text))
        outer, start = self.outer.build(meta_steps), build_start(self.init, learner, spec)
        learned = self.rule.build(spec.dtype, like=learner.init(fold_in(0, "shapes")))
        loss = support_loss(learner, spec)
        task_grad, update = self._task_grad(learner, spec, learned, start), make_theta_update(outer)

        def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
            rule, phi = learned.rule(meta[THETA], self.inner_steps), start.init_params(meta, key)
            return adapt(loss, phi, rule, support, steps[-1], keep=steps).points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        def init(key: Key) -> MetaState:
            state = init_state(learned.init(fold_in(key.to(spec.device), THETA)), outer)
            return state._replace(meta={**start.meta(key), THETA: state.meta})

        fixed_ways = self.init == "meta" or self.rule.fixed_shapes
        return Method(
            spec,
            replace(make_traits(learner, fixed_ways=fixed_ways), step_invariant=True),
            init,
            *make_learn_functions(adapt_task, predict),
            task_grad=task_grad,
            update=update,
            step=make_step_over_tasks(task_grad, update, spec),
        )

    def _task_grad(
        self, learner: Learner, spec: EpisodeSpec, learned: LearnedRule, start: Start
    ) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
        loss, loss_of, last = support_loss(learner, spec), criterion(spec), self.losses_at[-1]

        def apply(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        predict_all = predict_with_example_weights(apply, None)
        # One function for all tasks and steps, compiled once.
        rule_update = make_bound_update(learned)

        def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
            phi = start.init_params(meta, episode.info["key"])
            support, query = zero_padding(episode.support), zero_padding(episode.query)

            def query_loss(theta: Theta) -> tuple[Tensor, Metrics]:
                rule = bind_theta(learned, theta, self.inner_steps)._replace(update=rule_update)
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
                outputs = predict_all({}, path.points, support, query.x, query.weight)
                losses = [loss_of(predictions, query.y, query.weight) for predictions in outputs]
                task_metrics = metrics(spec, outputs[-1], query.y, query.weight)
                return torch.stack(losses).mean(), task_metrics

            loss_value, vjp_fn, task_metrics = torch.func.vjp(query_loss, meta[THETA], has_aux=True)  # type: ignore[misc]
            (grads,) = vjp_fn(torch.ones_like(loss_value), retain_graph=False)
            grads, grad_metrics = clip_or_zero(grads, self.clip)
            return {THETA: grads}, {**task_metrics, **grad_metrics}

        return task_grad


def make_theta_update(outer: UpdateRule) -> Callable[[MetaState, Grads], MetaState]:
    """Return `Method.update`: one step of the outer rule on theta; the parameters stay fixed."""
    update_theta = make_update(outer)

    def update(state: MetaState, grads: Grads) -> MetaState:
        next_state = update_theta(state._replace(meta=state.meta[THETA]), grads[THETA])
        return next_state._replace(meta={**state.meta, THETA: next_state.meta})

    return update
