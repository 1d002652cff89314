"""The Hessian-free inner solver of iMAML: its optimum, its outer gradient, its line search."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small import F64, gap

from metalearn.algorithms import IMAML, HessianFreeIMAML
from metalearn.algorithms.gradient.imaml_hessian_free import (
    newton_direction,
    step_length,
)
from metalearn.inner.adapt import support_loss
from metalearn.models import MLP
from metalearn.rng import fold_in, normal
from metalearn.testing.clusters import Clusters
from metalearn.tree import sub, take

KEY = fold_in(2)


def one_task() -> Any:
    source = Clusters("train", 24)
    learner = MLP(sizes=(8,), activation="tanh").build(source.spec)
    return source, learner, take(source.sample(fold_in(1), 1), 0)


@pytest.mark.parametrize(("strength", "cg_steps"), [(1.0, 60), (1.0, 5), (0.3, 60), (0.02, 60)])
def test_newton_steps_reach_the_proximal_optimum(strength: float, cg_steps: int) -> None:
    """There the gradient of the penalised loss is zero; for small penalties, the way leads through
    directions of negative curvature."""
    source, learner, episode = one_task()
    component = HessianFreeIMAML(inner_steps=20, newton_cg_steps=cg_steps, strength=strength)
    method, loss = component.build(learner, source.spec), support_loss(learner, source.spec)
    meta = method.init(fold_in(0)).meta
    assert method.adapt is not None
    phi = method.adapt(meta, episode.support, 20, KEY)
    grads = torch.func.grad(lambda at: loss(at, episode.support, 0))(phi)
    away = {name: grads[name] + strength * (phi[name] - meta[name]) for name in phi}
    assert max(float(x.abs().max()) for x in away.values()) < 1e-12


def test_the_optimum_and_the_outer_gradient_are_those_of_long_descent() -> None:
    source, learner, episode = one_task()
    options: Any = {"strength": 1.0, "cg_steps": 60}
    newton = HessianFreeIMAML(inner_steps=12, **options)
    descent = IMAML(inner_steps=400, inner_lr=0.3, **options)
    (phi, grads), (other, expected) = (
        ends_of(component.build(learner, source.spec), component.inner_steps, episode)
        for component in (newton, descent)
    )
    assert gap(phi, other) < 1e-10 and gap(grads, expected) < 1e-8


def ends_of(method: Any, steps: int, episode: Any) -> tuple[Any, Any]:
    """Task parameters after `steps`, and the outer gradient."""
    meta = method.init(fold_in(0)).meta
    return method.adapt(meta, episode.support, steps, KEY), method.task_grad(meta, episode)[0]


def test_a_newton_step_never_raises_the_penalised_loss() -> None:
    source, learner, episode = one_task()
    method = HessianFreeIMAML(strength=0.01, newton_cg_steps=2).build(learner, source.spec)
    meta, loss = method.init(fold_in(0)).meta, support_loss(learner, source.spec)
    assert method.adapt is not None
    values = []
    for step in range(5):
        phi = method.adapt(meta, episode.support, step, KEY)
        pull = sum(x.square().sum() for x in sub(phi, meta).values())
        values.append(float(loss(phi, episode.support, 0) + 0.005 * pull))
    assert all(b < a for a, b in itertools.pairwise(values))


def test_a_direction_solves_a_convex_system_and_descends_any_other() -> None:
    root, g = normal(fold_in(0), (6, 6), F64), normal(fold_in(1), (6,), F64)
    convex, other = root @ root.T + torch.eye(6, dtype=F64), root + root.T
    assert float(torch.linalg.eigvalsh(other).min()) < 0
    for matrix in (convex, other, -convex, torch.zeros_like(convex)):
        for steps in (1, 3, 12):
            found = newton_direction(lambda x, m=matrix: {"x": m @ x["x"]}, {"x": g}, steps)["x"]
            assert found.isfinite().all() and g @ found > 0
    found = newton_direction(lambda x: {"x": convex @ x["x"]}, {"x": g}, 6)["x"]
    torch.testing.assert_close(found, torch.linalg.solve(convex, g))
    assert torch.equal(newton_direction(lambda x: {"x": -x["x"]}, {"x": g}, 3)["x"], g)
    zero = newton_direction(lambda x: x, {"x": torch.zeros_like(g)}, 3)["x"]
    assert torch.equal(zero, torch.zeros_like(g))


@pytest.mark.parametrize(("curvature", "expected"), [(1.0, 1.0), (9.0, 0.0625), (1e9, 0.0)])
def test_a_step_is_as_long_as_the_loss_falls(curvature: float, expected: float) -> None:
    """f(x) = curvature / 2 x^2 from x = 1 against its gradient falls for t < 2 / curvature."""
    at, step = {"x": torch.ones((), dtype=F64)}, {"x": torch.tensor(curvature, dtype=F64)}
    objective = lambda params: curvature / 2 * params["x"].square()  # noqa: E731
    assert step_length(objective, at, step, step["x"].square()) == expected


def test_a_rate_that_would_have_no_effect_is_refused() -> None:
    assert HessianFreeIMAML(inner_lr=0.1).inner_lr == IMAML().inner_lr
    with pytest.raises(ValueError, match=r"inner_lr has no effect here \(got 0\.2\)"):
        HessianFreeIMAML(inner_lr=0.2)
