"""Persistent evolution strategies."""

from __future__ import annotations

from typing import Literal, NamedTuple

from metalearn.component import Component, option
from metalearn.learned_optimizers.estimator import Estimator, Seen, along, moved, noise
from metalearn.learned_optimizers.inner_run import Inner, Problem, Run
from metalearn.learned_optimizers.learned import Theta
from metalearn.tree import add, zeros_like
from metalearn.types import Key


class Pair(NamedTuple):
    """Two runs that went on under opposite noise, and the sum of that noise."""

    plus: Inner
    minus: Inner
    noise: Theta  # sum over the windows so far; 0 at the start of a run


class PES(Component):
    """Persistent evolution strategies (Vicol, Metz & Sohl-Dickstein 2021, arXiv:2112.13835):
    windows without bias.

    e_t ~ N(0, sigma^2) for every window;  g_t = (e_1 + ... + e_t) (L_t(theta + e_1 ... e_t) -
    L_t(theta - ...)) / (2 sigma^2). Two runs go on from window to window under opposite noise; the
    sum of noise credits early windows with what they did to late losses. Summed over a run it is
    unbiased for the smoothed loss; its variance grows with the number of windows. With one window a
    run it is full ES."""

    name: Literal["pes"] = option("pes", "the estimator")
    sigma: float = option(0.01, "deviation of the noise on theta in a window", gt=0)

    def build(self) -> Estimator:
        def begin(run: Run, theta: Theta, problem: Problem) -> Pair:
            start = run.begin(theta, problem)
            return Pair(start, start, zeros_like(theta))

        def see(run: Run, theta: Theta, held: Pair, problem: Problem, key: Key) -> Seen:
            by = noise(key, theta, self.sigma)
            total = add(held.noise, by)
            plus, high, gone = run.window(moved(theta, by, 1), held.plus, problem)
            minus, low, lost = run.window(moved(theta, by, -1), held.minus, problem)
            grads = along(total, high - low, self.sigma)
            return Seen(grads, (high + low) / 2, (gone + lost) / 2, Pair(plus, minus, total))

        return Estimator(begin, see, 2)
