"""A learned step size for every single parameter: Meta-SGD's rates (Li et al. 2017,
arXiv:1707.09835) as a rule.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.errors import ConfigError
from metalearn.learned_optimizers.learned import LearnedRule, Theta, advanced, clock
from metalearn.tree import trainable
from metalearn.types import Grads, Key, Params, State, UpdateRule, Updates


class LearnedRates(Component):
    """Gradient descent with a learned step size for every single parameter of one network.

    u = -(lr + theta) * g, elementwise; theta begins at 0, and a rate may turn negative, as in
    Meta-SGD. It serves the network whose parameters it was built for and no other.
    """

    name: Literal["learned_rates"] = option("learned_rates", "the rule")
    lr: float = option(0.01, "step size before any is learned", gt=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """The rule for parameters of the names and shapes of `like`."""
        if like is None:
            text = (
                "has one rate for every parameter: build it with `like`, the parameters of "
                "the network"
            )
            raise ConfigError(("optimizer", f"learned_rates {text}"))
        moving = trainable(like)[0]

        def init(key: Key) -> Theta:
            return {
                name: torch.zeros(value.shape, dtype=dtype, device=key.device)
                for name, value in moving.items()
            }

        def rule(theta: Theta, horizon: Tensor | int) -> UpdateRule:
            def update(
                grads: Grads, state: State, params: Any, loss: Tensor
            ) -> tuple[Updates, State]:
                return {
                    name: -(self.lr + theta[name]) * grad for name, grad in grads.items()
                }, advanced(state)

            return UpdateRule(lambda params: clock(params, horizon), update)

        return LearnedRule(init, rule)
