"""Evolution strategies that reuse their noise in every window."""

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
from metalearn.types import Key


class Pair(NamedTuple):
    """Two runs under opposite noise, which stays the same from beginning to end."""

    plus: Inner
    minus: Inner


class NRES(EstimatorComponent):
    """Noise-reuse evolution strategies (Li et al. 2023, arXiv:2304.12180).

    e ~ N(0, sigma^2) once for a whole run;  g_t = e (L_t(theta + e) - L_t(theta - e)) / (2
    sigma^2). Also ES-Single (Vicol 2023, arXiv:2304.11153). Summed over a run it is full ES of that
    run, so unbiased for the smoothed loss, with an update after every window and a variance that
    does not grow with their number.

    >>> ml.learned_optimizers.NRES(sigma=0.01).build().unrolls
    2
    """

    name: Literal["nres"] = option("nres", "The estimator.")
    sigma: float = option(0.01, "Standard deviation of the perturbation of theta.", gt=0)

    def build(self) -> Estimator:
        def begin(run: Run, theta: Theta, problem: Problem) -> Pair:
            start = run.begin(theta, problem)
            return Pair(start, start)

        def estimate(run: Run, theta: Theta, carry: Pair, problem: Problem, key: Key) -> Estimate:
            del key  # the noise is the problem's, not the window's
            noise = perturbation(problem.key, theta, self.sigma)
            pair = antithetic_window(run, theta, noise, carry.plus, carry.minus, problem)
            grads = antithetic_grad(noise, pair.rise, self.sigma)
            return Estimate(grads, pair.loss, pair.diverged, Pair(pair.plus, pair.minus))

        return Estimator(begin, estimate, 2)
