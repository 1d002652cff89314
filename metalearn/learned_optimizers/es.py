"""Antithetic evolution strategies, over the whole inner run or windows of it."""

from __future__ import annotations

from typing import Literal

from metalearn.component import Component, option
from metalearn.learned_optimizers.estimator import Estimator, Seen, along, moved, noise
from metalearn.learned_optimizers.inner_run import Inner, Problem, Run
from metalearn.learned_optimizers.learned import Theta
from metalearn.types import Key


class ES(Component):
    """Antithetic evolution strategies (Salimans et al. 2017, arXiv:1703.03864), a pair for every
    task and window.

    g = e (L(theta + e) - L(theta - e)) / (2 sigma^2),  e ~ N(0, sigma^2). Both runs begin where the
    unmoved one stands. With a window as long as the horizon it is full ES, unbiased for the
    smoothed loss; with shorter ones truncated ES, biased as truncated back-propagation is (Metz et
    al. 2019, arXiv:1810.10180). No memory of the steps is kept."""

    name: Literal["es"] = option("es", "the estimator")
    sigma: float = option(0.01, "deviation of the noise on theta", gt=0)

    def build(self) -> Estimator:
        def see(run: Run, theta: Theta, held: Inner, problem: Problem, key: Key) -> Seen:
            by = noise(key, theta, self.sigma)
            _, plus, _ = run.window(moved(theta, by, 1), held, problem)
            _, minus, _ = run.window(moved(theta, by, -1), held, problem)
            after, value, diverged = run.window(theta, held, problem)
            return Seen(along(by, plus - minus, self.sigma), value, diverged, after)

        return Estimator(lambda run, theta, problem: run.begin(theta, problem), see, 3)
