"""Gradient descent on a support set with learn2learn and with higher, with one interface.

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
    backward: Callable[[Tensor], None]  # of a query loss: adds to .grad of the initial parameters


class InnerLoop(Protocol):
    """The common interface of both packages."""

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
        """Return a function (support x, support y) -> the adapted network.

        `rates`, one for each of the network's parameters and of its shape, replace `lr` (Meta-SGD);
        `backward` adds to their gradients, too."""


def by_learn2learn(
    network: nn.Module,
    loss: Loss,
    *,
    lr: float,
    steps: int,
    first_order: bool = False,
    rates: Sequence[nn.Parameter] | None = None,
) -> Callable[[Tensor, Tensor], Adapted]:
    """Use learn2learn's MAML, or its MetaSGD with rates: `clone`, then `adapt` once per step."""
    algorithms = learn2learn().algorithms
    # allow_unused: a parameter without influence on the support loss is not updated, as in the
    # native loop.
    module: Any = (
        algorithms.MAML(network, lr=lr, first_order=first_order, allow_unused=True)
        if rates is None
        else algorithms.MetaSGD(network, lrs=nn.ParameterList(rates))
    )

    def adapt(x: Tensor, y: Tensor) -> Adapted:
        clone = module.clone()
        for _ in range(steps):
            clone.adapt(loss(clone(x), y))
        return Adapted(clone, lambda value: value.backward())

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
    """Use higher's patched module and differentiable torch.optim.SGD, with `override` for rates."""
    package, initial = higher(), list(network.parameters())
    groups: Any = initial if rates is None else [{"params": [param]} for param in initial]
    options = {
        "copy_initial_weights": False,
        "track_higher_grads": not first_order,
        "override": None if rates is None else {"lr": list(rates)},
    }
    optimizer = torch.optim.SGD(groups, lr=lr)

    def adapt(x: Tensor, y: Tensor) -> Adapted:
        with package.innerloop_ctx(network, optimizer, **options) as (patched, inner_optimizer):
            for _ in range(steps):
                inner_optimizer.step(loss(patched(x), y))

        def backward(value: Tensor) -> None:
            value.backward()
            # First order: the final parameters have no graph to the initial ones; their gradient is
            # the gradient of the initial parameters.
            for parameter, final in zip(initial, patched.parameters() if first_order else ()):
                if final.grad is not None:
                    previous = parameter.grad
                    parameter.grad = final.grad if previous is None else previous + final.grad

        return Adapted(patched, backward)

    return adapt


INNER_LOOPS: dict[str, InnerLoop] = {"learn2learn": by_learn2learn, "higher": by_higher}
PACKAGES = {"learn2learn": learn2learn, "higher": higher}
