"""Persistent evolution strategies."""

from __future__ import annotations

from typing import Literal, NamedTuple

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
from metalearn.tree import add, zeros_like
from metalearn.types import Key


class Pair(NamedTuple):
    """Two runs that continue under opposite noise, and the sum of that noise."""

    plus: Inner
    minus: Inner
    noise: Theta  # sum over the windows so far; 0 at the start of a run


class PES(EstimatorComponent):
    """Persistent evolution strategies: unbiased truncated windows (Vicol et al. 2021).

    arXiv:2112.13835: e_t ~ N(0, sigma^2) for every window;
    g_t = (e_1 + ... + e_t) (L_t(theta + e_1 ... e_t) - L_t(theta - ...)) / (2 sigma^2). Two runs
    continue from window to window with opposite noise; the sum of the noise credits early windows
    with their effect on late losses. Summed over a run it is unbiased for the smoothed loss; its
    variance grows with the number of windows. With one window per run it is full ES.

    >>> ml.learned_optimizers.PES(sigma=0.01).build().unrolls
    2
    """

    name: Literal["pes"] = option("pes", "The estimator.")
    sigma: float = option(
        0.01, "Standard deviation of the perturbation of theta in a window.", gt=0
    )

    def build(self) -> Estimator:
        def begin(run: Run, theta: Theta, problem: Problem) -> Pair:
            start = run.begin(theta, problem)
            return Pair(start, start, zeros_like(theta))

        def estimate(run: Run, theta: Theta, carry: Pair, problem: Problem, key: Key) -> Estimate:
            noise = perturbation(key, theta, self.sigma)
            total = add(carry.noise, noise)
            pair = antithetic_window(run, theta, noise, carry.plus, carry.minus, problem)
            grads = antithetic_grad(total, pair.rise, self.sigma)
            return Estimate(grads, pair.loss, pair.diverged, Pair(pair.plus, pair.minus, total))

        return Estimator(begin, estimate, 2)
