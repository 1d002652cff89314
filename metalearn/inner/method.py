"""From functions of one task to a Method: the only place that batches over tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner import one_vector
from metalearn.inner.statistics import movement_of, with_movement
from metalearn.labels import check_example_targets, check_targets
from metalearn.losses import criterion, metrics
from metalearn.noise import NOISE, Scope, noise_from
from metalearn.padding import adapt_with_weights, cleaned, predict_with_weights
from metalearn.rng import fold_in
from metalearn.scopes.over_tasks import call
from metalearn.scopes.running_statistics import training
from metalearn.tree import (
    STATS,
    from_named,
    leaves,
    mean_over_tasks,
    named_leaves,
    take,
    tree_map,
    vmap,
)
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Grads,
    Key,
    Learned,
    Learner,
    Ledger,
    Meta,
    MetaState,
    Method,
    Metrics,
    NullLedger,
    Params,
    Traits,
    UpdateRule,
)

StepNumbers = tuple[int, ...]  # the points of a learning curve
# (meta, support, points, key) -> what `predict` needs, a list of one item a point
Adapt = Callable[[Meta, Batch, StepNumbers, Key], Any]
Predict = Callable[[Meta, Any, Batch, Tensor], Tensor]  # (meta, item, support, x [M, *X]) -> [M, C]
Features = Callable[[Meta, Batch, Tensor], Tensor]  # (meta, support, x [M, *X]) -> [M, D]
NO_DERIVATIVE = re.compile(r"(the )?derivative for \S+ is not implemented")


def episodic(
    learner: Learner,
    spec: EpisodeSpec,
    outer: UpdateRule,
    adapt: Adapt,
    predict: Predict,
    *,
    inner_steps: int,
    features: Features | None = None,
    init: Callable[[Key], Meta] | None = None,
    fixed_ways: bool | None = None,
) -> Method:
    """Build a Method from two functions of one task.

    minimise over meta the mean over tasks of L(predict(meta, adapt(meta, support), query.x), y)

    `adapt` returns one item for each of its points; with `inner_steps` 0 there are no steps, and
    it returns a single one. If the inner loop does not adapt the features, `features` computes
    those of the queries once, and `predict` gets them as query_x. `init(key)` returns the meta
    (default: the learner's parameters). `fixed_ways`: it includes the head, so that the ways of
    the test must be those of training (default: if there are inner steps)."""
    loss_of = criterion(spec)
    learning = learn_functions(adapt, predict, uses_steps=inner_steps > 0, features=features)

    def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, Metrics]:
        support, query = cleaned(episode.support), cleaned(episode.query)
        item = learning.adapt(meta, support, inner_steps, episode.info["key"])
        predictions = learning.predict(meta, item, support, query.x, query.weight)  # [M, C]
        return loss_of(predictions, *query[1:]), metrics(spec, predictions, *query[1:])

    task_grad, update = meta_gradient(task_loss, learner), outer_update(outer)
    return Method(
        spec,
        traits_of(learner, steps=inner_steps > 0, fixed_ways=fixed_ways),
        lambda key: init_state((init or learner.init)(key), outer),
        *learning,
        task_grad=task_grad,
        update=update,
        step=step_over_tasks(task_grad, update, spec),
    )


class LearnFunctions(NamedTuple):
    """How a Method learns new tasks: its fields of these names, in their order."""

    learn: Callable[..., Learned]
    adapt: Callable[..., Any]
    predict: Callable[..., Tensor]


def learn_functions(
    adapt: Adapt,
    predict: Predict,
    *,
    uses_steps: bool = True,
    features: Features | None = None,
    paths: int = 1,
) -> LearnFunctions:
    """The fields `learn`, `adapt` and `predict` of a Method; arguments as in `episodic`.

    `paths` is how many inner loops `adapt` runs side by side, for the count of gradient steps.
    Weights of examples are those of `support.weight`, and `query_weight` [M] of the queries."""
    adapt_one, predict_all = adapt_with_weights(adapt), predict_with_weights(predict, features)

    def predict_one(
        meta: Meta,
        adapted: Any,
        support: Batch,
        query_x: Tensor,
        query_weight: Tensor | None = None,
    ) -> Tensor:
        return predict_all(meta, [adapted], support, query_x, query_weight)[0]

    return LearnFunctions(
        vmapped_learn(adapt, predict, uses_steps=uses_steps, features=features, paths=paths),
        lambda meta, support, step, key: adapt_one(meta, support, (step,), key)[-1],
        predict_one,
    )


def traits_of(
    learner: Learner,
    *,
    consumes: Literal["episodes", "examples", "nothing"] = "episodes",
    steps: bool = True,
    fixed_ways: bool | None = None,
) -> Traits:
    """Traits of a method with or without inner steps; `fixed_ways` as in `episodic`."""
    return Traits(
        consumes=consumes,
        uses_steps=steps,
        support_at_step_0=not steps,
        transductive=learner.normalisation == "query_batch",
        normalisation=learner.normalisation,
        fixed_ways=steps and consumes == "episodes" if fixed_ways is None else fixed_ways,
    )


def points_of(steps: int | Sequence[int]) -> StepNumbers:
    """The points of a learning curve: S means 0 .. S; a sequence is taken as it is."""
    points = tuple(range(steps + 1)) if isinstance(steps, int) else tuple(map(int, steps))
    if not points or list(points) != sorted(set(points)) or points[0] < 0:
        raise ValueError(
            f"steps must be non-negative, ascending and without repeats, such as (0, 1, 5, 10); "
            f"got {steps}"
        )
    return points


def vmapped_learn(
    adapt: Adapt,
    predict: Predict,
    *,
    uses_steps: bool = True,
    features: Features | None = None,
    paths: int = 1,
) -> Callable[..., Learned]:
    """`Method.learn` made of two functions of one task; leaves with a leading T.

    Both are written to the ledger apart, as `adapt` and `predict`. Without steps the one item of
    `adapt` is a constant point at every step. Options are those of `learn_functions`."""
    adapt_one, predict_at = adapt_with_weights(adapt), _stacked(predict, features)

    def adapt_to(points: StepNumbers) -> Callable[..., list[Any]]:
        return lambda meta, support, key: list(adapt_one(meta, support, points, key))

    def learn(
        meta: Meta,
        support: Batch,
        query_x: Tensor,
        steps: int | Sequence[int],
        key: Key | None = None,
        ledger: Ledger | None = None,
        query_weight: Tensor | None = None,
    ) -> Learned:
        points, tasks = points_of(steps), support.x.shape[0]
        keys = task_keys(key, tasks).to(support.x.device)
        ledger = NullLedger() if ledger is None else ledger
        made = points if uses_steps else (0,)
        work, gradients = OverTasks(adapt_to, made, meta), paths * made[-1] * tasks
        items = ledger.run("adapt", work, support, keys, gradient_steps=gradients, tasks=tasks)
        stacked = OverTasks(predict_at, (0,), meta)
        weights = () if query_weight is None else (query_weight,)
        predictions = ledger.run("predict", stacked, items, support, query_x, *weights, tasks=tasks)
        if predictions.shape[1] != len(points):
            predictions = predictions.expand(-1, len(points), *predictions.shape[2:])
        return Learned(predictions, {})

    return learn


def _stacked(
    predict: Predict, features: Features | None
) -> Callable[[StepNumbers], Callable[..., Tensor]]:
    """Predictions of all points as one tensor, in the form of `OverTasks`."""
    predict_all = predict_with_weights(predict, features)
    return lambda _: lambda *args: torch.stack(predict_all(*args))


class OverTasks:
    """A function of one task, run over tasks: `one(points)` takes the meta, then leaves [T, ...].

    `parts` says what its cost is made of: T times one task's, which is that of no step and S times
    what a step adds.
    """

    def __init__(
        self, one: Callable[[StepNumbers], Callable[..., Any]], points: StepNumbers, shared: Any
    ) -> None:
        self.one, self.points, self.shared = one, points, shared

    def __call__(self, *args: Any) -> Any:
        mapped = vmap(self.one(self.points), in_dims=(None, *[0] * len(args)))
        return call(mapped, self.one, (self.points, len(args)), self.shared, *args)

    def parts(self, *args: Any) -> list[tuple[int, Callable[..., Any], tuple[Any, ...]]]:
        """[(count, function, arguments)]: what tasks share is counted for each, as if alone."""
        tasks, steps = leaves(args)[0].shape[0], self.points[-1]
        alone = take(args, slice(0, 1))
        start, first = (OverTasks(self.one, (number,), self.shared) for number in (0, 1))
        return [(tasks * (1 - steps), start, alone), (tasks * steps, first, alone)]


def task_keys(key: Key | None, tasks: int) -> Tensor:
    """One key a task: [T]; a single key is folded with the task's place in the batch."""
    key = fold_in(0, "learn") if key is None else key
    return key if key.dim() else fold_in(key, torch.arange(tasks, device=key.device))


def init_state(meta: Meta, rule: UpdateRule, lanes: Any = None) -> MetaState:
    """The state before the first step; the outer rule does not see running statistics."""
    if not leaves(meta):
        raise ConfigError(("model", "has no parameters, so that nothing could be meta-learned"))
    like = leaves(meta)[0]
    moving = {name: value for name, value in named_leaves(meta).items() if not is_stats(name)}
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return MetaState(meta, rule.init(moving), lanes, zero)


def outer_update(rule: UpdateRule) -> Callable[[MetaState, Grads], MetaState]:
    """`Method.update`: one step of the outer rule; running statistics as in `inner.statistics`."""

    def update(state: MetaState, grads: Grads) -> MetaState:
        flat, flat_grads = named_leaves(state.meta), named_leaves(grads)
        moving = {name: grad for name, grad in flat_grads.items() if not is_stats(name)}
        zero = torch.zeros((), dtype=state.step.dtype, device=state.step.device)
        params = {name: flat[name] for name in moving}
        moved, opt = one_vector.apply_rule(rule, moving, state.opt, params, zero)
        new = {
            name: moved[name] if name in moved else flat[name] - flat_grads[name] for name in flat
        }
        return state._replace(meta=from_named(state.meta, new), opt=opt, step=state.step + 1)

    return update


def is_stats(name: str) -> bool:
    return name.startswith(STATS) or f".{STATS}" in name


def meta_gradient(
    loss: Callable[..., tuple[Tensor, Metrics]], learner: Learner
) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
    """`Method.task_grad` by differentiation of `loss(meta, episode) -> (scalar, metrics)`.

    Running statistics have their movement (`inner.statistics`) in the place of a gradient.
    """

    def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
        def at(meta: Meta) -> tuple[Tensor, tuple[Metrics, Params]]:
            with training() as scope:
                value, metrics = loss(meta, episode)
            return value, (metrics, movement_of(scope, meta))

        # vjp, not grad: grad keeps all that its backward pass computes for yet another derivative,
        # twice the memory.
        with training_noise(learner, episode):
            try:
                value, pull, (metrics, movement) = torch.func.vjp(  # type: ignore[misc]
                    at, meta, has_aux=True
                )
                (grads,) = pull(torch.ones_like(value), retain_graph=False)
            except RuntimeError as error:
                if not NO_DERIVATIVE.match(str(error)):
                    raise
                text = "has no second derivative, so only first-order methods can train it"
                raise ConfigError(("model", f"{text}: {str(error).splitlines()[0]}")) from error
        return with_movement(grads, movement) if movement else grads, metrics

    return task_grad


def training_noise(learner: Learner, episode: Episode) -> AbstractContextManager[Scope]:
    """The scope of a training step of one task, in which the learner draws its noise."""
    return noise_from(episode.info["key"] if learner.draws_noise else None)


def grads_of_tasks(
    task_grad: Callable[..., tuple[Any, ...]], meta: Meta, episodes: Episode, lanes: Any
) -> tuple[Grads, Metrics, Any]:
    """`task_grad` over tasks side by side: (grads, metrics, lanes), leaves [T, ...]."""
    if lanes is None:
        grads, metrics = vmap(task_grad, in_dims=(None, 0))(meta, episodes)
        return grads, metrics, None
    grads, metrics, lanes = vmap(task_grad, in_dims=(None, 0, 0))(meta, episodes, lanes)
    return grads, metrics, lanes


def step_over_tasks(
    task_grad: Callable[..., tuple[Any, ...]],
    update: Callable[[MetaState, Grads], MetaState],
    spec: EpisodeSpec,
) -> Callable[[MetaState, Episode], tuple[MetaState, Metrics]]:
    """`Method.step`: the mean of `task_grad` over all tasks in one graph, then the update.

    ConfigError for targets that the loss of `spec` is not defined for."""

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        check_targets(episodes, spec)
        episodes = with_step(episodes, state.step)
        state = broadcast_task_state(state, episodes.support.x.shape[0])
        grads, metrics, lanes = grads_of_tasks(task_grad, state.meta, episodes, state.lanes)
        state = state._replace(lanes=lanes)
        return update(state, one_vector.mean_over_tasks(grads)), mean_over_tasks(metrics)

    return step


def with_step(episodes: Episode, step: Tensor) -> Episode:
    """The episodes with the meta-step in info["step"] [T], where schedules read it."""
    tasks = episodes.support.x.shape[0]
    return episodes._replace(info={**episodes.info, "step": step.expand(tasks)})


def broadcast_task_state(state: MetaState, tasks: int) -> MetaState:
    """The state with lanes for `tasks` tasks; `init` makes one lane, which is copied."""
    if state.lanes is None or not leaves(state.lanes):
        return state
    have = leaves(state.lanes)[0].shape[0]
    if have == tasks:
        return state
    if have != 1:
        raise ValueError(
            f"the state holds lanes for {have} tasks a step, not {tasks}: keep the number of "
            f"tasks constant"
        )
    lanes = tree_map(lambda x: x.expand(tasks, *x.shape[1:]).clone(), state.lanes)
    return state._replace(lanes=lanes)


def step_on_examples(
    grad: Callable[[Meta, Batch], tuple[Grads, Metrics]],
    update: Callable[[MetaState, Grads], MetaState],
    spec: EpisodeSpec,
    *,
    draws_noise: bool = False,
) -> Callable[[MetaState, Batch], tuple[MetaState, Metrics]]:
    """`Method.step` of a method that consumes one batch of examples [B, *X] a step.

    `draws_noise` draws in it by the number of the step."""

    def step(state: MetaState, batch: Batch) -> tuple[MetaState, Metrics]:
        check_example_targets(batch, spec)
        key = fold_in(NOISE, state.step.to(torch.int64)) if draws_noise else None
        with noise_from(key):
            grads, metrics = grad(state.meta, batch)
        return update(state, grads), metrics

    return step
