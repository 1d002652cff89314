"""Implicit MAML (Rajeswaran, Finn, Kakade & Levine 2019, arXiv:1909.04630, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.algorithms.gradient.implicit import conjugate_gradients
from metalearn.component import MethodComponent, option
from metalearn.inner.adapt import Loss, adapt, support_loss
from metalearn.inner.method import (
    StepIndices,
    episodic,
    make_step_over_tasks,
    training_noise,
)
from metalearn.inner.rules import Adam, Rule, rate_as_input, sgd
from metalearn.inner.statistics import add_stats_delta, stats_delta
from metalearn.losses import criterion, metrics
from metalearn.padding import zero_padding
from metalearn.scopes.running_statistics import training_scope
from metalearn.tree import add, scale, trainable, zeros_like
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Key,
    Learner,
    Meta,
    Method,
    Metrics,
    Params,
    UpdateRule,
)

START = "<start>."  # before names of theta, to which the penalty pulls; no layer has such a name


class IMAML(MethodComponent):
    """MAML with implicit gradients, which depend only on the solution of the inner problem.

    phi = argmin of L_support(phi) + lambda/2 |phi - theta|^2 (equation 3), by `inner_steps` steps
    of gradient descent;  g = (I + H / lambda)^-1 grad L_query(phi), H the Hessian of L_support at
    phi (equation 6), by `cg_steps` steps of conjugate gradients.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.IMAML(strength=0.5).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    rate_is_input: ClassVar[bool] = True
    name: Literal["imaml"] = option("imaml", "The method.")
    inner_steps: int = option(16, "S, inner steps in training.", acts="train", ge=1, le=1000)
    inner_lr: float = option(0.1, "Inner step size, in training and on new tasks.", gt=0)
    strength: float = option(2.0, "lambda, weight of the proximal penalty.", gt=0)
    cg_steps: int = option(5, "Steps of the conjugate gradient method.", acts="train", ge=1, le=100)
    # The authors' code solves with 2 I + H / (lambda + 10): damping 1 gives its 2 I, the 10 is left
    # out. Their test leaves the penalty out, ours keeps it.
    damping: float = option(
        0.0, "Damping, added to the identity in the linear solve.", acts="train", ge=0
    )
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        loss = support_loss(learner, spec)
        objective = penalised(loss, self.strength)

        def fit(meta: Meta, support: Batch, at: StepIndices, key: Key) -> list[Params]:
            weights, fixed = trainable(meta)
            start = {f"{START}{name}": x for name, x in weights.items()}
            rule = self.inner_rule(spec, lambda x: objective({**fixed, **start, **x}, support, 0))
            return adapt(objective, meta, rule, support, at[-1], keep=at, fixed=start).points

        def predict(meta: Meta, params: Any, support: Batch, query_x: Tensor) -> Tensor:
            return learner.apply(params, query_x, context=support.x)

        outer = self.outer.build(meta_steps)
        method = episodic(learner, spec, outer, fit, predict, inner_steps=self.inner_steps)
        assert method.update is not None
        task_grad = self._task_grad(method, learner, loss)
        step = make_step_over_tasks(task_grad, method.update, spec)
        return method._replace(task_grad=task_grad, step=step)

    def inner_rule(self, spec: EpisodeSpec, objective: Callable[[Params], Tensor]) -> UpdateRule:
        """The rule that solves the inner problem of one task; a variant overrides it."""
        return sgd(rate_as_input(self.inner_lr, spec))

    def _task_grad(
        self, method: Method, learner: Learner, loss: Loss
    ) -> Callable[[Meta, Episode], tuple[Params, Metrics]]:
        assert method.adapt is not None and method.predict is not None
        learn, answer, spec = method.adapt, method.predict, method.spec
        loss_of = criterion(spec)

        def task_grad(meta: Meta, episode: Episode) -> tuple[Params, Metrics]:
            support, query = zero_padding(episode.support), zero_padding(episode.query)
            with training_noise(learner, episode), training_scope():
                phi = learn(meta, support, self.inner_steps, episode.info["key"])
            adapted, fixed = trainable(phi)

            def query_loss(at: Params) -> tuple[Tensor, tuple[Metrics, Params]]:
                with training_scope() as scope:
                    logits = answer(meta, {**at, **fixed}, support, query.x, query.weight)
                scores = metrics(spec, logits, *query[1:])
                return loss_of(logits, *query[1:]), (scores, stats_delta(scope, meta))

            def inner_loss(at: Params) -> Tensor:
                with training_scope(records=False):
                    return loss({**at, **fixed}, support, 0)

            outer_grad, (scores, delta) = torch.func.grad(query_loss, has_aux=True)(adapted)
            times_hessian = torch.func.vjp(torch.func.grad(inner_loss), adapted)[1]

            def matrix(x: Params) -> Params:
                (product,) = times_hessian(x)
                total: Params = add(scale(x, 1 + self.damping), scale(product, 1 / self.strength))
                return total

            grads = conjugate_gradients(matrix, outer_grad, self.cg_steps)
            grads = {**grads, **zeros_like(fixed)}
            return add_stats_delta(grads, delta), scores

        return task_grad


def penalised(loss: Loss, strength: float) -> Loss:
    """loss(phi) + strength / 2 * |phi - theta|^2, theta under names with `START` in front."""

    def total(at: Params, batch: Batch, step: int) -> Tensor:
        params = {name: x for name, x in at.items() if not name.startswith(START)}
        starts = {name: x for name, x in at.items() if name.startswith(START)}
        away = (params[name.removeprefix(START)] - x for name, x in starts.items())
        pulls = [x.square().sum() for x in away]
        return loss(params, batch, step) + strength / 2 * torch.stack(pulls).sum()

    return total
