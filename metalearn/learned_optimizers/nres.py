"""Evolution strategies whose noise is used again in every window."""

from __future__ import annotations

from typing import Literal, NamedTuple

from metalearn.component import Component, option
from metalearn.learned_optimizers.estimator import Estimator, Seen, along, moved, noise
from metalearn.learned_optimizers.inner_run import Inner, Problem, Run
from metalearn.learned_optimizers.learned import Theta
from metalearn.types import Key


class Pair(NamedTuple):
    """Two runs under opposite noise, the same from beginning to end."""

    plus: Inner
    minus: Inner


class NRES(Component):
    """Noise-reuse evolution strategies (Li et al. 2023, arXiv:2304.12180; ES-Single, Vicol 2023,
    arXiv:2304.11153).

    e ~ N(0, sigma^2) once for a whole run;  g_t = e (L_t(theta + e) - L_t(theta - e)) / (2
    sigma^2). Summed over a run it is full ES of that run, so unbiased for the smoothed loss, with
    an update after every window and a variance that does not grow with their number.
    """

    name: Literal["nres"] = option("nres", "the estimator")
    sigma: float = option(0.01, "deviation of the noise on theta", gt=0)

    def build(self) -> Estimator:
        def begin(run: Run, theta: Theta, problem: Problem) -> Pair:
            start = run.begin(theta, problem)
            return Pair(start, start)

        def see(run: Run, theta: Theta, held: Pair, problem: Problem, key: Key) -> Seen:
            del key  # the noise is the problem's, not the window's
            by = noise(problem.key, theta, self.sigma)
            plus, high, gone = run.window(moved(theta, by, 1), held.plus, problem)
            minus, low, lost = run.window(moved(theta, by, -1), held.minus, problem)
            return Seen(
                along(by, high - low, self.sigma),
                (high + low) / 2,
                (gone + lost) / 2,
                Pair(plus, minus),
            )

        return Estimator(begin, see, 2)
