"""Adam with learned hyper-parameters."""

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
    safe_sqrt,
    scalar,
    shifted_sigmoid,
)
from metalearn.types import Key, Params, State

LEAVES = ("log_lr", "logit_beta1", "logit_beta2", "log_eps")


class LearnedAdam(LearnedRuleComponent):
    """Adam (Kingma & Ba 2015, algorithm 1) with four learned hyper-parameters.

    u = -lr e^x m_hat / (sqrt(v_hat) + eps e^z),  beta = sigmoid(logit(beta_start) + y) for both
    moments; theta = (x, y1, y2, z), at 0 Adam as in torch.optim.Adam. The root has derivative 0 at
    0, so that a gradient through the rule is finite where a parameter has had no gradient yet.

    >>> rule = ml.learned_optimizers.LearnedAdam(lr=0.1).build()
    >>> sorted(rule.init(ml.fold_in(0)))
    ['log_eps', 'log_lr', 'logit_beta1', 'logit_beta2']
    """

    name: Literal["learned_adam"] = option("learned_adam", "The rule.")
    lr: float = option(0.001, "Initial step size.", gt=0)
    beta1: float = option(0.9, "Initial decay of the first moment.", gt=0, lt=1)
    beta2: float = option(0.999, "Initial decay of the second moment.", gt=0, lt=1)
    eps: float = option(
        1e-8, "Initial value that is added to the square root of the second moment.", gt=0
    )

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        def init(key: Key) -> Theta:
            return {name: scalar(0.0, key, dtype) for name in LEAVES}

        def start(param: Tensor) -> State:
            return {"first": torch.zeros_like(param), "second": torch.zeros_like(param)}

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, info: StepInfo
        ) -> tuple[Tensor, State]:
            beta1 = shifted_sigmoid(self.beta1, theta["logit_beta1"])
            beta2 = shifted_sigmoid(self.beta2, theta["logit_beta2"])
            first = beta1 * slots["first"] + (1 - beta1) * grad
            second = beta2 * slots["second"] + (1 - beta2) * grad * grad
            count = info.step + 1
            eps = exp_scaled(self.eps, theta["log_eps"])
            size = safe_sqrt(second / (1 - beta2**count)) + eps
            rate = exp_scaled(self.lr, theta["log_lr"])
            return -rate * (first / (1 - beta1**count)) / size, {"first": first, "second": second}

        return LearnedRule(init, per_tensor_rule(start, move))
