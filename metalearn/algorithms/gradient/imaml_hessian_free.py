"""Implicit MAML with Newton steps in the inner problem (Rajeswaran et al. 2019, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn.algorithms.gradient.imaml import IMAML
from metalearn.algorithms.gradient.implicit import Matrix, dot, ratio
from metalearn.component import option
from metalearn.noise import noise_from
from metalearn.tree import add, scale, sub, tree_map, zeros_like
from metalearn.types import EpisodeSpec, Params, UpdateRule

LENGTHS = (1.0, 0.5, 0.25, 0.0625, 2.0**-6, 2.0**-9)  # of a step, that the line search tries
SLOPE = 1e-4  # share of the decrease along the tangent that a step must reach


class HessianFreeIMAML(IMAML):
    """iMAML whose inner problem is solved by Newton steps with conjugate gradients (Martens 2010).

    phi <- phi - t d,  (H + lambda I) d = g by `newton_cg_steps` of conjugate gradients,  g the
    gradient of the penalised loss f (equation 3) and H the Hessian of L_support at phi;  t is the
    first of 1, 1/2 .. 1/512 with f(phi - t d) <= f(phi) - 1e-4 t g'd, and 0 if none is.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.algorithms.HessianFreeIMAML(strength=0.5).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # The paper leaves the details of its solver open, and the authors' code does not contain it.
    rate_is_input: ClassVar[bool] = False
    name: Literal["imaml_hessian_free"] = option("imaml_hessian_free", "The method.")  # type: ignore[assignment]
    inner_steps: int = option(3, "S, Newton steps in training.", acts="train", ge=1, le=1000)
    newton_cg_steps: int = option(5, "Conjugate gradient steps per Newton step.", ge=1, le=100)
    inner_lr: float = option(0.1, "Without effect here: the line search sets the step.", gt=0)

    @model_validator(mode="after")
    def _check_rate(self) -> HessianFreeIMAML:
        if self.inner_lr != type(self).model_fields["inner_lr"].default:
            text = f"inner_lr has no effect here (got {self.inner_lr:g}): a line search sets the "
            raise ValueError(text + "length of a Newton step; omit it")
        return self

    def inner_rule(self, spec: EpisodeSpec, objective: Callable[[Params], Tensor]) -> UpdateRule:
        """A Newton step on `objective`, the penalised loss of one task, without noise."""

        def quiet(params: Params) -> Tensor:
            with noise_from(None):
                return objective(params)

        def update(grads: Params, state: Any, params: Params, loss: Tensor) -> tuple[Params, Any]:
            products = torch.func.vjp(torch.func.grad(quiet), params)[1]
            step = newton_direction(lambda x: products(x)[0], grads, self.newton_cg_steps)
            return scale(step, -step_length(quiet, params, step, dot(grads, step))), state

        return UpdateRule(lambda params: {}, update)


def newton_direction(matrix: Matrix, grads: Params, steps: int) -> Params:
    """d with matrix(d) = grads, by conjugate gradients from 0 that end at the first direction
    without positive curvature; the gradient where that is the first one (Nocedal & Wright 2006,
    algorithm 7.1). Against d the objective falls, whatever the signs of the eigenvalues."""
    solution: Params = zeros_like(grads)
    residual, direction, square = grads, grads, dot(grads, grads)
    convex = torch.ones_like(square, dtype=torch.bool)
    begun = torch.zeros_like(convex)
    for _ in range(steps):
        product = matrix(direction)
        curvature = dot(direction, product)
        convex = convex & (curvature > 0)
        begun = begun | convex
        length = ratio(convex * square, convex * curvature)
        solution = add(solution, scale(direction, length))
        residual = sub(residual, scale(product, length))
        before, square = square, dot(residual, residual)
        factor = ratio(convex * square, convex * before)
        direction = tree_map(lambda r, d, factor=factor: r + factor * d, residual, direction)
    chosen: Params = tree_map(lambda d, g: torch.where(begun, d, g), solution, grads)
    return chosen


def step_length(
    objective: Callable[[Params], Tensor], params: Params, step: Params, slope: Tensor
) -> Tensor:
    """The first of `LENGTHS` with a sufficient decrease (Armijo 1966), else 0: [].

    `slope` [] is the inner product of gradient and step."""
    start = objective(params)
    # Near the end losses are equal up to rounding, and the whole step is the best one.
    start = start + 16 * torch.finfo(start.dtype).eps * start.abs()
    length, searching = torch.zeros_like(start), torch.ones_like(start, dtype=torch.bool)
    for t in LENGTHS:
        falls = objective(sub(params, scale(step, t))) <= start - SLOPE * t * slope
        length = length + t * (searching & falls)
        searching = searching & ~falls
    return length
