"""What an estimator of the outer gradient is: functions of one window of one inner run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from metalearn import rng
from metalearn.learned_optimizers.inner_run import Problem, Run
from metalearn.learned_optimizers.learned import Theta
from metalearn.types import Key, State


class Seen(NamedTuple):
    """One window, seen."""

    grads: Theta
    loss: Tensor  # []
    diverged: Tensor  # [] share of the points whose loss was bounded
    kept: State  # what the lane holds of the run now


class Estimator(NamedTuple):
    """An estimator of d/dtheta of the outer loss, one window at a time."""

    begin: Callable[[Run, Theta, Problem], State]  # what a lane holds of a fresh run
    see: Callable[
        [Run, Theta, State, Problem, Key], Seen
    ]  # (run, theta, held, problem, key of this window)
    # inner runs side by side: what a window costs, in unrolls without a gradient (tbptt: 1 with
    # one)
    unrolls: int


def noise(key: Key, theta: Theta, sigma: float) -> Theta:
    """Normal of deviation `sigma` in the form of theta."""
    return {
        name: sigma * rng.normal(rng.fold_in(key, "noise", name), value.shape, value.dtype)
        for name, value in theta.items()
    }


def moved(theta: Theta, by: Theta, sign: int) -> Theta:
    return {name: value + sign * by[name] for name, value in theta.items()}


def along(by: Theta, rise: Tensor, sigma: float) -> Theta:
    """The two-sided difference as a gradient: by * (L(theta + noise) - L(theta - noise)) / (2
    sigma^2).
    """
    return {name: value * (rise / (2 * sigma**2)) for name, value in by.items()}
