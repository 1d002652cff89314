"""The inner loop by higher: a patched module and a differentiable torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.interop.network import Network
from metalearn.interop.packages import higher
from metalearn.losses import Criterion
from metalearn.types import Batch


def inner_loop(component: Any, loss_of: Criterion) -> Callable[..., Callable[..., Tensor]]:
    """A function (network, rates, support) -> the adapted network, in whose graph the start still
    is.

    `rates` (one Parameter for each of the network's, of the same shape) take the place of the
    learning rate, one parameter group each: Meta-SGD by higher's `override`.
    """
    package = higher()
    # higher's own switch, track_higher_grads=False, cuts the path to the start too; first order
    # needs only the gradients cut.
    cut = _detached if getattr(component, "first_order", False) else None

    def adapted(
        network: Network, rates: list[nn.Parameter] | None, support: Batch
    ) -> Callable[..., Tensor]:
        groups = [{"params": [parameter]} for parameter in network.parameters()]
        rule = torch.optim.SGD(groups, lr=getattr(component, "inner_lr", 0.0))
        override = None if rates is None else {"lr": rates}
        with package.innerloop_ctx(
            network, rule, copy_initial_weights=False, override=override
        ) as (live, inner):
            for _ in range(component.inner_steps):
                inner.step(loss_of(live(support.x), support.y), grad_callback=cut)
        said: Callable[..., Tensor] = live
        return said

    return adapted


def _detached(grads: list[Tensor | None]) -> list[Tensor | None]:
    return [None if grad is None else grad.detach() for grad in grads]
