"""`run.engine`: a native method whose meta-gradient of one task is computed by another package, for
cross-checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.heads import is_head
from metalearn.inner.method import stats_gradient
from metalearn.interop import by_higher, by_learn2learn
from metalearn.interop.network import Network
from metalearn.losses import criterion, metrics
from metalearn.tree import leaves, mean_over_tasks, partition, stack, take, trainable
from metalearn.types import Episode, Grads, Learner, Meta, MetaState, Method, Metrics, Params

InnerLoop = Callable[..., Callable[..., Tensor]]  # (network, rates, support) -> the adapted network
ENGINES: dict[str, Callable[..., InnerLoop]] = {
    "learn2learn": by_learn2learn.inner_loop,
    "higher": by_higher.inner_loop,
}
# Method -> which parameters its inner loop moves, by name.
METHODS: dict[str, Callable[[str], bool]] = {
    "maml": lambda name: True,
    "anil": is_head,
    "boil": lambda name: not is_head(name),
    "meta_sgd": lambda name: True,
}
KNOWN = {
    "name",
    "inner_steps",
    "inner_lr",
    "first_order",
    "rate_range",
    "outer",
}  # options that both engines honour


def through(engine: str, component: Any, learner: Learner, native: Method) -> Method:
    """`native`, built of `component`, with `task_grad` and `step` by an engine: native, learn2learn
    or higher.

    Start, learning of new tasks, meta-update and metrics stay the native ones, so a difference in a
    run's numbers is one of meta-gradients. The engines take ordinary backward passes: one task at a
    time, no vmap, no compiler (the executor `loop`). Raises ConfigError for an engine that is not
    installed, for a method or an option that it has no counterpart of.
    """
    if engine == "native":
        return native
    _refuse(engine, component)
    try:
        inner_loop = ENGINES[engine](component, criterion(native.spec))
    except ConfigError as error:
        raise ConfigError(*(("run.engine", text) for _, text in error.problems)) from error
    task_grad = _task_grad(inner_loop, component.name, learner, native)
    return native._replace(task_grad=task_grad, step=_step(task_grad, native))


def _refuse(engine: str, component: Any) -> None:
    if component.name not in METHODS:
        text = (
            f"{engine} has no counterpart of {component.name}; it has one of "
            f"{', '.join(METHODS)}: use one of them"
        )
        raise ConfigError(("run.engine", f"{text}, or run.engine=native"))
    fields = type(component).model_fields
    other = [
        name
        for name in fields
        if name not in KNOWN and getattr(component, name) != fields[name].default
    ]
    if other:
        text = f"is nothing that {engine} knows: leave it out, or run.engine=native"
        raise ConfigError(*((name, text) for name in other))


def _task_grad(
    inner_loop: InnerLoop, name: str, learner: Learner, native: Method
) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
    """`Method.task_grad` of one task: the package's inner loop, then an ordinary backward pass of
    the query loss.
    """
    spec, loss_of = native.spec, criterion(native.spec)

    def params_of(meta: Meta) -> Params:
        params: Params = meta["params"] if name == "meta_sgd" else meta
        return params

    def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
        (moving, rest), statistics = _parts(params_of(meta), METHODS[name])
        still = {leaf: value.detach().clone().requires_grad_() for leaf, value in rest.items()}
        network = Network(learner, moving, {**still, **statistics})
        rates = (
            [nn.Parameter(meta["rates"][leaf].detach().clone()) for leaf in moving]
            if name == "meta_sgd"
            else None
        )
        live = inner_loop(network, rates, episode.support)
        said = live(episode.query.x, context=episode.support.x)
        loss_of(said, episode.query.y).backward()
        found = _grads(
            {**dict(zip(moving, network.parameters())), **still, **statistics}, params_of(meta)
        )
        grads = (
            found
            if rates is None
            else {"params": found, "rates": _grads(dict(zip(moving, rates)), meta["rates"])}
        )
        return stats_gradient(learner, meta, grads, episode.support.x), metrics(
            spec, said, episode.query.y
        )

    return task_grad


def _parts(params: Params, moves: Callable[[str], bool]) -> tuple[tuple[Params, Params], Params]:
    """((what the inner loop moves, what stands still in it), running statistics)."""
    learned, statistics = trainable(params)
    return partition(learned, moves), statistics


def _grads(leaf: dict[str, Tensor], like: Params) -> Params:
    """What `backward` left on the leaves, in the order of `like`; zero where the loss does not
    depend on one.
    """
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
        grads, said = mean_over_tasks(stack(found))
        return update(state, grads), said

    return step
