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

# Value of `engine_trains` of a component -> whether the inner loop adapts a parameter, by name.
MOVES: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "head": is_head,
    "body": lambda name: not is_head(name),
}
SUPPORTED = {  # options that both engines support
    *("name", "inner_steps", "inner_lr", "first_order", "rate_range", "outer")
}


def with_engine(engine: str, component: Any, learner: Learner, native: Method) -> Method:
    """Return `native`, built from `component`, with `task_grad` and `step` of an engine.

    One of native, learn2learn, higher.

    Initialization, learning of new tasks, meta-update and metrics stay native, so a difference in
    the results of a run is a difference of meta-gradients. The engines use ordinary backward
    passes: one task at a time, no vmap, no compiler (the executor `loop`). Raises ConfigError if
    the engine is not installed, or has no counterpart of the method or of an option."""
    if engine == "native":
        return native
    _check_supported(engine, component)
    require_no_noise(engine, learner)
    require_no_padding(engine, native.spec)
    try:
        PACKAGES[engine]()
    except ConfigError as error:
        raise ConfigError(*(("run.engine", text) for _, text in error.problems)) from error
    task_grad = _make_task_grad(INNER_LOOPS[engine], component, learner, native)
    return native._replace(task_grad=task_grad, step=_make_step(task_grad, native))


def _check_supported(engine: str, component: Any) -> None:
    if component.engine_trains is None:
        text = f"{engine} has no counterpart of {component.name}: use run.engine=native"
        raise ConfigError(("run.engine", text))
    fields = type(component).model_fields
    unsupported = [name for name in fields if name not in SUPPORTED]
    changed = [name for name in unsupported if getattr(component, name) != fields[name].default]
    if changed:
        text = f"is not supported by {engine}: omit it, or use run.engine=native"
        raise ConfigError(*((name, text) for name in changed))


def _make_task_grad(
    inner_loop: InnerLoop, component: Any, learner: Learner, native: Method
) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
    """Return `Method.task_grad`: the inner loop of the package, then a backward pass of the query
    loss."""
    spec, loss_of = native.spec, criterion(native.spec)

    def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
        require_no_padding("run.engine", spec, episode.support, episode.query)
        params: Params = meta["params"] if _has_rates(meta) else meta
        (inner, rest), statistics = _split_params(params, MOVES[component.engine_trains])
        fixed = {name: value.detach().clone().requires_grad_() for name, value in rest.items()}
        network = Network(learner, inner, {**fixed, **statistics})
        rates = _copy_rates(meta, inner)
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
                _record_statistics(learner, params, episode.support.x)
            predictions = adapted.network(episode.query.x, context=episode.support.x)
        adapted.backward(loss_of(predictions, episode.query.y))
        tensors = {**dict(zip(inner, network.parameters())), **fixed, **statistics}
        grads: Any = _get_grads(tensors, params)
        if rates is not None:
            grads = {"params": grads, "rates": _get_grads(dict(zip(inner, rates)), meta["rates"])}
        task_metrics = metrics(spec, predictions, episode.query.y)
        return add_stats_delta(grads, scope.delta(params)), task_metrics

    return task_grad


def _record_statistics(learner: Learner, params: Params, x: Tensor) -> None:
    """Record the running statistics of x [B, *X]; natively its features are computed before all
    inner steps."""
    if learner.normalisation == "running":
        with torch.no_grad():
            learner.features(params, x)


def _copy_rates(meta: Meta, inner: Params) -> list[nn.Parameter] | None:
    """Return copies of the learning rates of the adapted leaves; None if there are no rates."""
    if not _has_rates(meta):
        return None
    return [nn.Parameter(meta["rates"][name].detach().clone()) for name in inner]


def _has_rates(meta: Meta) -> bool:
    """Return whether learning rates are among the meta-parameters, as in Meta-SGD."""
    return set(meta) == {"params", "rates"}


def _split_params(
    params: Params, is_adapted: Callable[[str], bool]
) -> tuple[tuple[Params, Params], Params]:
    """Return ((parameters adapted by the inner loop, fixed parameters), running statistics)."""
    params_with_gradient, statistics = trainable(params)
    return partition(params_with_gradient, is_adapted), statistics


def _get_grads(tensors: dict[str, Tensor], like: Params) -> Params:
    """Return the gradients of the leaves, in the order of `like`; zero if the loss ignores one."""
    grads = {name: tensors[name].grad for name in like}
    return {
        name: torch.zeros_like(like[name]) if grad is None else grad for name, grad in grads.items()
    }


def _make_step(
    task_grad: Callable[[Meta, Episode], tuple[Grads, Metrics]], native: Method
) -> Callable[[MetaState, Episode], tuple[MetaState, Metrics]]:
    """Return `Method.step`: one task after another, then the native update."""
    update = native.update
    assert update is not None

    def step(state: MetaState, episodes: Episode) -> tuple[MetaState, Metrics]:
        tasks = leaves(episodes.support)[0].shape[0]
        results = [task_grad(state.meta, take(episodes, task)) for task in range(tasks)]
        grads, mean_metrics = mean_over_tasks(stack(results))
        return update(state, grads), mean_metrics

    return step
