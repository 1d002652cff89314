"""The dual of the multi-class support vector machine, with its exact derivative."""

from __future__ import annotations

import torch
from torch import Tensor

FREE = 1e-6  # share of the bound above which a coefficient can move
OVER = 1e-4  # share of the bound by which a solution may exceed it


def coefficients(kernel: Tensor, y: Tensor, bound: Tensor, iterations: int) -> Tensor:
    """alpha [B, N] of the machine of Crammer & Singer 2001 (Lee et al. 2019, section 3.2).

    minimise 1/2 tr(alpha' K alpha) - sum_n alpha_n[y_n],  alpha_n <= bound_n y_n,  sum of each row
    0;  K [B, B] positive definite, y one-hot [B, N], bound [B] (C, 0 for padding). A class without
    an example of positive bound has alpha 0. `iterations` of projected descent with momentum (Beck
    & Teboulle 2009) find which coefficients are at their bound; the others then solve a linear
    system, whose derivative is that of the solution (implicit function theorem). Where they were
    too few, so that the solution leaves the bounds, alpha is that of the descent, a constant for
    whoever differentiates."""
    bounds = bound.unsqueeze(-1)
    alpha, limit = _descend(kernel.detach(), y, bounds, iterations), bounds * y
    free = (limit - alpha > FREE * bounds).to(kernel.dtype)
    exact = _solve(kernel, y, limit, free)
    return torch.where((limit - exact >= -OVER * bounds).all(), exact, alpha)


def _descend(kernel: Tensor, y: Tensor, bound: Tensor, iterations: int) -> Tensor:
    """Accelerated projected descent from 0; the step is 1 over the largest sum of a row of |K|.

    Rows and columns of padding count for nothing: coefficients are 0 there."""
    counts = (bound > 0).to(kernel.dtype)  # [B, 1]
    rate = 1 / (counts * kernel.abs() * counts.T).sum(-1).amax(-1)
    class_mask = (bound * y).amax(0) > 0  # [N]
    alpha = ahead = torch.zeros_like(y)
    for number in range(iterations):
        target = ahead - rate * (kernel @ ahead - y)
        new = bound * y - to_simplex(bound * y - target, bound, class_mask)
        ahead = new + number / (number + 3) * (new - alpha)
        alpha = new
    return alpha


def to_simplex(x: Tensor, total: Tensor, class_mask: Tensor | None = None) -> Tensor:
    """The nearest rows >= 0 with sums `total` [B, 1]: [B, N] (Duchi et al. 2008, figure 1).

    Columns that `class_mask` [N] leaves out are 0 in them."""
    if class_mask is not None:
        lowest = torch.finfo(x.dtype).min / (4 * x.shape[-1])  # so low that sums of them are finite
        x = torch.where(class_mask, x, torch.full_like(x, lowest))
    high = x.sort(-1, descending=True).values
    places = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    shifts = (high.cumsum(-1) - total) / places
    count = (high > shifts).sum(-1, keepdim=True).clamp(min=1)
    return (x - shifts.gather(-1, count - 1)).clamp(min=0)


def _solve(kernel: Tensor, y: Tensor, limit: Tensor, free: Tensor) -> Tensor:
    """K alpha + mu 1' = y where alpha is free, alpha = limit elsewhere, sums of rows 0."""
    size, ways = y.shape
    eye, row = torch.eye(size, dtype=y.dtype, device=y.device), y.new_ones(ways)
    flat, is_free = free.reshape(-1, 1), (free.sum(-1) > 0).to(y.dtype)
    products = torch.einsum("nm,kl->nkml", kernel, torch.diag(row)).reshape(size * ways, -1)
    sums = torch.einsum("nm,k->nkm", eye, row).reshape(size * ways, size)
    top = torch.cat([flat * products + torch.diag(1 - flat[:, 0]), flat * sums], -1)
    bottom = torch.cat([is_free.unsqueeze(-1) * sums.T, torch.diag(1 - is_free)], -1)
    right = torch.cat([(free * y + (1 - free) * limit).flatten(), torch.zeros_like(is_free)])
    solution: Tensor = torch.linalg.solve(torch.cat([top, bottom]), right)
    return solution[: size * ways].reshape(size, ways)
