"""A Learner as an nn.Module: the parameters of an inner loop, and a forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from metalearn.types import Learner, Params


class Network(nn.Module):
    """`learner.apply` as a module with copies of `moving` as parameters, and `still` as it is."""

    def __init__(self, learner: Learner, moving: Params, still: Params) -> None:
        super().__init__()
        self.learner, self.still, self.names = learner, still, tuple(moving)
        for place, value in enumerate(
            moving.values()
        ):  # a module allows no dots in the name of a parameter
            self.register_parameter(f"p{place}", nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, *X] -> [B, C]."""
        # Looked up at every call: both packages put other tensors in the place of the parameters.
        moving = {name: getattr(self, f"p{place}") for place, name in enumerate(self.names)}
        return self.learner.apply({**moving, **self.still}, x, context=context)
