"""The inner loop by learn2learn: `clone`, then `adapt` once a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from metalearn.interop.network import Network
from metalearn.interop.packages import learn2learn
from metalearn.losses import Criterion
from metalearn.types import Batch


def inner_loop(component: Any, loss_of: Criterion) -> Callable[..., Callable[..., Tensor]]:
    """A function (network, rates, support) -> the adapted network, in whose graph the start still
    is.

    With `rates` (one Parameter for each of the network's, of the same shape) it is learn2learn's
    MetaSGD, else its MAML; ANIL and BOIL are its MAML around the part that moves, as in its own
    examples."""
    algorithms = learn2learn().algorithms

    def adapted(
        network: Network, rates: list[nn.Parameter] | None, support: Batch
    ) -> Callable[..., Tensor]:
        if rates is None:
            # allow_unused: a parameter without influence on the support loss stays where it is, as
            # in the native loop.
            first_order = getattr(component, "first_order", False)
            start = algorithms.MAML(
                network, lr=component.inner_lr, first_order=first_order, allow_unused=True
            )
        else:
            start = algorithms.MetaSGD(network, lrs=nn.ParameterList(rates))
        live: Any = start.clone()
        for _ in range(component.inner_steps):
            live.adapt(loss_of(live(support.x), support.y))
        said: Callable[..., Tensor] = live
        return said

    return adapted
