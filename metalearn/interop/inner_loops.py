"""Gradient descent on a support set by learn2learn and by higher, in one form for both.

Used by `run.engine`, by the bench and by the tests that compare gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from metalearn.interop.packages import higher, learn2learn

Loss = Callable[[Tensor, Tensor], Tensor]


class Adapted(NamedTuple):
    """A network after its inner steps."""

    network: Callable[..., Tensor]
    backward: Callable[[Tensor], None]  # of a query loss: adds to .grad of the start's parameters


class InnerLoop(Protocol):
    """What both packages are used as."""

    def __call__(
        self,
        network: nn.Module,
        loss: Loss,
        *,
        lr: float,
        steps: int,
        first_order: bool = False,
        rates: Sequence[nn.Parameter] | None = None,
    ) -> Callable[[Tensor, Tensor], Adapted]:
        """A function (support x, support y) -> the adapted network.

        `rates`, one for each of the network's parameters and of its shape, replace `lr` (Meta-SGD);
        their gradients are added to, too."""


def by_learn2learn(
    network: nn.Module,
    loss: Loss,
    *,
    lr: float,
    steps: int,
    first_order: bool = False,
    rates: Sequence[nn.Parameter] | None = None,
) -> Callable[[Tensor, Tensor], Adapted]:
    """learn2learn's MAML, or its MetaSGD with rates: `clone`, then `adapt` once a step."""
    algorithms = learn2learn().algorithms
    # allow_unused: a parameter without influence on the support loss stays where it is, as in the
    # native loop.
    start: Any = (
        algorithms.MAML(network, lr=lr, first_order=first_order, allow_unused=True)
        if rates is None
        else algorithms.MetaSGD(network, lrs=nn.ParameterList(rates))
    )

    def adapt(x: Tensor, y: Tensor) -> Adapted:
        live = start.clone()
        for _ in range(steps):
            live.adapt(loss(live(x), y))
        return Adapted(live, lambda value: value.backward())

    return adapt


def by_higher(
    network: nn.Module,
    loss: Loss,
    *,
    lr: float,
    steps: int,
    first_order: bool = False,
    rates: Sequence[nn.Parameter] | None = None,
) -> Callable[[Tensor, Tensor], Adapted]:
    """higher's patched module and differentiable torch.optim.SGD, with `override` for rates."""
    package, start = higher(), list(network.parameters())
    groups: Any = start if rates is None else [{"params": [one]} for one in start]
    options = {
        "copy_initial_weights": False,
        "track_higher_grads": not first_order,
        "override": None if rates is None else {"lr": list(rates)},
    }
    rule = torch.optim.SGD(groups, lr=lr)

    def adapt(x: Tensor, y: Tensor) -> Adapted:
        with package.innerloop_ctx(network, rule, **options) as (live, inner):
            for _ in range(steps):
                inner.step(loss(live(x), y))

        def backward(value: Tensor) -> None:
            value.backward()
            # First order: the end of the path does not know its start, whose gradient is that at
            # the end.
            for parameter, end in zip(start, live.parameters() if first_order else ()):
                if end.grad is not None:
                    before = parameter.grad
                    parameter.grad = end.grad if before is None else before + end.grad

        return Adapted(live, backward)

    return adapt


INNER_LOOPS: dict[str, InnerLoop] = {"learn2learn": by_learn2learn, "higher": by_higher}
PACKAGES = {"learn2learn": learn2learn, "higher": higher}
