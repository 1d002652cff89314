"""Heavy-ball momentum with a learned step size and a learned decay."""

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
    scalar,
    share,
)
from metalearn.types import Key, Params, State


class LearnedMomentum(Component):
    """Heavy-ball momentum with a learned step size and decay.

    m = d m + g;  u = -lr e^x m,  d = sigmoid(logit(decay) + y);  theta = (x, y), at 0 momentum as
    in torch.optim.SGD"""

    name: Literal["learned_momentum"] = option("learned_momentum", "the rule")
    lr: float = option(0.01, "step size before any is learned", gt=0)
    decay: float = option(
        0.9, "share of the last step that is kept, before any is learned", gt=0, lt=1
    )

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """The rule; `like` is not needed."""

        def init(key: Key) -> Theta:
            return {"log_lr": scalar(0.0, key, dtype), "logit_decay": scalar(0.0, key, dtype)}

        def start(param: Tensor) -> State:
            return {"velocity": torch.zeros_like(param)}

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, now: Now
        ) -> tuple[Tensor, State]:
            velocity = share(self.decay, theta["logit_decay"]) * slots["velocity"] + grad
            return -grown(self.lr, theta["log_lr"]) * velocity, {"velocity": velocity}

        return LearnedRule(init, over_tensors(start, move))
