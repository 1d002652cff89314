"""Antithetic evolution strategies, over the whole inner run or windows of it."""

from __future__ import annotations

from typing import Literal

from metalearn.component import option
from metalearn.learned_optimizers.estimators.estimator import (
    Estimate,
    Estimator,
    EstimatorComponent,
    antithetic_grad,
    antithetic_window,
    perturbation,
)
from metalearn.learned_optimizers.inner_run import Inner, Problem, Run
from metalearn.learned_optimizers.rules.learned_rule import Theta
from metalearn.types import Key


class ES(EstimatorComponent):
    """Antithetic evolution strategies, one pair per task and window (Salimans et al. 2017).

    g = e (L(theta + e) - L(theta - e)) / (2 sigma^2),  e ~ N(0, sigma^2) (arXiv:1703.03864). Both
    runs start from the unperturbed run. With a window as long as the horizon it is full ES,
    unbiased for the smoothed loss; with shorter windows truncated ES, biased as truncated
    back-propagation is (Metz et al. 2019, arXiv:1810.10180). No activations are kept.

    >>> ml.learned_optimizers.ES(sigma=0.01).build().unrolls
    3
    """

    name: Literal["es"] = option("es", "The estimator.")
    sigma: float = option(0.01, "Standard deviation of the perturbation of theta.", gt=0)

    def build(self) -> Estimator:
        def estimate(run: Run, theta: Theta, carry: Inner, problem: Problem, key: Key) -> Estimate:
            noise = perturbation(key, theta, self.sigma)
            pair = antithetic_window(run, theta, noise, carry, carry, problem)
            next_carry, loss, diverged = run.window(theta, carry, problem)
            grads = antithetic_grad(noise, pair.rise, self.sigma)
            return Estimate(grads, loss, diverged, next_carry)

        return Estimator(lambda run, theta, problem: run.begin(theta, problem), estimate, 3)
