"""Estimators of the implicit outer gradient of an initialization.

At phi = argmin of L_support(phi) + lambda/2 |phi - theta|^2 the outer gradient is A^-1 b with
A = I + H / lambda, H the Hessian of L_support and b the gradient of L_query, both at phi
(Rajeswaran et al. 2019, arXiv:1909.04630, equation 6). Every estimator takes products with A, b and
a number of steps, which is fixed, so that tasks batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn.tree import add, leaves, scale, sub, tree_map, zeros_like
from metalearn.types import Params

Matrix = Callable[[Params], Params]  # x -> A x


def conjugate_gradients(matrix: Matrix, b: Params, steps: int) -> Params:
    """x with matrix(x) = b for a symmetric positive matrix, from x = 0 (Hestenes & Stiefel 1952).

    A residual of 0 stays where it is."""
    x: Params = zeros_like(b)
    residual, direction = b, b
    square = dot(residual, residual)
    for _ in range(steps):
        product = matrix(direction)
        length = ratio(square, dot(direction, product))
        x = add(x, scale(direction, length))
        residual = sub(residual, scale(product, length))
        new = dot(residual, residual)
        factor = ratio(new, square)
        direction = tree_map(lambda r, d, factor=factor: r + factor * d, residual, direction)
        square = new
    return x


def neumann(matrix: Matrix, b: Params, steps: int, rate: float) -> Params:
    """rate * sum over k = 0 .. steps of (I - rate A)^k b (Lorraine et al. 2020, arXiv:1911.02590,
    algorithm 3); it converges where rate is below 2 over the largest eigenvalue of A."""
    term = total = b
    for _ in range(steps):
        term = sub(term, scale(matrix(term), rate))
        total = add(total, term)
    solution: Params = scale(total, rate)
    return solution


def one_step(matrix: Matrix, b: Params, rate: float) -> Params:
    """rate * b: the gradient through the last step of descent alone (T1-T2, Luketina et al. 2016,
    arXiv:1511.06727, section 2), which is the Neumann series without a product."""
    return neumann(matrix, b, 0, rate)


def identity(matrix: Matrix, b: Params) -> Params:
    """b: the inverse is the identity (SAMA, Choe et al. 2023, arXiv:2310.05674, section 3.1)."""
    del matrix
    return b


def dot(a: Params, b: Params) -> Tensor:
    """The inner product over all leaves: []."""
    return torch.stack([(x * y).sum() for x, y in zip(leaves(a), leaves(b), strict=True)]).sum()


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0, as in a solved system."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))
