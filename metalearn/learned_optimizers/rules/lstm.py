"""The learned optimizer of Andrychowicz et al. 2016 (arXiv:1606.04474)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.learned_optimizers.rules.cells import init_lstm, init_weight, lstm, zero_memory
from metalearn.learned_optimizers.rules.features import log_sign
from metalearn.learned_optimizers.rules.learned_rule import (
    LearnedRule,
    LearnedRuleComponent,
    StepInfo,
    Theta,
    per_tensor_rule,
)
from metalearn.rng import fold_in
from metalearn.types import Key, Params, State


class LSTM(LearnedRuleComponent):
    """A small LSTM applied to every parameter, with shared weights and separate states.

    h, memory = LSTM(features of g, memory);  u = scale * (w h + b). The features are the log-sign
    pair of `features.log_sign`. Departure: initial weights are normal with variance 1 / fan-in,
    where the authors truncate the tails. The rule reads neither the loss nor the horizon.

    >>> rule = ml.learned_optimizers.LSTM(hidden=5).build()
    >>> sorted(rule.init(ml.fold_in(0)))
    ['lstm.0.bias', 'lstm.0.weight', 'lstm.1.bias', 'lstm.1.weight', 'out.bias', 'out.weight']
    """

    name: Literal["lstm"] = option("lstm", "The rule.")
    hidden: int = option(20, "Width of a layer.", ge=1, le=1024)
    layers: int = option(2, "Number of stacked layers.", ge=1, le=8)
    preprocess: float | None = option(
        10.0, "p of the log-sign features; null: the gradient itself.", gt=0, le=50
    )
    scale: float = option(0.1, "Multiplier of the output.", gt=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        inputs = 1 if self.preprocess is None else 2

        def init(key: Key) -> Theta:
            out = {"out.weight": init_weight(fold_in(key, "out"), (1, self.hidden), dtype)}
            out["out.bias"] = torch.zeros(1, dtype=dtype, device=key.device)
            return {**init_lstm(key, inputs, self.hidden, self.layers, dtype), **out}

        def start(param: Tensor) -> State:
            return zero_memory(param, param.numel(), self.hidden, self.layers)

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, info: StepInfo
        ) -> tuple[Tensor, State]:
            flat = grad.reshape(-1)
            x = flat.unsqueeze(-1) if self.preprocess is None else log_sign(flat, self.preprocess)
            h, memory = lstm(theta, x, slots)
            output = self.scale * (h @ theta["out.weight"].T + theta["out.bias"])
            return output.reshape(grad.shape), memory

        return LearnedRule(init, per_tensor_rule(start, move))
