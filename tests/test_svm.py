"""The support vector machine of MetaOptNet and of the transfer baseline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.nn import functional as F

from metalearn.algorithms import MetaOptSVM
from metalearn.inner.svm import coefficients, to_simplex
from metalearn.models import MLP
from metalearn.rng import fold_in, normal
from metalearn.testing.clusters import Clusters
from metalearn.transfer import LinearSVM
from metalearn.tree import take

F64 = torch.float64
WAYS, SHOTS, SIZE = 3, 4, 6


def examples(ridge: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B, D], labels [B] and a kernel matrix; the classes overlap."""
    y = torch.arange(WAYS * SHOTS) % WAYS
    z = normal(fold_in(seed, "z"), (len(y), SIZE), F64) + 0.7 * F.one_hot(y, SIZE)
    return z, y, z @ z.T + ridge * torch.eye(len(y), dtype=F64)


@pytest.mark.parametrize("strength", [0.03, 1.0, 100.0])
def test_the_machine_is_scikit_learns(strength: float) -> None:
    z, y, kernel = examples(1e-6)
    bound = torch.full((len(y),), strength, dtype=F64)
    found = z.T @ coefficients(kernel, F.one_hot(y, WAYS).double(), bound, 3000)
    other = LinearSVC(
        C=strength, multi_class="crammer_singer", fit_intercept=False, tol=1e-10, max_iter=1_000_000
    ).fit(z.numpy(), y.numpy())
    np.testing.assert_allclose(found.T.numpy(), other.coef_, atol=1e-4)


def test_a_solution_satisfies_the_conditions_of_an_optimum() -> None:
    """Bounds and sums; products are equal where coefficients can move, and not larger elsewhere."""
    _, y, kernel = examples(1.0)
    labels, bound = F.one_hot(y, WAYS).double(), torch.full((len(y),), 0.1, dtype=F64)
    alpha = coefficients(kernel, labels, bound, 200)
    slack = 0.1 * labels - alpha
    assert slack.min() > -1e-9 and alpha.sum(-1).abs().max() < 1e-12
    rise = labels - kernel @ alpha  # of the objective in -alpha
    highest = rise.amax(-1, keepdim=True)
    lowest = rise.amin(-1, keepdim=True)
    assert (highest - lowest)[(slack > 1e-6).sum(-1) == WAYS].abs().max() < 1e-9
    assert (rise - lowest)[slack > 1e-6].abs().max() < 1e-9


@pytest.mark.parametrize("penalty", [0.02, 0.1, 10.0])
def test_its_derivative_is_that_of_finite_differences(penalty: float) -> None:
    z, y, _ = examples(1.0)
    bound = torch.full((len(y),), penalty, dtype=F64)
    by = normal(fold_in(1, "by"), (len(y), WAYS), F64)

    def value(z: Tensor) -> Tensor:
        kernel = z @ z.T + torch.eye(len(y), dtype=F64)
        return (by * coefficients(kernel, F.one_hot(y, WAYS).double(), bound, 400)).sum()

    grad, step = torch.func.grad(value)(z), 1e-5
    for place in range(3):
        way = normal(fold_in(2, place), z.shape, F64)
        slope = (value(z + step * way) - value(z - step * way)) / (2 * step)
        torch.testing.assert_close((grad * way).sum(), slope, rtol=1e-5, atol=1e-8)


def test_rows_are_projected_to_the_simplex() -> None:
    x, total = normal(fold_in(3), (40, 5), F64), torch.full((40, 1), 0.7, dtype=F64)
    found = to_simplex(x, total)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(-1, keepdim=True), total)
    others = torch.distributions.Dirichlet(torch.ones(5, dtype=F64)).sample((40, 200)) * 0.7
    nearest = (others - x.unsqueeze(1)).norm(dim=-1).amin(-1)
    assert ((found - x).norm(dim=-1) <= nearest + 1e-12).all()


def test_padding_changes_no_machine() -> None:
    _, y, kernel = examples(1.0)
    labels, bound = F.one_hot(y, WAYS).double(), torch.full((len(y),), 0.1, dtype=F64)
    bound[-2:] = 0
    found = coefficients(kernel, labels, bound, 300)
    assert found[-2:].abs().max() == 0
    fewer = coefficients(kernel[:-2, :-2], labels[:-2], bound[:-2], 300)
    torch.testing.assert_close(found[:-2], fewer, rtol=1e-9, atol=1e-12)


def test_rows_of_padding_change_no_step_of_the_descent() -> None:
    """Few iterations, after which the size of a step shows, beside padding of large features."""
    z, y, _ = examples(1.0)
    labels, bound = F.one_hot(y, WAYS).double(), torch.full((len(y),), 0.1, dtype=F64)
    bound[-2:] = 0
    z[-2:] *= 100
    kernel = z @ z.T + torch.eye(len(y), dtype=F64)
    found = coefficients(kernel, labels, bound, 3)
    fewer = coefficients(kernel[:-2, :-2], labels[:-2], bound[:-2], 3)
    torch.testing.assert_close(found[:-2], fewer, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 15, 100])
def test_a_solution_never_leaves_its_bounds(iterations: int) -> None:
    """25 rows of features of norm 10, for which so many iterations are too few."""
    y = torch.arange(25) % 5
    z = 10 * F.normalize(normal(fold_in(4, "z"), (25, 16), F64) + F.one_hot(y, 16), dim=-1)
    z.requires_grad_()
    labels, bound = F.one_hot(y, 5).double(), torch.full((25,), 0.1, dtype=F64)
    alpha = coefficients(z @ z.T + torch.eye(25, dtype=F64), labels, bound, iterations)
    assert alpha.sum(-1).abs().max() < 1e-9
    assert (0.1 * labels - alpha).min() > -1e-4 * 0.1 - 1e-12
    (z.T @ alpha).square().sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()


def test_metaopt_svm_and_linear_svm_answer_by_these_machines() -> None:
    source = Clusters("train", 24)
    learner = MLP(sizes=(8,), activation="tanh").build(source.spec)
    method = MetaOptSVM(penalty=0.3).build(learner, source.spec)
    meta, episode = method.init(fold_in(0)).meta, take(source.sample(fold_in(1), 1), 0)
    assert method.adapt is not None and method.predict is not None
    item = method.adapt(meta, episode.support, 0, fold_in(2))
    z, y = learner.features(meta["params"], episode.support.x), episode.support.y
    kernel = z @ z.T + torch.eye(len(z), dtype=F64)
    bound = torch.full((len(z),), 0.3, dtype=F64)
    expected = z.T @ coefficients(kernel, F.one_hot(y, 3).double(), bound, 100)
    torch.testing.assert_close(item, expected)
    answers = method.predict(meta, item, episode.support, episode.query.x)
    asked = learner.features(meta["params"], episode.query.x)
    torch.testing.assert_close(answers, meta["log_scale"].exp() * asked @ expected)
    plain = LinearSVM().build(learner, source.spec)
    meta = plain.init(fold_in(0)).meta
    assert plain.adapt is not None
    w = plain.adapt(meta, episode.support, 0, fold_in(2))
    z = F.normalize(learner.features(meta["params"], episode.support.x), dim=-1)
    other = LinearSVC(
        C=1.0, multi_class="crammer_singer", fit_intercept=False, tol=1e-10, max_iter=1_000_000
    ).fit(z.numpy(), y.numpy())
    np.testing.assert_allclose(w.T.numpy(), other.coef_, atol=1e-4)
