"""The project's own operators are in the table of FLOPs, and a Conv4 with them is counted."""

from __future__ import annotations

import pytest
import torch
from small import conv_task

from metalearn.evaluate.flops import Flops, count
from metalearn.kernels import native, norm_relu_pool
from metalearn.losses import LOSSES
from metalearn.rng import fold_in


@pytest.mark.skipif(native.kernel() is None, reason=f"no native convolution: {native.why_not()}")
def test_normalisation_relu_and_pooling_cost_what_a_normalisation_costs() -> None:
    y, ones = torch.randn(5, 6, 6, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    assert count(lambda y: norm_relu_pool.norm_relu_pool(y, ones, ones, 2), y) == Flops(
        0, 7 * y.numel()
    )

    def first(y: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda y: norm_relu_pool.norm_relu_pool(y, ones, ones, 2).sum())(y)

    once = count(first, y)
    assert once.matrix == 0 and 18 * y.numel() <= once.elementwise <= 20 * y.numel()
    twice = count(lambda y: torch.func.grad(lambda y: first(y).square().sum())(y), y)
    assert twice.elementwise >= once.elementwise + 15 * y.numel()


@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_of_maml_on_conv4_is_counted(steps: int) -> None:
    source, method = conv_task(steps)
    found = count(method.step, method.init(fold_in(0)), source.sample(fold_in(1), 2))
    assert found.matrix > 0 and found.elementwise > 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_losses_of_this_project_are_counted_without_a_guess(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In second derivatives, too, as MAML takes them."""
    targets = torch.tensor([0, 2, 1]) if name == "cross_entropy" else torch.rand(3, 4)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return LOSSES[name](values, targets).sum()

    def second(values: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda v: torch.func.grad(loss)(v).square().sum())(values)

    assert count(second, torch.rand(3, 4)).elementwise > 0
    assert not caplog.messages
