"""Estimators of the implicit outer gradient."""

from __future__ import annotations

from typing import Any

import torch
from small import F64, gap

from metalearn.algorithms.gradient.implicit import (
    conjugate_gradients,
    identity,
    neumann,
    one_step,
)
from metalearn.bench.outer_gradients import ESTIMATORS, EXACT, estimate_gradient, exact, problems
from metalearn.rng import fold_in, normal

SIZE = 7


def test_estimators_approach_the_solution_of_the_linear_system() -> None:
    root = normal(fold_in(0), (SIZE, SIZE), F64)
    matrix, b = torch.eye(SIZE, dtype=F64) + root @ root.T / SIZE, normal(fold_in(1), (SIZE,), F64)
    truth, rate = torch.linalg.solve(matrix, b), 1 / float(torch.linalg.eigvalsh(matrix).max())

    def times(x: Any) -> Any:
        return {"x": matrix @ x["x"]}

    at = {"x": b}
    torch.testing.assert_close(conjugate_gradients(times, at, SIZE)["x"], truth)
    torch.testing.assert_close(neumann(times, at, 400, rate)["x"], truth)
    errors = [(neumann(times, at, n, rate)["x"] - truth).norm() for n in (0, 2, 8)]
    assert errors[0] > errors[1] > errors[2]
    three = sum(torch.linalg.matrix_power(torch.eye(SIZE) - rate * matrix, n) @ b for n in range(4))
    torch.testing.assert_close(neumann(times, at, 3, rate)["x"], rate * three)
    torch.testing.assert_close(one_step(times, at, rate)["x"], rate * b)
    assert identity(times, at) is at


def test_estimates_at_the_end_of_an_inner_loop_approach_back_propagation() -> None:
    problem = problems(F64)["sinusoid, 2 x 40 units"]
    truth = exact(problem)
    gaps = {
        name: gap(estimate_gradient(problem, way), truth) for name, (_, way) in ESTIMATORS.items()
    }
    assert EXACT not in gaps and gaps["conjugate gradients, 20 steps"] < 1e-3
    for family in ("conjugate gradients, {} steps", "Neumann series, {} terms"):
        few, more, most = (gaps[family.format(n)] for n in (1, 5, 20))
        assert few > more > most
    assert gaps["identity (SAMA)"] > gaps["conjugate gradients, 5 steps"]
