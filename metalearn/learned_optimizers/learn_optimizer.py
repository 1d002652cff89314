"""Meta-training of an update rule: the outer loop is that of every other method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import Component, MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.adapt import adapt
from metalearn.inner.method import init_state, outer_update, step_over_tasks, vmapped_learn
from metalearn.inner.requirements import require_no_noise
from metalearn.inner.rules import Adam, Rule
from metalearn.learned_optimizers.es import ES
from metalearn.learned_optimizers.estimator import Estimator
from metalearn.learned_optimizers.horizons import Constant, Horizon, first_length, in_windows
from metalearn.learned_optimizers.inner_run import (
    Problem,
    Run,
    inner_run,
    minibatch,
    objective,
    steady,
)
from metalearn.learned_optimizers.learned import LearnedRule, Theta, carried
from metalearn.learned_optimizers.lstm import LSTM
from metalearn.learned_optimizers.nres import NRES
from metalearn.learned_optimizers.pes import PES
from metalearn.learned_optimizers.tables import LearnedRuleChoice
from metalearn.learned_optimizers.tbptt import TBPTT
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
    Method,
    Metrics,
    Params,
    Traits,
)

ESTIMATORS: dict[str, type[Component]] = {"tbptt": TBPTT, "es": ES, "pes": PES, "nres": NRES}
EstimatorChoice = Annotated[TBPTT | ES | PES | NRES, Field(discriminator="name")]


class Lane(NamedTuple):
    """The inner run that a task slot is in the middle of."""

    problem: Problem
    kept: Any  # the estimator's
    step: Tensor  # [] inner steps made


class LearnOptimizer(MethodComponent):
    """Learn an update rule that trains a fresh network, or minimises a function, in few steps.

    phi_{s+1} = phi_s + rule_theta(grad L(phi_s));  minimise over theta the mean of L(phi_s) over
    the steps of a run. One outer step sees `unroll` inner steps of every task; runs longer than
    that go on in the next outer step, each in its own lane, and a fresh task is taken where one has
    ended. Metrics: `outer_loss` of the windows, `grad_norm` of a task before clipping,
    `grad_not_finite` and `diverged`, the shares of tasks and of points where that was so."""

    family: ClassVar[str] = "optimizer"
    name: Literal["learn_optimizer"] = option("learn_optimizer", "the method")
    rule: LearnedRuleChoice = option(LSTM(), "the update rule that is learned")
    estimator: EstimatorChoice = option(TBPTT(), "of the outer gradient", acts="train")
    unroll: int = option(20, "inner steps that one outer step sees", acts="train", ge=1, le=100_000)
    horizon: Horizon = option(
        Constant(), "lengths of the inner runs, rounded up to whole windows", acts="train"
    )
    stagger: bool = option(
        False,
        "let the first runs end at different times, so that every outer step sees all stages",
        acts="train",
    )
    batch: int | None = option(
        None, "examples of the support set in a minibatch; null: all of them", ge=1
    )
    outer_on: Literal["support", "query"] = option(
        "support", "whose loss the outer loop lowers", acts="train"
    )
    outer_at: Literal["all", "late", "last"] = option(
        "all",
        "after every step of a window, late ones of the run weighing more, or after its last",
        acts="train",
    )
    outer_of: Literal["loss", "root", "log"] = option(
        "loss",
        "loss; log: tasks and steps of all sizes count alike; root: between the two",
        acts="train",
    )
    first_order: bool = option(
        True, "treat gradients of the objective as constants, as in 2016", acts="train"
    )
    rescale: float = option(
        1.0,
        "every tensor in units of its own, from 1/rescale to rescale, anew for every task",
        acts="train",
        ge=1,
    )
    bound: float = option(
        100.0,
        "most that a loss may count, in losses of the start; what is above, or not "
        "finite, has diverged",
        acts="train",
        gt=1,
    )
    clip: float | None = option(
        None, "longest outer gradient of one task; null: as it is", acts="train", gt=0
    )
    outer: Rule = option(Adam(lr=1e-3), "rule of the meta-update", acts="train")

    @model_validator(mode="after")
    def _windows_fit(self) -> LearnOptimizer:
        if self.unroll > self.horizon.longest:
            raise ValueError(
                f"unroll {self.unroll} should be at most the horizon's {self.horizon.longest} steps"
            )
        return self

    @property
    def whole(self) -> bool:
        """Whether one outer step sees every run from its start to its end."""
        return isinstance(self.horizon, Constant) and self.horizon.steps <= self.unroll

    @property
    def gradients_per_task(self) -> int:
        return self.unroll * self.estimator.build().unrolls

    @property
    def factors(self) -> dict[str, str]:
        return {"start": "random", "optimizer": self.rule.name}

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`; `meta_steps` where the outer rule has a schedule."""
        require_no_noise(self.name, learner)
        if self.outer_on == "query" and spec.queries == 0:
            raise ConfigError(
                (
                    "method.outer_on",
                    "is query, and these tasks have none: say support, or task.queries",
                )
            )
        if self.batch is not None and spec.own is not None:
            raise ConfigError(
                ("method.batch", "a function has no examples to choose from: leave it null")
            )
        like = trainable(learner.init(rng.fold_in(0, "like")))[0]
        learned, outer = self.rule.build(spec.dtype, like=like), self.outer.build(meta_steps)
        target = objective(learner, spec, self.batch, self.rescale)
        run = inner_run(
            target,
            learned,
            self.unroll,
            on=self.outer_on,
            at=self.outer_at,
            of=self.outer_of,
            bound=self.bound,
            first_order=self.first_order,
        )
        task_grad, lanes = self._whole_runs(run), None
        if not self.whole:
            task_grad, lanes = self._windows(run), self._lanes(run, learned, spec)
        update = outer_update(outer)
        return Method(
            spec=spec,
            traits=traits(self, learner),
            init=lambda key: init_state(
                learned.init(key), outer, None if lanes is None else lanes(key, 1)
            ),
            learn=vmapped_learn(*learn_by(learned, learner, spec, self.batch)),
            task_grad=task_grad,
            update=update,
            step=step_over_tasks(task_grad, update),
            lanes=lanes,
        )

    def _problem(self, episode: Episode) -> Problem:
        """A fresh inner problem; one of the first outer step is cut short where lanes are
        staggered.
        """
        key = episode.info["key"]
        dtype = episode.info["step"].dtype
        horizon = in_windows(self.horizon.draw(rng.fold_in(key, "horizon"), dtype), self.unroll)
        if self.stagger:
            part = first_length(horizon, rng.fold_in(key, "stagger"), self.unroll)
            horizon = torch.where(episode.info["step"] == 0, part, horizon)
        return Problem(episode.support, episode.query, key, horizon)

    def _seen(
        self, estimator: Estimator, run: Run, theta: Theta, kept: Any, problem: Problem, key: Key
    ) -> tuple[Grads, Metrics, Any]:
        seen = estimator.see(run, theta, kept, problem, rng.fold_in(key, "window"))
        grads, metrics = steady(seen.grads, self.clip)
        return (
            grads,
            {"outer_loss": seen.loss.detach(), **metrics, "diverged": seen.diverged},
            seen.kept,
        )

    def _whole_runs(self, run: Run) -> Callable[..., tuple[Any, ...]]:
        estimator = self.estimator.build()

        def task_grad(meta: Theta, episode: Episode) -> tuple[Grads, Metrics]:
            problem = self._problem(episode)
            kept = estimator.begin(run, meta, problem)
            grads, metrics, _ = self._seen(estimator, run, meta, kept, problem, episode.info["key"])
            return grads, metrics

        return task_grad

    def _windows(self, run: Run) -> Callable[..., tuple[Any, ...]]:
        estimator = self.estimator.build()

        def task_grad(meta: Theta, episode: Episode, lane: Lane) -> tuple[Grads, Metrics, Lane]:
            ended = lane.step >= lane.problem.horizon
            problem = _either(ended, self._problem(episode), lane.problem)
            kept = _either(ended, estimator.begin(run, meta, problem), lane.kept)
            step = torch.where(ended, torch.zeros_like(lane.step), lane.step)
            grads, metrics, kept = self._seen(
                estimator, run, meta, kept, problem, episode.info["key"]
            )
            return grads, metrics, Lane(problem, kept, step + self.unroll)

        return task_grad

    def _lanes(
        self, run: Run, learned: LearnedRule, spec: EpisodeSpec
    ) -> Callable[[Key, int], Lanes]:
        estimator = self.estimator.build()

        def lanes(key: Key, num: int) -> Lanes:
            zero = torch.zeros((), dtype=spec.dtype, device=spec.device)
            problem = Problem(
                _blank(spec, spec.shots), _blank(spec, spec.queries), key.to(spec.device), zero
            )
            lane = Lane(
                problem, estimator.begin(run, learned.init(key), problem), zero
            )  # ended: never looked at
            return tree_map(lambda x: x.detach().expand(num, *x.shape).clone(), lane)

        return lanes


def learn_by(
    learned: LearnedRule, learner: Learner, spec: EpisodeSpec, batch: int | None
) -> tuple[Callable[..., list[Params]], Callable[..., Tensor]]:
    """`adapt_one` and `predict_one`: a fresh network a task, trained by the learned rule for the
    last point's steps.
    """
    loss_of = criterion(spec)

    def adapt_one(meta: Theta, support: Batch, points: tuple[int, ...], key: Key) -> list[Params]:
        params, draws = learner.init(rng.fold_in(key, "start")), rng.fold_in(key, "batch")
        rule = carried(learned, meta, max(points[-1], 1))

        def loss(params: Params, data: Batch, step: int) -> Tensor:
            data = minibatch(data, draws, torch.full_like(draws, step), batch)
            return loss_of(learner.apply(params, data.x), data.y)

        return adapt(loss, params, rule, support, points[-1], keep=points).points

    def predict_one(meta: Theta, params: Params, support: Batch, query_x: Tensor) -> Tensor:
        return learner.apply(params, query_x, context=support.x)

    return adapt_one, predict_one


def traits(method: LearnOptimizer, learner: Learner) -> Traits:
    return Traits(
        consumes="episodes",
        transductive=learner.normalisation == "query_batch",
        normalisation=learner.normalisation,
        step_invariant=True,
        fixed_ways=method.rule.name == "learned_rates",  # one rate a parameter, the head's too
    )


def _either(first: Tensor, a: Any, b: Any) -> Any:
    """a where `first` [], else b, leaf by leaf."""
    return tree_map(lambda x, y: torch.where(first, x, y), a, b)


def _blank(spec: EpisodeSpec, each: int) -> Batch:
    """A batch of zeros in the form of a task's support or query set."""
    rows = spec.ways * each
    x = torch.zeros((rows, *spec.x_shape), dtype=spec.dtype, device=spec.device)
    if spec.classification:
        return Batch(x, torch.zeros(rows, dtype=torch.int64, device=spec.device))
    return Batch(x, torch.zeros((rows, spec.outputs), dtype=spec.dtype, device=spec.device))
