"""Attention by plain operators beside torch's own, where masks leave out whole rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import SEQUENCE

from metalearn.models import from_module
from metalearn.models.external.attention import UnfusedAttention, attention
from metalearn.models.external.checks import unfused_attention
from metalearn.rng import fold_in, normal

F64 = torch.float64
WORDS = torch.tensor([[1, 2, 0], [0, 0, 0], [3, 4, 5]])  # 0 is padding; the second has no word
X = normal(fold_in(5, "attention"), (3, 3, 4), F64)


@pytest.mark.parametrize("numbers", [False, True])
def test_a_row_of_which_all_is_left_out_is_zero_as_torchs(numbers: bool) -> None:
    mask: Tensor = (WORDS != 0)[:, None, :]
    if numbers:
        mask = torch.zeros(mask.shape, dtype=F64).masked_fill(~mask, -torch.inf)
    found = attention(X, X, X, mask)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(X, X, X, mask))
    assert (found[1] == 0).all()
    grad = torch.func.grad(lambda x: attention(x, x, x, mask).square().sum())(X)
    assert grad.isfinite().all()


@pytest.mark.parametrize("weights", [False, True])
def test_a_layer_treats_padding_as_torchs_does(weights: bool) -> None:
    layer = nn.MultiheadAttention(4, 2, batch_first=True, dtype=F64).eval()
    given: Any = {"key_padding_mask": WORDS == 0, "need_weights": weights}
    with unfused_attention(), torch.no_grad():
        expected = layer(X, X, X, **given)
        layer.__class__ = UnfusedAttention
        found = layer(X, X, X, **given)
    torch.testing.assert_close(found[0], expected[0], equal_nan=True)
    assert bool(found[0][1].isnan().all()) == weights


class Functional(nn.Module):
    """Attention by torch's function, whose inside no function mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.eye(4).repeat(3, 1)), nn.Linear(4, 3)
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z, out = x.transpose(0, 1), self.out
        found, _ = F.multi_head_attention_forward(
            *(z, z, z, 4, 2, self.weight, None, None, None, False, 0.0, out.weight, out.bias),
            need_weights=False,
        )
        return self.head(found.mean(0))  # type: ignore[no-any-return]


def test_attention_by_function_has_a_second_derivative() -> None:
    net = Functional().double()
    learner = from_module(net, SEQUENCE)
    params, x = learner.init(fold_in(0)), normal(fold_in(6), (2, 5, 4), F64)
    torch.testing.assert_close(learner.apply(params, x), net(x).detach())

    def slope(value: Tensor) -> Tensor:
        def loss(inner: Tensor) -> Tensor:
            return learner.apply({**params, "weight": inner}, x).square().sum()

        return torch.func.grad(loss)(value)[0, 1]

    weight, step = params["weight"], 1e-5 * torch.ones_like(params["weight"])
    found = (torch.func.grad(slope)(weight) * step).sum()
    expected = (slope(weight + step) - slope(weight - step)) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)
