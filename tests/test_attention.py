"""Attention by plain operators beside torch's own, where masks leave out whole rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
