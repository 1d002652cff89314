"""From functions of one task to a Method: the only place that batches over tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.rng import fold_in
from metalearn.tree import (
    STATS,
    from_named,
    leaves,
    mean_over_tasks,
    named_leaves,
    take,
    tree_map,
)
from metalearn.types import (
    Batch,
    Episode,
    Grads,
    Key,
    Learned,
    Learner,
    Ledger,
    Meta,
    MetaState,
    Metrics,
    NullLedger,
    Params,
    UpdateRule,
)

Adapt = Callable[
    [Meta, Batch, tuple[int, ...], Key], Any
]  # -> what `predict` needs, a list of one item a point
Predict = Callable[
    [Meta, Any, Batch, Tensor], Tensor
]  # (meta, item, support, query_x [M, *X]) -> [M, C]
See = Callable[[Meta, Batch, Tensor], Tensor]  # (meta, support, query_x [M, *X]) -> features [M, D]


def points_of(steps: int | Sequence[int]) -> tuple[int, ...]:
    """The points of a learning curve: S means 0 .. S; a sequence is taken as it is, sorted and
    without repeats.
    """
    points = (
        tuple(range(steps + 1)) if isinstance(steps, int) else tuple(int(step) for step in steps)
    )
    if not points or list(points) != sorted(set(points)) or points[0] < 0:
        raise ValueError(
            f"steps: {steps} should be non-negative, ascending and without repeats, such as "
            f"(0, 1, 5, 10)"
        )
    return points


def learner_of_tasks(
    adapt_one: Adapt, predict_one: Predict, *, uses_steps: bool = True, see: See | None = None
) -> Callable[..., Learned]:
    """`Method.learn` made of two functions of one task; leaves with a leading T.

    `adapt_one` gives one item for each point (one in all where `uses_steps` is False: a constant
    point at every step); both halves are spent apart on the ledger, as `adapt` and `predict`. Where
    the body stands still, `see` gives the queries' features once for all points, and `predict_one`
    gets them in the place of query_x."""

    def learn(
        meta: Meta,
        support: Batch,
        query_x: Tensor,
        steps: int | Sequence[int],
        key: Key | None = None,
        ledger: Ledger | None = None,
    ) -> Learned:
        points = points_of(steps)
        tasks = support.x.shape[0]
        keys = task_keys(key, tasks).to(support.x.device)
        book = NullLedger() if ledger is None else ledger
        made = points[-1] if uses_steps else 0

        def to(points: tuple[int, ...]) -> Callable[..., list[Any]]:
            return lambda meta, support, key: list(adapt_one(meta, support, points, key))

        def answer(meta: Meta, items: list[Any], support: Batch, query_x: Tensor) -> Tensor:
            seen = query_x if see is None else see(meta, support, query_x)
            return torch.stack([predict_one(meta, item, support, seen) for item in items])

        work = OverTasks(to, points if uses_steps else (0,), meta)
        items = book.run("adapt", work, support, keys, gradient_steps=made * tasks, tasks=tasks)
        said = book.run(
            "predict", OverTasks(lambda _: answer, (0,), meta), items, support, query_x, tasks=tasks
        )
        if said.shape[1] != len(points):
            said = said.expand(-1, len(points), -1, -1)
        return Learned(said, {})

    return learn


class OverTasks:
    """A function of one task, run over tasks: `one(points)` takes what tasks share, then arguments
    with a leading T.

    `parts` says what its cost is made of: T times one task's, which is that of no step and S times
    what a step adds."""

    def __init__(
        self,
        one: Callable[[tuple[int, ...]], Callable[..., Any]],
        points: tuple[int, ...],
        shared: Any,
    ):
        self.one, self.points, self.shared = one, points, shared

    def __call__(self, *args: Any) -> Any:
        return torch.func.vmap(self.one(self.points), in_dims=(None, *[0] * len(args)))(
            self.shared, *args
        )

    def parts(self, *args: Any) -> list[tuple[int, Callable[..., Any], tuple[Any, ...]]]:
        """[(how often, function, arguments)]: what tasks side by side share is counted for each, as
        if alone.
        """
        tasks, steps = leaves(args)[0].shape[0], self.points[-1]
        alone = take(args, slice(0, 1))
        start, first = (OverTasks(self.one, (number,), self.shared) for number in (0, 1))
        return [(tasks * (1 - steps), start, alone), (tasks * steps, first, alone)]


def task_keys(key: Key | None, tasks: int) -> Tensor:
    """One key a task: [T]; a single key is folded with the task's place in the batch."""
    key = fold_in(0, "learn") if key is None else key
    return key if key.dim() else fold_in(key, torch.arange(tasks, device=key.device))


def begin(meta: Meta, rule: UpdateRule, lanes: Any = None) -> MetaState:
    """The state before the first step; the outer rule sees a flat dict without running
    statistics.
    """
    like = leaves(meta)[0]
    return MetaState(
        meta, rule.init(_moving(meta)), lanes, torch.zeros((), dtype=like.dtype, device=like.device)
    )


def outer_update(rule: UpdateRule) -> Callable[[MetaState, Grads], MetaState]:
    """`Method.update`: one step of the outer rule; running statistics move by what `stats_gradient`
    says.
    """

    def update(state: MetaState, grads: Grads) -> MetaState:
        flat, flat_grads = named_leaves(state.meta), named_leaves(grads)
        moving = {name: grad for name, grad in flat_grads.items() if not is_stats(name)}
        zero = torch.zeros((), dtype=state.step.dtype, device=state.step.device)
        updates, opt = rule.update(moving, state.opt, {name: flat[name] for name in moving}, zero)
        new = {
            name: flat[name] + updates[name] if name in updates else flat[name] - flat_grads[name]
            for name in flat
        }
        return state._replace(meta=from_named(state.meta, new), opt=opt, step=state.step + 1)

    return update


def is_stats(name: str) -> bool:
    return name.startswith(STATS) or f".{STATS}" in name


def _moving(meta: Meta) -> dict[str, Tensor]:
    return {name: value for name, value in named_leaves(meta).items() if not is_stats(name)}


def meta_gradient(
    loss: Callable[..., tuple[Tensor, Metrics]],
    learner: Learner,
    params_of: Callable[[Meta], Params] = lambda meta: meta,
) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
    """`Method.task_grad` by differentiation of `loss(meta, episode) -> (scalar, metrics)`.

    In the place of a gradient, running statistics carry minus their refresh by the support set,
    which the update subtracts: so they too are averaged over tasks, whichever executor runs.
    """

    def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
        # vjp, not grad: grad keeps all that its backward pass computes for yet another derivative,
        # twice the memory.
        value, pull, metrics = torch.func.vjp(lambda at: loss(at, episode), meta, has_aux=True)  # type: ignore[misc]
        (grads,) = pull(torch.ones_like(value), retain_graph=False)
        return stats_gradient(learner, params_of, meta, grads, episode.support.x), metrics

    return task_grad


def stats_gradient(
    learner: Learner, params_of: Callable[[Meta], Params], meta: Meta, grads: Grads, x: Tensor
) -> Grads:
    """`grads` with old minus refreshed running statistics in their place; unchanged where there are
    none.
    """
    if learner.normalisation != "running":
        return grads
    old = params_of(meta)
    new = learner.stats(old, x)
    params_of(grads).update({name: old[name] - new[name] for name in old if name.startswith(STATS)})
    return grads


def step_over_tasks(
    task_grad: Callable[..., tuple[Any, ...]], update: Callable[[MetaState, Grads], MetaState]
) -> Callable[[MetaState, Episode], tuple[MetaState, Metrics]]:
    """`Method.step`: the mean of `task_grad` over all tasks in one graph (vmap),
    then the update.
    """

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        episodes = stamped(episodes, state.step)
        state = widened(state, episodes.support.x.shape[0])
        if state.lanes is None:
            grads, metrics = torch.func.vmap(task_grad, in_dims=(None, 0))(state.meta, episodes)
        else:
            grads, metrics, lanes = torch.func.vmap(task_grad, in_dims=(None, 0, 0))(
                state.meta, episodes, state.lanes
            )
            state = state._replace(lanes=lanes)
        return update(state, mean_over_tasks(grads)), mean_over_tasks(metrics)

    return step


def stamped(episodes: Episode, step: Tensor) -> Episode:
    """The episodes with the meta-step in info["step"] [T]: schedules inside `task_grad` read it
    there.
    """
    tasks = episodes.support.x.shape[0]
    return episodes._replace(info={**episodes.info, "step": step.expand(tasks)})


def widened(state: MetaState, tasks: int) -> MetaState:
    """The state with lanes for `tasks` tasks; `init` makes one lane, which is copied at the first
    step.
    """
    if state.lanes is None:
        return state
    have = leaves(state.lanes)[0].shape[0]
    if have == tasks:
        return state
    if have != 1:
        raise ValueError(
            f"the state holds lanes for {have} tasks a step, not {tasks}: keep the number of "
            f"tasks constant"
        )
    return state._replace(
        lanes=tree_map(lambda x: x.expand(tasks, *x.shape[1:]).clone(), state.lanes)
    )


def step_on_examples(
    grad: Callable[[Meta, Batch], tuple[Grads, Metrics]],
    update: Callable[[MetaState, Grads], MetaState],
) -> Callable[[MetaState, Batch], tuple[MetaState, Metrics]]:
    """`Method.step` of a method that consumes examples: one batch [B, *X] a step."""

    def step(state: MetaState, batch: Batch) -> tuple[MetaState, Metrics]:
        grads, metrics = grad(state.meta, batch)
        return update(state, grads), metrics

    return step
