"""A learned step size for every parameter, the rates of Meta-SGD as a rule."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.learned_optimizers.rules.learned_rule import (
    LearnedRule,
    LearnedRuleComponent,
    Theta,
    advance_clock,
    init_clock,
)
from metalearn.tree import trainable
from metalearn.types import Grads, Key, Params, State, UpdateRule, Updates


class LearnedRates(LearnedRuleComponent):
    """Gradient descent with a learned step size for every scalar parameter of one network.

    u = -(lr + theta) * g, elementwise (Li et al. 2017, arXiv:1707.09835). Theta begins at 0; a rate
    may become negative, as in Meta-SGD. It works only with the network it was built for.

    >>> params = {"w": torch.zeros(3, 2)}
    >>> rule = ml.learned_optimizers.LearnedRates(lr=0.1).build(like=params)
    >>> sorted(rule.init(ml.fold_in(0)))
    ['w']
    """

    fixed_shapes: ClassVar[bool] = True

    name: Literal["learned_rates"] = option("learned_rates", "The rule.")
    lr: float = option(0.01, "Initial step size.", gt=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """Build the rule for parameters with names and shapes of `like`; ConfigError without it."""
        if like is None:
            text = "learned_rates has one step size per parameter: build it with `like`"
            raise ConfigError(("optimizer", f"{text}, the parameters of the network"))
        shapes = {name: value.shape for name, value in trainable(like)[0].items()}

        def init(key: Key) -> Theta:
            return {
                name: torch.zeros(shape, dtype=dtype, device=key.device)
                for name, shape in shapes.items()
            }

        def rule(theta: Theta, horizon: Tensor | int) -> UpdateRule:
            def update(
                grads: Grads, state: State, params: Any, loss: Tensor
            ) -> tuple[Updates, State]:
                updates = {name: -(self.lr + theta[name]) * grad for name, grad in grads.items()}
                return updates, advance_clock(state)

            return UpdateRule(lambda params: init_clock(params, horizon), update)

        return LearnedRule(init, rule)
