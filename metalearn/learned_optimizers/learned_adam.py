"""Adam with learned hyper-parameters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.learned_optimizers.learned import (
    LearnedRule,
    Now,
    Theta,
    grown,
    over_tensors,
    root,
    scalar,
    share,
)
from metalearn.types import Key, Params, State

LEAVES = ("log_lr", "logit_beta1", "logit_beta2", "log_eps")


class LearnedAdam(Component):
    """Adam (Kingma & Ba 2015, algorithm 1) whose four hyper-parameters are learned.

    u = -lr e^x m_hat / (sqrt(v_hat) + eps e^z),  beta = sigmoid(logit(beta_start) + y) for both
    moments; theta = (x, y1, y2, z), at 0 Adam as in torch.optim.Adam. The root has slope 0 at 0, so
    that a gradient through the rule stays finite where a parameter has met no gradient yet.
    """

    name: Literal["learned_adam"] = option("learned_adam", "the rule")
    lr: float = option(0.001, "step size before any is learned", gt=0)
    beta1: float = option(0.9, "decay of the first moment before any is learned", gt=0, lt=1)
    beta2: float = option(0.999, "decay of the second moment before any is learned", gt=0, lt=1)
    eps: float = option(1e-8, "added to the root of the second moment, before any is learned", gt=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """The rule; `like` is not needed."""

        def init(key: Key) -> Theta:
            return {name: scalar(0.0, key, dtype) for name in LEAVES}

        def start(param: Tensor) -> State:
            return {"first": torch.zeros_like(param), "second": torch.zeros_like(param)}

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, now: Now
        ) -> tuple[Tensor, State]:
            beta1, beta2 = (
                share(self.beta1, theta["logit_beta1"]),
                share(self.beta2, theta["logit_beta2"]),
            )
            first = beta1 * slots["first"] + (1 - beta1) * grad
            second = beta2 * slots["second"] + (1 - beta2) * grad * grad
            count = now.step + 1
            size = root(second / (1 - beta2**count)) + grown(self.eps, theta["log_eps"])
            rate = grown(self.lr, theta["log_lr"])
            return -rate * (first / (1 - beta1**count)) / size, {"first": first, "second": second}

        return LearnedRule(init, over_tensors(start, move))
