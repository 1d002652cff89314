"""Hand-designed optimizers that learned ones are compared with.

A step size may be a tensor, so that a grid of step sizes runs as one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.inner.rules import Schedule, adam, momentum, sgd
from metalearn.tree import leaves, tree_map, zeros_like
from metalearn.types import UpdateRule

Maker = Callable[[Any, Schedule | None], UpdateRule]  # (step size, its schedule) -> rule


def _clock(params: Any) -> Tensor:
    like = leaves(params)[0]
    return torch.zeros((), dtype=like.dtype, device=like.device)


def _rate(lr: Any, schedule: Schedule | None, count: Tensor) -> Any:
    return lr if schedule is None else lr * schedule(count)


def nag(lr: Any, decay: float = 0.9, schedule: Schedule | None = None) -> UpdateRule:
    """Nesterov's momentum, as torch.optim.SGD: m = decay m + g; u = -lr (g + decay m)."""

    def init(params: Any) -> Any:
        return {"count": _clock(params), "velocity": zeros_like(params)}

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        velocity = tree_map(lambda m, g: decay * m + g, state["velocity"], grads)
        rate = _rate(lr, schedule, state["count"])
        updates = tree_map(lambda m, g: -rate * (g + decay * m), velocity, grads)
        return updates, {"count": state["count"] + 1, "velocity": velocity}

    return UpdateRule(init, update)


def rmsprop(
    lr: Any, decay: float = 0.99, eps: float = 1e-8, schedule: Schedule | None = None
) -> UpdateRule:
    """RMSprop: v = decay v + (1 - decay) g^2; u = -lr g / (sqrt(v) + eps)."""

    def init(params: Any) -> Any:
        return {"count": _clock(params), "second": zeros_like(params)}

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        second = tree_map(lambda v, g: decay * v + (1 - decay) * g * g, state["second"], grads)
        rate = _rate(lr, schedule, state["count"])
        updates = tree_map(lambda v, g: -rate * g / (v.sqrt() + eps), second, grads)
        return updates, {"count": state["count"] + 1, "second": second}

    return UpdateRule(init, update)


def nadamw(
    lr: Any,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    schedule: Schedule | None = None,
) -> UpdateRule:
    """Nesterov's Adam (Dozat 2016) with decoupled weight decay (Loshchilov & Hutter 2019).

    m, v as Adam's; n = beta1 m / (1 - beta1^(t+1)) + (1 - beta1) g / (1 - beta1^t);
    u = -lr (n / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p)
    """

    def init(params: Any) -> Any:
        return {"count": _clock(params), "first": zeros_like(params), "second": zeros_like(params)}

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        count = state["count"] + 1
        first = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, state["first"], grads)
        second = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state["second"], grads)
        ahead, now, size = 1 - beta1 ** (count + 1), 1 - beta1**count, 1 - beta2**count
        rate = _rate(lr, schedule, state["count"])

        def step(m: Tensor, v: Tensor, g: Tensor, p: Tensor) -> Tensor:
            direction = beta1 * m / ahead + (1 - beta1) * g / now
            update: Tensor = -rate * (direction / ((v / size).sqrt() + eps) + weight_decay * p)
            return update

        updates = tree_map(step, first, second, grads, params)
        return updates, {"count": count, "first": first, "second": second}

    return UpdateRule(init, update)


BASELINES: dict[str, Maker] = {
    "sgd": lambda lr, schedule: sgd(lr, schedule),
    "momentum": lambda lr, schedule: momentum(lr, 0.9, schedule),
    "nag": lambda lr, schedule: nag(lr, schedule=schedule),
    "rmsprop": lambda lr, schedule: rmsprop(lr, schedule=schedule),
    "adam": lambda lr, schedule: adam(lr, schedule=schedule),
    "nadamw": lambda lr, schedule: nadamw(lr, schedule=schedule),
}
