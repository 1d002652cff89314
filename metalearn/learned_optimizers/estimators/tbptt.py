"""Truncated back-propagation through the inner run."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metalearn.component import option
from metalearn.learned_optimizers.estimators.estimator import (
    Estimate,
    Estimator,
    EstimatorComponent,
)
from metalearn.learned_optimizers.inner_run import Inner, Problem, Run
from metalearn.learned_optimizers.rules.learned_rule import Theta
from metalearn.tree import detach
from metalearn.types import Key


class TBPTT(EstimatorComponent):
    """Truncated back-propagation: the exact gradient of a window (Andrychowicz et al. 2016).

    g = d/dtheta mean over the window of L(phi_s(theta)); the run before the window is a constant.
    Cheap and without noise; biased towards improvements within one window.

    >>> ml.learned_optimizers.TBPTT().build().unrolls
    1
    """

    name: Literal["tbptt"] = option("tbptt", "The estimator.")

    def build(self) -> Estimator:
        def estimate(run: Run, theta: Theta, carry: Inner, problem: Problem, key: Key) -> Estimate:
            del key

            def loss(theta: Theta) -> tuple[Tensor, tuple[Inner, Tensor]]:
                next_carry, value, diverged = run.window(theta, carry, problem)
                return value, (detach(next_carry), diverged)

            value, vjp_fn, (next_carry, diverged) = torch.func.vjp(loss, theta, has_aux=True)  # type: ignore[misc]
            (grads,) = vjp_fn(torch.ones_like(value), retain_graph=False)
            return Estimate(grads, value.detach(), diverged, next_carry)

        return Estimator(lambda run, theta, problem: detach(run.begin(theta, problem)), estimate, 1)
