"""Gradient descent with a learned step size, the simplest learned optimizer."""

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
)
from metalearn.types import Params, State


class LearnedSGD(LearnedRuleComponent):
    """Gradient descent with a learned step size.

    u = -lr e^x g,  theta = x. At x = 0 it is gradient descent with `lr`: the ablation of learned
    networks, as in `learned_optimization` (Metz et al. 2022, arXiv:2203.11860), whose LearnableSGD
    learns log lr.

    >>> rule = ml.learned_optimizers.LearnedSGD(lr=0.1).build()
    >>> sorted(rule.init(ml.fold_in(0)))
    ['log_lr']
    """

    name: Literal["learned_sgd"] = option("learned_sgd", "The rule.")
    lr: float = option(0.01, "Initial step size.", gt=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, info: StepInfo
        ) -> tuple[Tensor, State]:
            return -exp_scaled(self.lr, theta["log_lr"]) * grad, slots

        return LearnedRule(
            lambda key: {"log_lr": scalar(0.0, key, dtype)}, per_tensor_rule(lambda param: {}, move)
        )
