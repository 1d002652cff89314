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
    present: Tensor | None  # [C]

    def gradient(self, w: Tensor, outputs: Tensor) -> Tensor:
        """Of the loss at w [C, D + 1], whose logits are `outputs` [B, C]."""
        errors = torch.softmax(mask_absent_classes(outputs, self.present), -1) - self.target
        return (self.weight * errors).T @ self.x + self.penalised * w

    def length(self, w: Tensor, outputs: Tensor, direction: Tensor) -> Tensor:
        """Of the lengths that do not raise the loss, that of the smallest slope: []."""
        lengths = torch.tensor(LENGTHS, dtype=w.dtype, device=w.device)
        along, t = self.x @ direction.T, lengths.reshape(-1, 1, 1)
        moved, at = mask_absent_classes(outputs + t * along, self.present), w + t * direction
        losses = (-(self.weight * self.target * torch.log_softmax(moved, -1))).sum((-2, -1))
        losses = losses + (self.penalised * at.square()).sum((-2, -1)) / 2
        errors = torch.softmax(moved, -1) - self.target
        slopes = (self.weight * errors * along).sum((-2, -1))
        slopes = (slopes + (self.penalised * at * direction).sum((-2, -1))).abs()
        # Near the end losses are equal up to rounding, and slopes are not.
        higher = losses > losses[-1] + ROUNDING * losses[-1].abs()
        best = torch.where(higher, torch.full_like(slopes, torch.inf), slopes).argmin(-1)
        return ((best == torch.arange(len(LENGTHS), device=w.device)) * lengths).sum()


def solve(
    z: Tensor,
    y: Tensor,
    weight: Tensor,
    strength: float,
    iterations: int,
    present: Tensor | None = None,
) -> Tensor:
    """argmin over W of strength * sum_i weight_i L(W [z_i, 1], y_i) + |W without biases|^2 / 2.

    L is the cross-entropy of softmax. By L-BFGS (Liu & Nocedal 1989, algorithm 2.1) from zero; each
    step has the best of 15 lengths along its direction. z [B, D], y one-hot [B, C], weight [B],
    present [C] -> W [C, D + 1]; computed in float64."""
    x = torch.cat([z, torch.ones_like(z[:, :1])], -1).double()
    penalised = torch.ones_like(x[0])
    penalised[-1].zero_()
    each = strength * weight.double().unsqueeze(-1)
    problem = Problem(x, y.double(), each, penalised, present)
    w = x.new_zeros((y.shape[-1], x.shape[-1]))
    outputs = x @ w.T
    grad = problem.gradient(w, outputs)
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        direction = -_inverse_hessian_times(grad, pairs)
        step = problem.length(w, outputs, direction) * direction
        w, outputs = w + step, outputs + x @ step.T
        new = problem.gradient(w, outputs)
        pairs = [*pairs, (step, new - grad)][-MEMORY:]
        grad = new
    return w.to(z.dtype)


def _inverse_hessian_times(grad: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion; a pair without a step changes nothing."""
    found, shares = grad, []
    for step, change in reversed(pairs):
        share = _ratio((step * found).sum(), (step * change).sum())
        found = found - share * change
        shares.append(share)
    if pairs:
        step, change = pairs[-1]
        curvature = (step * change).sum()
        scale = _ratio(curvature, change.square().sum())
        found = torch.where(curvature > 0, scale, torch.ones_like(scale)) * found
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        other = _ratio((change * found).sum(), (step * change).sum())
        found = found + (share - other) * step
    return found


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is not positive."""
    return torch.where(b > 0, a / torch.where(b > 0, b, torch.ones_like(b)), torch.zeros_like(b))
