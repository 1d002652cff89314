"""Learning rates of hand-designed rules, chosen on other tasks with equal trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.inner.baselines import BASELINES
from metalearn.inner.rules import make_schedule
from metalearn.l2o.measure import Losses, Rule, over_rates, over_tasks
from metalearn.learned_optimizers.inner_run import Optimizee, Problem

# 1e-6 to 100 in half decades, 17 rates; 15 would end at 10, which is NAdamW's best on quadratics at
# step 500.
GRID = tuple(10 ** (half / 2) for half in range(-12, 5))


class Baseline(NamedTuple):
    """A hand-designed rule with one schedule, and the rate that was best at each point."""

    name: str
    schedule: str
    rates: dict[int, float]  # point -> rate

    @property
    def label(self) -> str:
        return self.name if self.schedule == "constant" else f"{self.name}, {self.schedule}"


def grid(problems: Problem) -> Tensor:
    """Return the rates [L], on the device of the problems."""
    return torch.tensor(GRID, dtype=problems.horizon.dtype, device=problems.horizon.device)


def make_rule(name: str, shape: str, steps: int) -> Rule:
    """Return a function rate -> rule, for a run of `steps` steps."""
    factor = make_schedule(shape, steps)
    return lambda rate: BASELINES[name](rate, factor)


def tune(
    target: Optimizee, problems: Problem, name: str, shape: str, points: Sequence[int]
) -> Baseline:
    """Return the rate of least mean training loss over tasks, for each point as the end of a run.

    Raises ConfigError if the best is on an edge of the grid. A mean that is not finite is worst."""
    rates = grid(problems)
    best_rates: dict[int, float] = {}
    for point, mean in _means(target, problems, name, shape, points, rates).items():
        best = int(mean.nan_to_num(nan=torch.inf, posinf=torch.inf).argmin())
        if best in (0, len(GRID) - 1):
            text = f"the best rate of {name} ({shape}) at step {point} is {GRID[best]:g}"
            why = "an edge of the grid: a rate beyond it may be better"
            raise ConfigError(("baselines", f"{text}, {why}"))
        best_rates[point] = GRID[best]
    return Baseline(name, shape, best_rates)


def _means(
    target: Optimizee,
    problems: Problem,
    name: str,
    shape: str,
    points: Sequence[int],
    rates: Tensor,
) -> dict[int, Tensor]:
    """Return point -> mean training loss of every rate [L].

    A schedule has a separate run per point."""
    if shape == "constant":
        means = over_rates(
            target, make_rule(name, shape, points[-1]), rates, problems, points
        ).train.mean(1)
        return {point: means[:, column] for column, point in enumerate(points)}
    return {
        point: over_rates(
            target, make_rule(name, shape, point), rates, problems, (point,)
        ).train.mean(1)[:, 0]
        for point in points
    }


def measure_baseline(
    target: Optimizee, problems: Problem, baseline: Baseline, points: Sequence[int]
) -> Losses:
    """Run the baseline on other tasks, at each point with the rate tuned for it: [T, P].

    Step 0 is the initialization."""
    parts = []
    for rate in dict.fromkeys(baseline.rates.values()):
        rate_points = [point for point in points if baseline.rates.get(point) == rate]
        for run in (
            [rate_points] if baseline.schedule == "constant" else [[point] for point in rate_points]
        ):
            rule = make_rule(baseline.name, baseline.schedule, run[-1])(rate)
            parts.append((run, over_tasks(target, rule, problems, (0, *run))))
    columns = {0: (parts[0][1], 0)}
    for run, losses in parts:
        columns |= {point: (losses, column + 1) for column, point in enumerate(run)}
    train, held_out = (
        torch.stack(
            [getattr(columns[point][0], part)[:, columns[point][1]] for point in points], -1
        )
        for part in ("train", "held_out")
    )
    return Losses(train, held_out, parts[0][1].path)


def best_of_each(losses: Losses) -> Losses:
    """Select each task's own best rate, point by point: [L, T, P] -> [T, P].

    No method can tune so well in advance."""
    best = losses.train.nan_to_num(nan=torch.inf, posinf=torch.inf).argmin(0, keepdim=True)
    return Losses(
        losses.train.gather(0, best)[0], losses.held_out.gather(0, best)[0], losses.path[0]
    )


class Levels(NamedTuple):
    """The least loss that some rate has reached by each point, falling."""

    points: tuple[int, ...]
    losses: list[float]

    def steps_to(self, loss: float) -> int | None:
        """Return the steps, interpolated and rounded up, to a loss as low as `loss`; None if not
        reached."""
        index = next((index for index, level in enumerate(self.losses) if level <= loss), None)
        if not index:
            return None if index is None else self.points[0]
        (left, right), (high, low) = (
            self.points[index - 1 : index + 1],
            self.losses[index - 1 : index + 1],
        )
        fraction = (high - loss) / (high - low) if math.isfinite(high) else 1.0
        return left + math.ceil((right - left) * fraction - 1e-6)


def levels(losses: Losses, points: Sequence[int]) -> Levels:
    """Return the levels of the means over tasks of [L, T, P], on whole support sets.

    `learned_optimization`'s normaliser smooths losses of minibatches with 0.95: over a hundred
    steps that lags so much that Adam would seem to need 130 steps for its own loss of step 100."""
    curves = losses.train.mean(1).nan_to_num(nan=torch.inf, posinf=torch.inf)  # [L, P]
    return Levels(tuple(points), curves.amin(0).cummin(0).values.tolist())
