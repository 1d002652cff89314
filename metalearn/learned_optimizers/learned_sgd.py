"""Gradient descent with a learned step size: the least that an optimizer can learn."""

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
)
from metalearn.types import Params, State


class LearnedSGD(Component):
    """Gradient descent with a learned step size.

    u = -lr e^x g,  theta = x. At x = 0 it is gradient descent with `lr`: the ablation that learned
    networks are held against, as in `learned_optimization` (Metz et al. 2022, arXiv:2203.11860),
    whose LearnableSGD learns log lr."""

    name: Literal["learned_sgd"] = option("learned_sgd", "the rule")
    lr: float = option(0.01, "step size before any is learned", gt=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """The rule; `like` is not needed."""

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, now: Now
        ) -> tuple[Tensor, State]:
            return -grown(self.lr, theta["log_lr"]) * grad, slots

        return LearnedRule(
            lambda key: {"log_lr": scalar(0.0, key, dtype)}, over_tensors(lambda param: {}, move)
        )
