"""Multinomial logistic regression to convergence, in operations that batch over tasks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.padding import mask_absent_classes

MEMORY = 10  # pairs of L-BFGS
LENGTHS = (*(2.0**-n for n in range(-2, 12)), 0.0)  # steps that a line search tries
ROUNDING = 1e-13  # of a loss


class Problem(NamedTuple):
    """One regularised logistic regression, in float64."""

    x: Tensor  # [B, D + 1], the last 1
    target: Tensor  # [B, C] one-hot
    weight: Tensor  # [B, 1], with the strength
    penalised: Tensor  # [D + 1], 0 for the biases
    class_mask: Tensor | None  # [C]

    def gradient(self, w: Tensor, outputs: Tensor) -> Tensor:
        """Return the gradient of the loss at w [C, D + 1] with the logits `outputs` [B, C]."""
        errors = torch.softmax(mask_absent_classes(outputs, self.class_mask), -1) - self.target
        return (self.weight * errors).T @ self.x + self.penalised * w

    def length(self, w: Tensor, outputs: Tensor, direction: Tensor) -> Tensor:
        """Return the length with the smallest slope among those that do not raise the loss: []."""
        lengths = torch.tensor(LENGTHS, dtype=w.dtype, device=w.device)
        along, t = self.x @ direction.T, lengths.reshape(-1, 1, 1)
        logits = mask_absent_classes(outputs + t * along, self.class_mask)
        candidates = w + t * direction
        losses = (-(self.weight * self.target * torch.log_softmax(logits, -1))).sum((-2, -1))
        losses = losses + (self.penalised * candidates.square()).sum((-2, -1)) / 2
        errors = torch.softmax(logits, -1) - self.target
        slopes = (self.weight * errors * along).sum((-2, -1))
        slopes = (slopes + (self.penalised * candidates * direction).sum((-2, -1))).abs()
        # Near convergence, losses are equal up to rounding, but slopes are not.
        higher = losses > losses[-1] + ROUNDING * losses[-1].abs()
        best = torch.where(higher, torch.full_like(slopes, torch.inf), slopes).argmin(-1)
        return ((best == torch.arange(len(LENGTHS), device=w.device)) * lengths).sum()


def solve(
    z: Tensor,
    y: Tensor,
    weight: Tensor,
    strength: float,
    iterations: int,
    class_mask: Tensor | None = None,
) -> Tensor:
    """Return argmin over W of strength * sum_i weight_i L(W [z_i, 1], y_i) + |W[:, :-1]|^2 / 2.

    L is the cross-entropy of softmax. By L-BFGS (Liu & Nocedal 1989, algorithm 2.1) from zero; each
    step has the best of 15 lengths along its direction. z [B, D], y one-hot [B, C], weight [B],
    class_mask [C] -> W [C, D + 1]; computed in float64."""
    x = torch.cat([z, torch.ones_like(z[:, :1])], -1).double()
    penalised = torch.ones_like(x[0])
    penalised[-1].zero_()
    scaled_weight = strength * weight.double().unsqueeze(-1)
    problem = Problem(x, y.double(), scaled_weight, penalised, class_mask)
    w = x.new_zeros((y.shape[-1], x.shape[-1]))
    outputs = x @ w.T
    grad = problem.gradient(w, outputs)
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        direction = -_inverse_hessian_times(grad, pairs)
        step = problem.length(w, outputs, direction) * direction
        w, outputs = w + step, outputs + x @ step.T
        new_grad = problem.gradient(w, outputs)
        pairs = [*pairs, (step, new_grad - grad)][-MEMORY:]
        grad = new_grad
    return w.to(z.dtype)


def _inverse_hessian_times(grad: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Apply the two-loop recursion to `grad`; a pair with a zero step has no effect."""
    direction, coefficients = grad, []
    for step, change in reversed(pairs):
        coefficient = _ratio((step * direction).sum(), (step * change).sum())
        direction = direction - coefficient * change
        coefficients.append(coefficient)
    if pairs:
        step, change = pairs[-1]
        curvature = (step * change).sum()
        scale = _ratio(curvature, change.square().sum())
        direction = torch.where(curvature > 0, scale, torch.ones_like(scale)) * direction
    for (step, change), coefficient in zip(pairs, reversed(coefficients), strict=True):
        correction = _ratio((change * direction).sum(), (step * change).sum())
        direction = direction + (coefficient - correction) * step
    return direction


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, or 0 where b is not positive."""
    return torch.where(b > 0, a / torch.where(b > 0, b, torch.ones_like(b)), torch.zeros_like(b))
