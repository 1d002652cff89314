"""`run.engine`: a method's meta-gradient of one task by another package, for cross-checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.heads import is_head
from metalearn.inner.requirements import require_no_noise, require_no_padding
from metalearn.inner.statistics import add_stats_delta
from metalearn.interop.inner_loops import INNER_LOOPS, PACKAGES, InnerLoop
from metalearn.interop.network import Network
from metalearn.losses import criterion, metrics
from metalearn.scopes.running_statistics import training_scope
from metalearn.tree import leaves, mean_over_tasks, partition, stack, take, trainable
from metalearn.types import Episode, Grads, Learner, Meta, MetaState, Method, Metrics, Params

# What the inner loop moves, as components say it in `engine_trains` -> by the parameter's name.
MOVES: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "head": is_head,
    "body": lambda name: not is_head(name),
}
KNOWN = {  # options that both engines honour
    *("name", "inner_steps", "inner_lr", "first_order", "rate_range", "outer")
}


def with_engine(engine: str, component: Any, learner: Learner, native: Method) -> Method:
    """`native`, built of `component`, with `task_grad` and `step` by an engine.

    One of native, learn2learn, higher.

    Start, learning of new tasks, meta-update and metrics stay the native ones, so a difference in a
    run's numbers is one of meta-gradients. The engines take ordinary backward passes: one task at a
    time, no vmap, no compiler (the executor `loop`). Raises ConfigError for an engine that is not
    installed, for a method or an option that it has no counterpart of."""
    if engine == "native":
        return native
    _refuse(engine, component)
    require_no_noise(engine, learner)
    require_no_padding(engine, native.spec)
    try:
        PACKAGES[engine]()
    except ConfigError as error:
        raise ConfigError(*(("run.engine", text) for _, text in error.problems)) from error
    task_grad = _task_grad(INNER_LOOPS[engine], component, learner, native)
    return native._replace(task_grad=task_grad, step=_step(task_grad, native))


def _refuse(engine: str, component: Any) -> None:
    if component.engine_trains is None:
        text = f"{engine} has no counterpart of {component.name}: use run.engine=native"
        raise ConfigError(("run.engine", text))
    fields = type(component).model_fields
    unknown = [name for name in fields if name not in KNOWN]
    other = [name for name in unknown if getattr(component, name) != fields[name].default]
    if other:
        text = f"is not supported by {engine}: omit it, or use run.engine=native"
        raise ConfigError(*((name, text) for name in other))


def _task_grad(
    inner_loop: InnerLoop, component: Any, learner: Learner, native: Method
) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
    """`Method.task_grad` of one task: the package's inner loop, then a backward pass of the query
    loss."""
    spec, loss_of = native.spec, criterion(native.spec)

    def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
        require_no_padding("run.engine", spec, episode.support, episode.query)
        params: Params = meta["params"] if _has_rates(meta) else meta
        (moving, rest), statistics = _parts(params, MOVES[component.engine_trains])
        still = {leaf: value.detach().clone().requires_grad_() for leaf, value in rest.items()}
        network = Network(learner, moving, {**still, **statistics})
        rates = _rates(meta, moving)
        adapt = inner_loop(
            network,
            loss_of,
            lr=getattr(component, "inner_lr", 0.0),
            steps=component.inner_steps,
            first_order=getattr(component, "first_order", False),
            rates=rates,
        )
        with training_scope(records=False):
            adapted = adapt(*episode.support[:2])
        with training_scope() as scope:
            if component.engine_trains == "head":
                _move_averages(learner, params, episode.support.x)
            predictions = adapted.network(episode.query.x, context=episode.support.x)
        adapted.backward(loss_of(predictions, episode.query.y))
        leaf = {**dict(zip(moving, network.parameters())), **still, **statistics}
        grads: Any = _grads(leaf, params)
        if rates is not None:
            grads = {"params": grads, "rates": _grads(dict(zip(moving, rates)), meta["rates"])}
        found = metrics(spec, predictions, episode.query.y)
        return add_stats_delta(grads, scope.delta(params)), found

    return task_grad


def _move_averages(learner: Learner, params: Params, x: Tensor) -> None:
    """Record the running statistics of x [B, *X], whose features natively lie before all inner
    steps."""
    if learner.normalisation == "running":
        with torch.no_grad():
            learner.features(params, x)


def _rates(meta: Meta, moving: Params) -> list[nn.Parameter] | None:
    """Copies of the learning rates of the leaves that move; None where there are none."""
    if not _has_rates(meta):
        return None
    return [nn.Parameter(meta["rates"][leaf].detach().clone()) for leaf in moving]


def _has_rates(meta: Meta) -> bool:
    """Whether learning rates are among the meta-parameters, as in Meta-SGD."""
    return set(meta) == {"params", "rates"}


def _parts(params: Params, moves: Callable[[str], bool]) -> tuple[tuple[Params, Params], Params]:
    """((what the inner loop moves, what stands still in it), running statistics)."""
    learned, statistics = trainable(params)
    return partition(learned, moves), statistics


def _grads(leaf: dict[str, Tensor], like: Params) -> Params:
    """The gradients on the leaves, in the order of `like`; zero where the loss ignores one."""
    grads = {name: leaf[name].grad for name in like}
    return {
        name: torch.zeros_like(like[name]) if grad is None else grad for name, grad in grads.items()
    }


def _step(
    task_grad: Callable[[Meta, Episode], tuple[Grads, Metrics]], native: Method
) -> Callable[[MetaState, Episode], tuple[MetaState, Metrics]]:
    """`Method.step`: one task after another, then the native update."""
    update = native.update
    assert update is not None

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        tasks = leaves(episodes.support)[0].shape[0]
        found = [task_grad(state.meta, take(episodes, task)) for task in range(tasks)]
        grads, means = mean_over_tasks(stack(found))
        return update(state, grads), means

    return step
