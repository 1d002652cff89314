"""A small perceptron for every parameter: MLPLOpt of `learned_optimization` (Metz et al. 2020,
arXiv:2009.11243).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.learned_optimizers.cells import mlp, start_mlp
from metalearn.learned_optimizers.features import TIMES, by_rms, constants, rolling, time_features
from metalearn.learned_optimizers.learned import LearnedRule, Now, Theta, over_tensors
from metalearn.types import Key, Params, State

DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


class MLP(Component):
    """One perceptron for every parameter, which sees gradient, parameter, six momenta and the time.

    19 features: g, p, m at six decays, each divided by its root mean square over the tensor;
    tanh(step / t - 1) at 11 scales.  (d, s) = perceptron(features);  u = -step_size * d *
    e^(exponent * s). The horizon is not seen."""

    name: Literal["mlp"] = option("mlp", "the rule")
    hidden: int = option(32, "width of a layer", ge=1, le=1024)
    layers: int = option(2, "hidden layers", ge=1, le=8)
    step_size: float = option(1e-3, "factor of a step", gt=0)
    exponent: float = option(1e-3, "factor of the logarithm of a step's size", ge=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """The rule; `like` is not needed."""
        sizes = (2 + len(DECAYS) + len(TIMES), *[self.hidden] * self.layers, 2)

        def init(key: Key) -> Theta:
            return start_mlp(key, sizes, dtype)

        def start(param: Tensor) -> State:
            return {"momenta": param.new_zeros(len(DECAYS), *param.shape)}

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, now: Now
        ) -> tuple[Tensor, State]:
            momenta = rolling(slots["momenta"], grad, constants(DECAYS, grad))
            x = by_rms([grad, param, *momenta])
            said = mlp(theta, x, now.seen, len(sizes) - 1)
            return stride(said, self.step_size, self.exponent).reshape(grad.shape), {
                "momenta": momenta
            }

        return LearnedRule(init, over_tensors(start, move, time_features))


def stride(said: Tensor, step_size: float, exponent: float) -> Tensor:
    """-step_size * d * e^(exponent * s) of (d, s): [n, 2] -> [n]."""
    direction, size = said.unbind(-1)
    return -step_size * direction * (exponent * size).exp()
