"""A small MLP applied to every parameter: MLPLOpt of `learned_optimization`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.learned_optimizers.rules.cells import init_mlp, mlp
from metalearn.learned_optimizers.rules.features import (
    TIMES,
    constants,
    divide_by_rms,
    moving_averages,
    scaled_update,
    time_features,
)
from metalearn.learned_optimizers.rules.learned_rule import (
    LearnedRule,
    LearnedRuleComponent,
    StepInfo,
    Theta,
    per_tensor_rule,
)
from metalearn.types import Params, State

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


class MLP(LearnedRuleComponent):
    """A small MLP applied to every parameter, with gradient, parameter, momenta and time as input.

    19 features: g, p, m at six decays, each divided by its root mean square over the tensor;
    tanh(step / t - 1) at 11 scales.  (d, s) = mlp(features);  u = -step_size * d *
    e^(exponent * s) (Metz et al. 2020, arXiv:2009.11243). The rule does not read the horizon.

    >>> rule = ml.learned_optimizers.MLP(hidden=4).build()
    >>> sorted(rule.init(ml.fold_in(0)))
    ['mlp.0.bias', 'mlp.0.weight', 'mlp.1.bias', 'mlp.1.weight', 'mlp.2.bias', 'mlp.2.weight']
    """

    name: Literal["mlp"] = option("mlp", "The rule.")
    hidden: int = option(32, "Width of a layer.", ge=1, le=1024)
    layers: int = option(2, "Number of hidden layers.", ge=1, le=8)
    step_size: float = option(1e-3, "Multiplier of the output step.", gt=0)
    exponent: float = option(
        1e-3, "Multiplier of the output that is the logarithm of the step's magnitude.", ge=0
    )

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        sizes = (2 + len(DECAYS) + len(TIMES), *[self.hidden] * self.layers, 2)

        def start(param: Tensor) -> State:
            return {"momenta": param.new_zeros(len(DECAYS), *param.shape)}

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, info: StepInfo
        ) -> tuple[Tensor, State]:
            momenta = moving_averages(slots["momenta"], grad, constants(DECAYS, grad))
            x = divide_by_rms([grad, param, *momenta])
            output = mlp(theta, x, info.time, len(sizes) - 1)
            update = scaled_update(output, self.step_size, self.exponent)
            return update.reshape(grad.shape), {"momenta": momenta}

        rule = per_tensor_rule(start, move, time_features)
        return LearnedRule(lambda key: init_mlp(key, sizes, dtype), rule)
