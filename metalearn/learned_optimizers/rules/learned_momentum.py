"""Heavy-ball momentum with a learned step size and a learned decay."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.learned_optimizers.rules.learned_rule import (
    LearnedRule,
    LearnedRuleComponent,
    StepInfo,
    Theta,
    exp_scaled,
    per_tensor_rule,
    scalar,
    shifted_sigmoid,
)
from metalearn.types import Key, Params, State


class LearnedMomentum(LearnedRuleComponent):
    """Heavy-ball momentum with a learned step size and decay.

    m = d m + g;  u = -lr e^x m,  d = sigmoid(logit(decay) + y);  theta = (x, y), at 0 momentum as
    in torch.optim.SGD

    >>> rule = ml.learned_optimizers.LearnedMomentum(lr=0.1).build()
    >>> sorted(rule.init(ml.fold_in(0)))
    ['log_lr', 'logit_decay']
    """

    name: Literal["learned_momentum"] = option("learned_momentum", "The rule.")
    lr: float = option(0.01, "Initial step size.", gt=0)
    decay: float = option(0.9, "Initial momentum.", gt=0, lt=1)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        def init(key: Key) -> Theta:
            return {name: scalar(0.0, key, dtype) for name in ("log_lr", "logit_decay")}

        def start(param: Tensor) -> State:
            return {"velocity": torch.zeros_like(param)}

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, info: StepInfo
        ) -> tuple[Tensor, State]:
            decay = shifted_sigmoid(self.decay, theta["logit_decay"])
            velocity = decay * slots["velocity"] + grad
            return -exp_scaled(self.lr, theta["log_lr"]) * velocity, {"velocity": velocity}

        return LearnedRule(init, per_tensor_rule(start, move))
