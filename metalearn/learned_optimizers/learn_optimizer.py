"""Meta-training of an update rule; the outer loop is that of every other method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import Component, MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.adapt import adapt
from metalearn.inner.method import (
    StepIndices,
    init_state,
    make_learn_functions,
    make_step_over_tasks,
    make_traits,
    make_update,
)
from metalearn.inner.requirements import require_no_noise, require_no_padding
from metalearn.inner.rules import Adam, Rule
from metalearn.learned_optimizers.estimators import EstimatorChoice
from metalearn.learned_optimizers.estimators.tbptt import TBPTT
from metalearn.learned_optimizers.horizons import (
    Constant,
    Horizon,
    round_up_to_windows,
    staggered_length,
)
from metalearn.learned_optimizers.inner_run import (
    OuterLoss,
    Problem,
    Run,
    clip_or_zero,
    inner_run,
    minibatch,
    optimizee,
)
from metalearn.learned_optimizers.rules import LearnedRuleChoice
from metalearn.learned_optimizers.rules.learned_rule import LearnedRule, Theta, bind_theta
from metalearn.learned_optimizers.rules.lstm import LSTM
from metalearn.losses import criterion
from metalearn.tree import trainable, tree_map
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


class Lane(NamedTuple):
    """The inner run of a task slot; checkpoints store it under the names of its fields."""

    problem: Problem
    kept: Any  # the estimator's carry
    step: Tensor  # [] inner steps made


class LearnOptimizer(MethodComponent):
    """Learn an update rule that trains a new network, or minimises a function, in few steps.

    phi_{s+1} = phi_s + rule_theta(grad L(phi_s));  minimise over theta the mean of L(phi_s) over
    the steps of a run. One outer step unrolls `unroll` inner steps of every task; longer runs
    continue in the next outer step, each in its lane, and a lane whose run has ended takes a new
    task. Metrics: `outer_loss` of the windows, `grad_norm` of a task before clipping,
    `grad_not_finite` and `diverged`, as fractions of tasks and of points.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.learned_optimizers.LearnOptimizer(unroll=5).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "optimizer"

    name: Literal["learn_optimizer"] = option("learn_optimizer", "The method.")
    rule: LearnedRuleChoice = option(LSTM(), "Update rule that is learned.")
    estimator: EstimatorChoice = option(TBPTT(), "Estimator of the outer gradient.", acts="train")
    unroll: int = option(20, "Inner steps per outer step.", acts="train", ge=1, le=100_000)
    horizon: Horizon = option(
        Constant(), "Lengths of the inner runs, rounded up to whole windows.", acts="train"
    )
    stagger: bool = option(
        False,
        "Stagger the first inner runs, so that every outer step contains all stages of training.",
        acts="train",
    )
    batch: int | None = option(None, "Support examples per minibatch; null: all.", ge=1)
    outer_on: Literal["support", "query"] = option(
        "support", "Set whose loss the outer loop minimises.", acts="train"
    )
    outer_at: Literal["all", "late", "last"] = option(
        "all",
        "Steps that enter the outer loss: all steps of a window (late: weighted by the "
        "step), or the last.",
        acts="train",
    )
    outer_of: Literal["loss", "root", "log"] = option(
        "loss",
        "Transform of each loss; log: losses of all magnitudes have equal weight; root: in "
        "between.",
        acts="train",
    )
    first_order: bool = option(
        True,
        "Stop gradients through the inner gradients, as in Andrychowicz et al. 2016.",
        acts="train",
    )
    rescale: float = option(
        1.0,
        "Random reparametrisation: rescale every tensor by a factor in [1/rescale, rescale], "
        "per task.",
        acts="train",
        ge=1,
    )
    bound: float = option(
        100.0,
        "Cap of a loss, relative to the initial loss; a run with a larger or non-finite loss "
        "has diverged.",
        acts="train",
        gt=1,
    )
    clip: float | None = option(
        None, "Maximum norm of the outer gradient of a task; null: no clipping.", acts="train", gt=0
    )
    outer: Rule = option(Adam(lr=1e-3), "Outer optimizer.", acts="train")

    @model_validator(mode="after")
    def _check_unroll(self) -> LearnOptimizer:
        if self.unroll > self.horizon.longest:
            raise ValueError(
                f"unroll must be <= {self.horizon.longest}, the horizon (got {self.unroll})"
            )
        return self

    @property
    def unrolls_whole_runs(self) -> bool:
        """Return whether one outer step unrolls every run from its start to its end."""
        return self.horizon.fixed and self.horizon.longest <= self.unroll

    @property
    def gradients_per_task(self) -> int:
        return self.unroll * self.estimator.build().unrolls

    @property
    def learned_rule(self) -> Component:
        return self.rule

    @property
    def rule_steps(self) -> int:
        return self.horizon.longest

    @property
    def factors(self) -> dict[str, str]:
        return {"start": "random", "optimizer": self.rule.name}

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """Build the method for tasks of `spec`; raises ConfigError if the options do not fit."""
        require_no_noise(self.name, learner)
        require_no_padding(self.name, spec)
        self._check(spec)
        like = trainable(learner.init(rng.fold_in(0, "like")))[0]
        learned, outer = self.rule.build(spec.dtype, like=like), self.outer.build(meta_steps)
        target = optimizee(learner, spec, self.batch, self.rescale)
        outer_loss = OuterLoss(self.outer_on, self.outer_at, self.outer_of, self.bound)
        run = inner_run(target, learned, self.unroll, outer_loss, self.first_order)
        task_grad, lanes = self._whole_run_task_grad(run, spec), None
        if not self.unrolls_whole_runs:
            task_grad, lanes = self._windowed_task_grad(run, spec), self._lanes(run, learned, spec)
        update = make_update(outer)
        # A rule with one rate for each parameter fixes the number of rates of the head, too.
        traits = make_traits(learner, fixed_ways=self.rule.fixed_shapes)
        return Method(
            spec,
            replace(traits, step_invariant=True),
            lambda key: init_state(
                learned.init(key.to(spec.device)), outer, lanes and lanes(key, 1)
            ),
            *make_learn_functions(*make_new_network_functions(learned, learner, spec, self.batch)),
            task_grad=task_grad,
            update=update,
            step=make_step_over_tasks(task_grad, update, spec),
            lanes=lanes,
        )

    def _check(self, spec: EpisodeSpec) -> None:
        if self.outer_on == "query" and spec.queries == 0:
            text = "is query, but these tasks have no queries: use support, or set task.queries"
            raise ConfigError(("method.outer_on", text))
        if self.batch is not None and spec.objective is not None:
            text = "must be null: a function has no examples"
            raise ConfigError(("method.batch", text))

    def _problem(self, spec: EpisodeSpec, episode: Episode) -> Problem:
        """Return a new inner problem; with `stagger` it is shorter in the first outer step."""
        key, step = episode.info["key"], episode.info["step"]
        length = self.horizon.draw(rng.fold_in(key, "horizon"), step.dtype)
        horizon = round_up_to_windows(length, self.unroll)
        if self.stagger:
            staggered = staggered_length(horizon, rng.fold_in(key, "stagger"), self.unroll)
            horizon = torch.where(step == 0, staggered, horizon)
        require_no_padding(self.name, spec, episode.support, episode.query)
        return Problem(episode.support, episode.query, key, horizon)

    def _window(self, run: Run) -> Callable[..., tuple[Grads, Metrics, Any]]:
        """Return a function (theta, carry, problem, key) -> (clipped gradient, metrics, carry)."""
        estimate = self.estimator.build().estimate

        def window(
            theta: Theta, carry: Any, problem: Problem, key: Key
        ) -> tuple[Grads, Metrics, Any]:
            result = estimate(run, theta, carry, problem, rng.fold_in(key, "window"))
            grads, metrics = clip_or_zero(result.grads, self.clip)
            metrics = {"outer_loss": result.loss.detach(), **metrics, "diverged": result.diverged}
            return grads, metrics, result.carry

        return window

    def _whole_run_task_grad(self, run: Run, spec: EpisodeSpec) -> Callable[..., tuple[Any, ...]]:
        begin, window = self.estimator.build().begin, self._window(run)

        def task_grad(meta: Theta, episode: Episode) -> tuple[Grads, Metrics]:
            problem = self._problem(spec, episode)
            carry = begin(run, meta, problem)
            return window(meta, carry, problem, episode.info["key"])[:2]

        return task_grad

    def _windowed_task_grad(self, run: Run, spec: EpisodeSpec) -> Callable[..., tuple[Any, ...]]:
        begin, window = self.estimator.build().begin, self._window(run)

        def task_grad(meta: Theta, episode: Episode, lane: Lane) -> tuple[Grads, Metrics, Lane]:
            ended = lane.step >= lane.problem.horizon
            problem = _select(ended, self._problem(spec, episode), lane.problem)
            carry = _select(ended, begin(run, meta, problem), lane.kept)
            step = torch.where(ended, torch.zeros_like(lane.step), lane.step)
            grads, metrics, carry = window(meta, carry, problem, episode.info["key"])
            return grads, metrics, Lane(problem, carry, step + self.unroll)

        return task_grad

    def _lanes(
        self, run: Run, learned: LearnedRule, spec: EpisodeSpec
    ) -> Callable[[Key, int], Lanes]:
        begin = self.estimator.build().begin

        def lanes(key: Key, num: int) -> Lanes:
            key = key.to(spec.device)
            zero = torch.zeros((), dtype=spec.dtype, device=spec.device)
            support, query = _zero_batch(spec, spec.shots), _zero_batch(spec, spec.queries)
            problem = Problem(support, query, key, zero)
            # The run counts as ended, so its values are never read.
            lane = Lane(problem, begin(run, learned.init(key), problem), zero)
            return tree_map(lambda x: x.detach().expand(num, *x.shape).clone(), lane)

        return lanes


def make_new_network_functions(
    learned: LearnedRule, learner: Learner, spec: EpisodeSpec, batch: int | None
) -> tuple[Callable[..., list[Params]], Callable[..., Tensor]]:
    """Return `adapt` and `predict` of a task: a new network is trained by the learned rule.

    The horizon is the last of `steps`."""
    loss_of = criterion(spec)

    def adapt_task(meta: Meta, support: Batch, steps: StepIndices, key: Key) -> list[Params]:
        require_no_padding("learn_optimizer", spec, support)
        params, batch_key = learner.init(rng.fold_in(key, "start")), rng.fold_in(key, "batch")
        rule = bind_theta(learned, meta, max(steps[-1], 1))

        def loss(params: Params, data: Batch, step: int) -> Tensor:
            data = minibatch(data, batch_key, torch.full_like(batch_key, step), batch)
            return loss_of(learner.apply(params, data.x), data.y)

        return adapt(loss, params, rule, support, steps[-1], keep=steps).points

    def predict(meta: Meta, params: Params, support: Batch, query_x: Tensor) -> Tensor:
        return learner.apply(params, query_x, context=support.x)

    return adapt_task, predict


def _select(condition: Tensor, a: Any, b: Any) -> Any:
    """Return a where `condition` [] is true, else b, leaf by leaf."""
    return tree_map(lambda x, y: torch.where(condition, x, y), a, b)


def _zero_batch(spec: EpisodeSpec, per_class: int) -> Batch:
    """Return zeros with the shape of the support or query set of a task."""
    size = spec.ways * per_class
    x = torch.zeros((size, *spec.x_shape), dtype=spec.dtype, device=spec.device)
    if spec.classification:
        return Batch(x, torch.zeros(size, dtype=torch.int64, device=spec.device))
    return Batch(x, torch.zeros((size, spec.outputs), dtype=spec.dtype, device=spec.device))
