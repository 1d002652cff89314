"""A Learner as an nn.Module: the parameters of an inner loop, and a forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from metalearn.types import Learner, Params


class Network(nn.Module):
    """`learner.apply` as a module with copies of `params` as parameters; `fixed` is not copied."""

    def __init__(self, learner: Learner, params: Params, fixed: Params) -> None:
        super().__init__()
        self.learner, self.fixed, self.names = learner, fixed, tuple(params)
        # A module allows no dots in the name of a parameter.
        for index, value in enumerate(params.values()):
            self.register_parameter(f"p{index}", nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, *X] -> [B, C]."""
        # Looked up at every call: both packages replace the parameters by other tensors.
        params = {name: getattr(self, f"p{index}") for index, name in enumerate(self.names)}
        return self.learner.apply({**params, **self.fixed}, x, context=context)
