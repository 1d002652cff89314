"""Estimators of the outer gradient: functions of one window of one inner run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from metalearn import rng
from metalearn.component import Component
from metalearn.learned_optimizers.inner_run import Inner, Problem, Run
from metalearn.learned_optimizers.rules.learned_rule import Theta
from metalearn.types import Key, State


class Estimate(NamedTuple):
    """The result of one window."""

    grads: Theta
    loss: Tensor  # []
    diverged: Tensor  # [] fraction of points whose loss was bounded
    carry: State  # the state of the inner run for the next window


class Estimator(NamedTuple):
    """An estimator of d/dtheta of the outer loss, one window at a time."""

    begin: Callable[[Run, Theta, Problem], State]  # the carry of a run before its first window
    # (run, theta, carry, problem, key of this window) -> Estimate
    estimate: Callable[[Run, Theta, State, Problem, Key], Estimate]
    unrolls: int  # inner runs in parallel: the cost of a window, in unrolls without a gradient


class EstimatorComponent(Component):
    """The options of an estimator."""

    name: str

    @abstractmethod
    def build(self) -> Estimator:
        """Build the estimator."""


class Antithetic(NamedTuple):
    """One window of two inner runs under opposite perturbations of theta."""

    plus: Inner
    minus: Inner
    rise: Tensor  # [] L(theta + e) - L(theta - e)
    loss: Tensor  # [] mean of the two
    diverged: Tensor  # [] mean of the two


def antithetic_window(
    run: Run, theta: Theta, noise: Theta, plus: Inner, minus: Inner, problem: Problem
) -> Antithetic:
    """Run a window of `plus` with theta + noise, and of `minus` with theta - noise."""
    plus, high, diverged_plus = run.window(_perturbed(theta, noise, 1), plus, problem)
    minus, low, diverged_minus = run.window(_perturbed(theta, noise, -1), minus, problem)
    diverged = (diverged_plus + diverged_minus) / 2
    return Antithetic(plus, minus, high - low, (high + low) / 2, diverged)


def perturbation(key: Key, theta: Theta, sigma: float) -> Theta:
    """Sample normal noise with standard deviation `sigma` and the structure of theta."""
    return {
        name: sigma * rng.normal(rng.fold_in(key, "noise", name), value.shape, value.dtype)
        for name, value in theta.items()
    }


def _perturbed(theta: Theta, noise: Theta, sign: int) -> Theta:
    return {name: value + sign * noise[name] for name, value in theta.items()}


def antithetic_grad(noise: Theta, rise: Tensor, sigma: float) -> Theta:
    """Return the antithetic gradient e (L(theta + e) - L(theta - e)) / (2 sigma^2)."""
    return {name: value * (rise / (2 * sigma**2)) for name, value in noise.items()}
