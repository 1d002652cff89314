"""The learned optimizer of Andrychowicz et al. 2016 (arXiv:1606.04474)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.component import Component, option
from metalearn.learned_optimizers.cells import blank, lstm, start_lstm, weight
from metalearn.learned_optimizers.features import log_sign
from metalearn.learned_optimizers.learned import LearnedRule, Now, Theta, over_tensors
from metalearn.rng import fold_in
from metalearn.types import Key, Params, State


class LSTM(Component):
    """One small LSTM for every coordinate, with shared weights and a memory of its own.

    h, memory = LSTM(features of g, memory);  u = scale * (w h + b). The features are the log-sign
    pair of `features.log_sign`. Departure: weights start normal with variance 1 / fan-in, where the
    authors cut the tails. Neither the loss nor the horizon is seen.
    """

    name: Literal["lstm"] = option("lstm", "the rule")
    hidden: int = option(20, "width of a layer", ge=1, le=1024)
    layers: int = option(2, "layers, one above the other", ge=1, le=8)
    preprocess: float | None = option(
        10.0, "p of the log-sign features; null: the gradient as it is", gt=0, le=50
    )
    scale: float = option(0.1, "factor of the output", gt=0)

    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """The rule; `like` is not needed."""
        inputs = 1 if self.preprocess is None else 2

        def init(key: Key) -> Theta:
            out = {"out.weight": weight(fold_in(key, "out"), (1, self.hidden), dtype)}
            out["out.bias"] = torch.zeros(1, dtype=dtype, device=key.device)
            return {**start_lstm(key, inputs, self.hidden, self.layers, dtype), **out}

        def start(param: Tensor) -> State:
            return blank(param, param.numel(), self.hidden, self.layers)

        def move(
            theta: Theta, grad: Tensor, slots: State, param: Tensor, now: Now
        ) -> tuple[Tensor, State]:
            flat = grad.reshape(-1)
            x = flat.unsqueeze(-1) if self.preprocess is None else log_sign(flat, self.preprocess)
            h, memory = lstm(theta, x, slots)
            said = self.scale * (h @ theta["out.weight"].T + theta["out.bias"])
            return said.reshape(grad.shape), memory

        return LearnedRule(init, over_tensors(start, move))
