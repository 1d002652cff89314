"""How a task's gradient is taken: products in fewer bits, activations computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch

from metalearn.executors.executor import make_step
from metalearn.inner.method import make_step_over_tasks
from metalearn.inner.recompute import checkpointing
from metalearn.tree import leaves, norm, sub, take
from metalearn.types import Episode, MetaState, Method, Metrics

# relative difference above which checkpointed inner steps have lost a part of the gradient;
# rounding: 1e-6
FAR = 1e-3
Function = TypeVar("Function", bound=Callable[..., Any])


def with_precision(method: Method, precision: str, checkpoint_inner: bool, device: str) -> Method:
    """`method` with its gradient in `precision`, and inner steps checkpointed if asked for."""
    if precision != "bf16" and not checkpoint_inner:
        return method

    def inside(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with ExitStack() as blocks:
                blocks.enter_context(checkpointing(checkpoint_inner))
                if precision == "bf16":
                    # Without the cache: what it keeps from one task would be met under another's
                    # transformation.
                    kind = torch.device(device).type
                    blocks.enter_context(torch.autocast(kind, torch.bfloat16, cache_enabled=False))
                return function(*args)

        return call

    if method.task_grad is None or method.update is None:
        return method if method.step is None else method._replace(step=inside(method.step))
    task_grad = inside(method.task_grad)
    return method._replace(
        task_grad=task_grad, step=make_step_over_tasks(task_grad, method.update, method.spec)
    )


def with_tf32(step: Function, precision: str) -> Function:
    """`step` with float32 products of CUDA rounded to TF32 while it runs, if `precision` is tf32.

    So is a capture that it makes.
    """
    if precision != "tf32":
        return step

    def call(*args: Any) -> Any:
        with _tf32():
            return step(*args)

    return cast(Function, call)


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.fp32_precision  # type: ignore[attr-defined]
    setattr(torch.backends, "fp32_precision", "tf32")  # noqa: B010  # for mypy
    try:
        yield
    finally:
        setattr(torch.backends, "fp32_precision", before)  # noqa: B010


def gradient_error(
    method: Method, other: Method, state: MetaState, episodes: Episode, precision: str
) -> float | None:
    """|g' - g| / |g| of the meta-gradients g' of `other` in a precision, and g of `method`.

    None without task gradients.
    """
    if method.task_grad is None:
        return None
    exact = gradient(method, state, episodes)
    rough: list[Any] = []

    def once(state: MetaState, data: Any) -> tuple[MetaState, Metrics]:
        rough.append(gradient(other, state, data))
        return state, {}

    with_tf32(once, precision)(state, episodes)
    return float(norm(sub(rough[0], exact)) / norm(exact))


def gradient(method: Method, state: MetaState, episodes: Episode) -> Any:
    """The mean over tasks of the gradient that a step hands to its update, task by task."""
    caught = method._replace(update=lambda state, grads: state._replace(meta=grads))
    if state.lanes is not None:
        tasks = leaves(episodes)[0].shape[0]
        state = state._replace(lanes=take(state.lanes, slice(0, tasks)))
    return make_step(caught, "loop")(state, episodes)[0].meta
