"""Build a Method from functions of one task: the only place that batches over tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner import requirements
from metalearn.inner.flat_params import apply_rule, mean_grads
from metalearn.inner.statistics import add_stats_delta, stats_delta
from metalearn.labels import check_example_targets, check_targets
from metalearn.losses import metrics
from metalearn.noise import NOISE, NoiseScope, noise_from
from metalearn.padding import zero_padding
from metalearn.rng import fold_in
from metalearn.scopes.over_tasks import call
from metalearn.scopes.running_statistics import training_scope
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

StepIndices = tuple[int, ...]  # numbers of inner steps: the points of a learning curve
# (meta, support, step indices, key) -> [what `predict` needs after each number of steps]
AdaptFn = Callable[[Meta, Batch, StepIndices, Key], Any]
PredictFn = Callable[
    [Meta, Any, Batch, Tensor], Tensor
]  # (meta, adapted, support, x [M, *X]) -> [M, C]
FeaturesFn = Callable[[Meta, Batch, Tensor], Tensor]  # (meta, support, x [M, *X]) -> [M, D]
NO_DERIVATIVE = re.compile(r"(the )?derivative for \S+ is not implemented")


def episodic(
    learner: Learner,
    spec: EpisodeSpec,
    outer: UpdateRule,
    adapt: AdaptFn,
    predict: PredictFn,
    *,
    inner_steps: int,
    features: FeaturesFn | None = None,
    init: Callable[[Key], Meta] | None = None,
    fixed_ways: bool | None = None,
) -> Method:
    """Build a Method from two functions of one task.

    minimise over meta the mean over tasks of L(predict(meta, adapt(meta, support), query.x), y)

    Tasks need queries. `adapt` returns one result for each step index; with `inner_steps` 0, only
    one. If the inner loop does not adapt the features, `features` computes those of the queries
    once, as query_x of `predict`. `init(key)` returns the meta (default: the learner's parameters).
    `fixed_ways`: it has the head, so tests have the ways of training (default: with steps)."""
    loss_of, start = requirements.query_loss(spec), requirements.checked_init(init, learner.init)
    learn_fns = make_learn_functions(adapt, predict, uses_steps=inner_steps > 0, features=features)

    def task_loss(meta: Meta, episode: Episode) -> tuple[Tensor, Metrics]:
        support, query = zero_padding(episode.support), zero_padding(episode.query)
        adapted = learn_fns.adapt(meta, support, inner_steps, episode.info["key"])
        predictions = learn_fns.predict(meta, adapted, support, query.x, query.weight)  # [M, C]
        query_metrics = metrics(spec, predictions, query.y, query.weight)
        return loss_of(predictions, query.y, query.weight), query_metrics

    task_grad, update = make_task_grad(task_loss, learner), make_update(outer)
    return Method(
        spec,
        make_traits(learner, steps=inner_steps > 0, fixed_ways=fixed_ways),
        lambda key: init_state(start(key), outer),
        *learn_fns,
        task_grad=task_grad,
        update=update,
        step=make_step_over_tasks(task_grad, update, spec),
    )


class LearnFunctions(NamedTuple):
    """The fields of a Method that learn new tasks, in their order."""

    learn: Callable[..., Learned]
    adapt: Callable[..., Any]
    predict: Callable[..., Tensor]


def make_learn_functions(
    adapt: AdaptFn,
    predict: PredictFn,
    *,
    uses_steps: bool = True,
    features: FeaturesFn | None = None,
    paths: int = 1,
) -> LearnFunctions:
    """The fields `learn`, `adapt` and `predict` of a Method; arguments as in `episodic`.

    `paths` is the number of inner loops that `adapt` runs in parallel, for the count of gradient
    steps. Weights of examples are those of `support.weight`, and `query_weight` [M] of queries."""
    adapt_one, predict_all = requirements.checked_functions(adapt, predict, features)

    def predict_one(
        meta: Meta,
        adapted: Any,
        support: Batch,
        query_x: Tensor,
        query_weight: Tensor | None = None,
    ) -> Tensor:
        return predict_all(meta, [adapted], support, query_x, query_weight)[0]

    return LearnFunctions(
        make_learn(adapt, predict, uses_steps=uses_steps, features=features, paths=paths),
        lambda meta, support, step, key: adapt_one(meta, support, (step,), key)[-1],
        predict_one,
    )


def make_traits(
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


def as_step_indices(steps: int | Sequence[int]) -> StepIndices:
    """The step indices of a learning curve: S means 0 .. S; a sequence is returned unchanged."""
    indices = tuple(range(steps + 1)) if isinstance(steps, int) else tuple(map(int, steps))
    if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0:
        raise ValueError(
            f"steps must be non-negative, ascending and without repeats, such as (0, 1, 5, 10); "
            f"got {steps}"
        )
    return indices


def make_learn(
    adapt: AdaptFn,
    predict: PredictFn,
    *,
    uses_steps: bool = True,
    features: FeaturesFn | None = None,
    paths: int = 1,
) -> Callable[..., Learned]:
    """Build `Method.learn` from two functions of one task; leaves with a leading T.

    The ledger records the cost of each, as `adapt` and `predict`. Without steps the only result of
    `adapt` holds for every step index. Options are those of `make_learn_functions`."""
    adapt_one, predict_all = requirements.checked_functions(adapt, predict, features)
    predict_at = _stacked(predict_all)

    def adapt_to(indices: StepIndices) -> Callable[..., list[Any]]:
        return lambda meta, support, key: list(adapt_one(meta, support, indices, key))

    def learn(
        meta: Meta,
        support: Batch,
        query_x: Tensor,
        steps: int | Sequence[int],
        key: Key | None = None,
        ledger: Ledger | None = None,
        query_weight: Tensor | None = None,
    ) -> Learned:
        indices, tasks = as_step_indices(steps), support.x.shape[0]
        keys, adapt_at = task_keys(key, tasks).to(support.x.device), indices if uses_steps else (0,)
        ledger = NullLedger() if ledger is None else ledger
        adapt_fn, gradients = OverTasks(adapt_to, adapt_at, meta), paths * adapt_at[-1] * tasks
        counts = {"gradient_steps": gradients, "tasks": tasks}
        adapted = ledger.run("adapt", adapt_fn, support, keys, **counts)
        weights = () if query_weight is None else (query_weight,)
        args = OverTasks(predict_at, (0,), meta), adapted, support, query_x, *weights
        predictions = ledger.run("predict", *args, tasks=tasks)
        shape = (-1, len(indices), *predictions.shape[2:])
        return Learned(predictions.expand(shape), {})

    return learn


def _stacked(
    predict_all: Callable[..., list[Tensor]],
) -> Callable[[StepIndices], Callable[..., Tensor]]:
    """Predictions after all numbers of steps as one tensor, in the form of `OverTasks`."""
    return lambda _: lambda *args: torch.stack(predict_all(*args))


class OverTasks:
    """A function of one task, mapped over tasks: `one(step indices)` takes the meta, then [T, ...].

    `parts` splits its cost: T times that of one task, which is the cost of no step and S times the
    cost that a step adds."""

    def __init__(
        self, one: Callable[[StepIndices], Callable[..., Any]], indices: StepIndices, shared: Any
    ) -> None:
        self.one, self.indices, self.shared = one, indices, shared

    def __call__(self, *args: Any) -> Any:
        mapped = vmap(self.one(self.indices), in_dims=(None, *[0] * len(args)))
        return call(mapped, self.one, (self.indices, len(args)), self.shared, *args)

    def parts(self, *args: Any) -> list[tuple[int, Callable[..., Any], tuple[Any, ...]]]:
        """[(count, function, arguments)]: shared work is counted for each task."""
        tasks, steps = leaves(args)[0].shape[0], self.indices[-1]
        alone = take(args, slice(0, 1))
        start, first = (OverTasks(self.one, (number,), self.shared) for number in (0, 1))
        return [(tasks * (1 - steps), start, alone), (tasks * steps, first, alone)]


def task_keys(key: Key | None, tasks: int) -> Tensor:
    """One key per task: [T]; a single key is folded with the index of the task in the batch."""
    key = fold_in(0, "learn") if key is None else key
    return key if key.dim() else fold_in(key, torch.arange(tasks, device=key.device))


def init_state(meta: Meta, rule: UpdateRule, lanes: Any = None) -> MetaState:
    """The state before the first step; the outer rule gets no running statistics."""
    if not leaves(meta):
        raise ConfigError(("model", "has no parameters, so there is nothing to meta-learn"))
    like = leaves(meta)[0]
    params = {name: value for name, value in named_leaves(meta).items() if not is_stats(name)}
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return MetaState(meta, rule.init(params), lanes, zero)


def make_update(rule: UpdateRule) -> Callable[[MetaState, Grads], MetaState]:
    """Build `Method.update`: one step of the outer rule.

    Running statistics become old - gradient, as `inner.statistics` has it."""

    def update(state: MetaState, grads: Grads) -> MetaState:
        flat, flat_grads = named_leaves(state.meta), named_leaves(grads)
        param_grads = {name: grad for name, grad in flat_grads.items() if not is_stats(name)}
        no_loss = torch.zeros((), dtype=state.step.dtype, device=state.step.device)
        params = {name: flat[name] for name in param_grads}
        params, opt = apply_rule(rule, param_grads, state.opt, params, no_loss)
        new = {
            name: params[name] if name in params else flat[name] - flat_grads[name] for name in flat
        }
        return state._replace(meta=from_named(state.meta, new), opt=opt, step=state.step + 1)

    return update


def is_stats(name: str) -> bool:
    return name.startswith(STATS) or f".{STATS}" in name


def make_task_grad(
    loss: Callable[..., tuple[Tensor, Metrics]], learner: Learner
) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
    """Build `Method.task_grad`, the gradient of `loss(meta, episode) -> (scalar, metrics)`.

    For running statistics it holds old - new instead of a gradient (`inner.statistics`)."""

    def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
        def loss_with_aux(meta: Meta) -> tuple[Tensor, tuple[Metrics, Params]]:
            with training_scope() as scope:
                value, query_metrics = loss(meta, episode)
            return value, (query_metrics, stats_delta(scope, meta))

        # vjp, not grad: grad keeps all that its backward pass computes for yet another derivative,
        # twice the memory.
        draws = requirements.keyed_draws("adapt, predict or the network")
        with training_noise(learner, episode), draws:
            try:
                value, vjp_fn, (query_metrics, delta) = torch.func.vjp(  # type: ignore[misc]
                    loss_with_aux, meta, has_aux=True
                )
                (grads,) = vjp_fn(torch.ones_like(value), retain_graph=False)
            except RuntimeError as error:
                if not NO_DERIVATIVE.match(str(error)):
                    raise
                text = "has no second derivative, so only first-order methods can train it"
                raise ConfigError(("model", f"{text}: {str(error).splitlines()[0]}")) from error
        return add_stats_delta(grads, delta) if delta else grads, query_metrics

    return task_grad


def training_noise(learner: Learner, episode: Episode) -> AbstractContextManager[NoiseScope]:
    """Context manager of a training step of one task, in which the learner draws its noise."""
    return noise_from(episode.info["key"] if learner.draws_noise else None)


def per_task_grads(
    task_grad: Callable[..., tuple[Any, ...]], meta: Meta, episodes: Episode, lanes: Any
) -> tuple[Grads, Metrics, Any]:
    """`task_grad`, vmapped over tasks: (grads, metrics, lanes), leaves [T, ...]."""
    if lanes is None:
        grads, query_metrics = vmap(task_grad, in_dims=(None, 0))(meta, episodes)
        return grads, query_metrics, None
    grads, query_metrics, lanes = vmap(task_grad, in_dims=(None, 0, 0))(meta, episodes, lanes)
    return grads, query_metrics, lanes


def make_step_over_tasks(
    task_grad: Callable[..., tuple[Any, ...]],
    update: Callable[[MetaState, Grads], MetaState],
    spec: EpisodeSpec,
) -> Callable[[MetaState, Episode], tuple[MetaState, Metrics]]:
    """Build `Method.step`: the mean of `task_grad` over all tasks in one graph, then the update.

    It raises ConfigError for targets that the loss of `spec` is not defined for."""

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        check_targets(episodes, spec)
        episodes = with_step(episodes, state.step)
        state = broadcast_task_state(state, episodes.support.x.shape[0])
        grads, query_metrics, lanes = per_task_grads(task_grad, state.meta, episodes, state.lanes)
        state = state._replace(lanes=lanes)
        return update(state, mean_grads(grads)), mean_over_tasks(query_metrics)

    return step


def with_step(episodes: Episode, step: Tensor) -> Episode:
    """The episodes with the number of the meta-step in info["step"] [T], for schedules."""
    tasks = episodes.support.x.shape[0]
    return episodes._replace(info={**episodes.info, "step": step.expand(tasks)})


def broadcast_task_state(state: MetaState, tasks: int) -> MetaState:
    """The state with lanes for `tasks` tasks; `init` makes one lane, which is copied."""
    if state.lanes is None or not leaves(state.lanes):
        return state
    count = leaves(state.lanes)[0].shape[0]
    if count == tasks:
        return state
    if count != 1:
        raise ValueError(
            f"the state has lanes for {count} tasks per step (got {tasks}): keep the number of "
            f"tasks constant"
        )
    lanes = tree_map(lambda x: x.expand(tasks, *x.shape[1:]).clone(), state.lanes)
    return state._replace(lanes=lanes)


def make_step_on_examples(
    grad: Callable[[Meta, Batch], tuple[Grads, Metrics]],
    update: Callable[[MetaState, Grads], MetaState],
    spec: EpisodeSpec,
    *,
    draws_noise: bool = False,
) -> Callable[[MetaState, Batch], tuple[MetaState, Metrics]]:
    """Build `Method.step` of a method that consumes one batch of examples [B, *X] per step.

    If it `draws_noise`, the number of the step gives the key."""

    def step(state: MetaState, batch: Batch) -> tuple[MetaState, Metrics]:
        check_example_targets(batch, spec)
        key = fold_in(NOISE, state.step.to(torch.int64)) if draws_noise else None
        with noise_from(key):
            grads, metrics = grad(state.meta, batch)
        return update(state, grads), metrics

    return step
