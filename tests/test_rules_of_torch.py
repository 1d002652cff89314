"""L2, Nesterov momentum, clamped gradients and unequal drops of rules, as in torch; float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_rules import COUNT, gradient, run, run_torch, torchs, tree

from metalearn.inner.rules import RULES


@pytest.mark.parametrize("name", RULES)
def test_a_factor_for_each_milestone_multiplies_those_before(name: str) -> None:
    rule = RULES[name](lr=0.1, schedule="steps", milestones=(2, 3, 5), gamma=(0.06, 0.2, 0.5))
    factors = [1.0, 1.0, 0.06, 0.012, 0.012, 0.006, 0.006][:COUNT]
    theirs = run_torch(torchs(rule), factors)
    torch.testing.assert_close(run(rule.build(9))[0], theirs, rtol=1e-11, atol=1e-13)


TORCHS_OWN: dict[str, Any] = {
    "sgd": ({"l2": 0.3}, lambda params: torch.optim.SGD(params, 0.05, weight_decay=0.3)),
    "momentum": (
        {"l2": 0.3, "nesterov": True, "decay": 0.8},
        lambda params: torch.optim.SGD(params, 0.05, momentum=0.8, weight_decay=0.3, nesterov=True),
    ),
    "adam": ({"l2": 0.3}, lambda params: torch.optim.Adam(params, 0.05, weight_decay=0.3)),
}


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("name", TORCHS_OWN)
def test_l2_and_nesterov_are_torchs_own(name: str, limit: float | None) -> None:
    """In float64, with numbers of the gradient clamped as by clip_grad_value_, too."""
    options, make = TORCHS_OWN[name]
    ours = run(RULES[name](lr=0.05, clip_value=limit, **options).build())[0]
    params = {leaf: value.clone().requires_grad_() for leaf, value in tree("start").items()}
    theirs = make(params.values())
    for step in range(COUNT):
        for leaf, grad in gradient(params, step).items():
            params[leaf].grad = grad
        if limit is not None:
            assert max(float(param.grad.abs().max()) for param in params.values()) > limit  # type: ignore[union-attr]
            torch.nn.utils.clip_grad_value_(params.values(), limit)
        theirs.step()
        torch.testing.assert_close(ours[step], dict(params), rtol=1e-11, atol=1e-13)
