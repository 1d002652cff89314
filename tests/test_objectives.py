"""Objectives as tasks: formulas, batches against loops, different sizes, other units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.learned_optimizers.inner_run import Problem, optimizee
from metalearn.losses import criterion
from metalearn.models import MLP, Conv4, Own, SizedMLP
from metalearn.rng import fold_in
from metalearn.tasks import Digits, Landscapes, Logistic, Omniglot, Quadratics, Sinusoid
from metalearn.tasks.landscapes import FUNCTIONS, standard_start
from metalearn.tree import leaves, take, vmap
from metalearn.types import Episode, Learner

KEY = fold_in(7, "objectives")
F64 = torch.float64
KINDS: dict[str, tuple[Any, Any]] = {
    "quadratics": (Quadratics(dims=5), Own()),
    "sizes": (Quadratics(dims=6, dims_min=2, draws="normal"), Own()),
    "conditioned": (Quadratics(dims=4, draws="conditioned", condition=100.0), Own()),
    "rosenbrock": (Landscapes(rotated=True, scales=3.0), Own()),
    "powell": (Landscapes(function="powell"), Own()),
    "trigonometric": (Landscapes(function="trigonometric"), Own()),
    "broyden": (Landscapes(function="broyden", dims=5), Own()),
    "logistic": (Logistic(shots=8, queries=4, dims=3, condition=10.0), MLP(sizes=())),
    "mlp on digits": (Digits(shots=2, queries=1), MLP(sizes=(5,))),
    "networks of all sizes": (
        Digits(shots=2, queries=1),
        SizedMLP(sizes=(9, 6), least=2, activation="tanh"),
    ),
    "conv on digits": (Digits(ways=3, shots=2, queries=1), Conv4(filters=2, downsample="stride")),
    "sinusoid": (Sinusoid(shots=4), MLP(sizes=(5,))),
}


def made(name: str) -> tuple[Any, Learner]:
    task, model = KINDS[name]
    source = task.build(dtype=F64)
    return source, model.build(source.spec)


def problems(episodes: Episode) -> Problem:
    return Problem(
        episodes.support,
        episodes.query,
        episodes.info["key"],
        torch.zeros_like(episodes.info["step"]),
    )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("batch", "rescale"), [(None, 1.0), (3, 4.0)])
def test_all_tasks_at_once_equal_one_after_another(
    name: str, batch: int | None, rescale: float
) -> None:
    source, learner = made(name)
    batch = None if source.spec.objective else batch  # a function has no examples to choose from
    target = optimizee(learner, source.spec, batch, rescale)

    def values(problem: Problem) -> tuple[Tensor, Any, Tensor]:
        params = target.init(problem)
        units = target.units(params, problem)
        data = target.data(problem, torch.tensor(3.0, dtype=F64))
        grads, loss = torch.func.grad_and_value(lambda at: target.loss({**at, **units}, data))(
            params
        )
        return loss, grads, target.held_out({**params, **units}, problem)

    together = vmap(values)(problems(source.sample(KEY, 4)))
    for task in range(4):
        alone = values(take(problems(source.sample(KEY, 1, start=task)), 0))
        for one, other in zip(leaves(alone), leaves(together)):
            torch.testing.assert_close(one, other[task], rtol=1e-9, atol=1e-11)


def test_a_quadratic_is_a_sum_of_squares_of_uniform_numbers() -> None:
    source = Quadratics().build(dtype=F64)
    episodes = source.sample(KEY, 300)
    weights, y = episodes.support.x / 10**0.5, episodes.support.y.squeeze(-1) / 10**0.5
    for drawn in (weights, y):
        assert drawn.min() >= 0 and drawn.max() < 1 + 1e-9 and (drawn.mean() - 0.5).abs() < 0.02
        assert (drawn.var() - 1 / 12).abs() < 0.005
    learner = Own().build(source.spec)
    point = learner.init(KEY)
    found = criterion(source.spec)(
        learner.apply(point, episodes.support.x[0]), episodes.support.y[0]
    )
    torch.testing.assert_close(found, (weights[0] @ point["point"] - y[0]).square().sum())
    assert 0.005 < learner.init(fold_in(KEY, "x"))["point"].std() < 0.02  # normal of deviation 0.01


def test_conditioned_quadratics_have_their_condition() -> None:
    weights = (
        Quadratics(dims=6, draws="conditioned", condition=500.0)
        .build(dtype=F64)
        .sample(KEY, 3)
        .support.x
    )
    values = torch.linalg.svdvals(weights)
    torch.testing.assert_close(
        (values[:, 0] / values[:, -1]).square(), torch.full((3,), 500.0, dtype=F64)
    )


def test_directions_that_a_smaller_task_lacks_have_no_gradient() -> None:
    source, learner = made("sizes")
    episodes = source.sample(KEY, 40)
    dims = episodes.info["dims"]
    assert dims.min() == 2 and dims.max() == 6
    for task in range(40):
        x, y = episodes.support.x[task], episodes.support.y[task]
        at = {"point": torch.full((6,), 0.3, dtype=F64)}
        grads = torch.func.grad(lambda p, x=x, y=y: criterion(source.spec)(learner.apply(p, x), y))(
            at
        )["point"]
        size = int(dims[task])
        assert (grads[size:] == 0).all() and (grads[:size] != 0).all()


def test_networks_of_all_sizes_are_what_their_masks_leave() -> None:
    """Two layers against the network cut to its widths; masked units have no gradient."""
    source, learner = made("networks of all sizes")
    keys = fold_in(KEY, torch.arange(300))
    masks = vmap(learner.init)(keys)
    seen = [masks[f"stats.mask.{place}"].sum(-1).unique().tolist() for place in range(2)]
    assert seen == [list(range(2, 10)), list(range(2, 7))]
    episodes = source.sample(KEY, 8)
    for task in range(8):
        params = learner.init(fold_in(KEY, task))
        first, second = (int(params[f"stats.mask.{place}"].sum()) for place in range(2))
        x, y = episodes.support.x[task], episodes.support.y[task]
        z = torch.tanh(
            x.flatten(1) @ params["layers.0.weight"][:first].T + params["layers.0.bias"][:first]
        )
        z = torch.tanh(
            z @ params["layers.1.weight"][:second, :first].T + params["layers.1.bias"][:second]
        )
        expected = z @ params["head.weight"][:, :second].T + params["head.bias"]
        torch.testing.assert_close(learner.apply(params, x), expected)
        grads = torch.func.grad(lambda p, x=x, y=y: criterion(source.spec)(learner.apply(p, x), y))(
            params
        )
        assert (grads["layers.1.weight"][second:] == 0).all()
        assert (grads["layers.1.weight"][:, first:] == 0).all()
        assert (grads["stats.mask.0"] == 0).all()
        assert grads["layers.0.weight"][:first].abs().max() > 0


# f at the standard start (Moré, Garbow & Hillstrom 1981: 24.2 and 215 are printed there; the others
# by hand).
STARTS = {"rosenbrock": (4, 48.4), "powell": (4, 215.0), "broyden": (5, 16.0)}
LEAST = {"rosenbrock": 1.0, "powell": 0.0, "trigonometric": 0.0}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_landscapes_have_the_values_of_the_collection(function: str) -> None:
    source = Landscapes(function=function, dims=STARTS.get(function, (4, 0))[0], start=0.0).build(
        dtype=F64
    )
    learner, episode = Own().build(source.spec), source.sample(KEY, 1)
    x, y = episode.support.x[0], episode.support.y[0]

    def value(point: Tensor) -> float:
        return float(criterion(source.spec)(learner.apply({"point": point}, x), y))

    start = learner.init(KEY)["point"]
    assert (start == 0).all()
    if function in STARTS:
        assert value(start) == pytest.approx(STARTS[function][1])
    if function in LEAST:
        away = torch.full_like(start, LEAST[function]) - standard_start(function, len(start), F64)
        assert value(away) == pytest.approx(0, abs=1e-20)
        assert value(away + 0.1) > 1e-4


def test_logistic_labels_follow_a_direction_but_for_the_noise() -> None:
    """Least squares finds the labels of a task without noise, and fewer of a noisy one."""
    shares = []
    for noise in (0.0, 0.3):
        episodes = (
            Logistic(shots=500, queries=2, dims=4, noise=noise).build(dtype=F64).sample(KEY, 3)
        )
        for task in range(3):
            x, y = episodes.support.x[task], 2.0 * episodes.support.y[task] - 1
            fit = torch.linalg.lstsq(x, y.unsqueeze(-1).to(F64)).solution.squeeze(-1)
            shares.append(float(((x @ fit) * y > 0).to(F64).mean()))
    assert min(shares[:3]) > 0.95 and all(0.6 < share < 0.8 for share in shares[3:]), shares


def test_other_units_are_the_same_function() -> None:
    """The initial loss is that without rescaling; gradients are scaled by their tensor's factor."""
    source, learner = made("mlp on digits")
    problem = take(problems(source.sample(KEY, 1)), 0)
    plain, scaled = (optimizee(learner, source.spec, None, rescale) for rescale in (1.0, 50.0))
    zero = torch.tensor(0.0, dtype=F64)
    found = []
    for target in (plain, scaled):
        params = target.init(problem)
        units = target.units(params, problem)
        data = target.data(problem, zero)
        found.append(
            torch.func.grad_and_value(lambda at, t=target, u=units, d=data: t.loss({**at, **u}, d))(
                params
            )
        )
    (grads, loss), (stretched, same) = found
    torch.testing.assert_close(loss, same)
    ratios = [float((stretched[name] / grads[name]).nanmedian()) for name in grads]
    assert all(1 / 50 <= ratio <= 50 for ratio in ratios) and max(ratios) / min(ratios) > 1.5
    for name, ratio in zip(grads, ratios, strict=True):
        torch.testing.assert_close(stretched[name], ratio * grads[name], rtol=1e-6, atol=1e-12)


def test_minibatches_differ_from_step_to_step_and_come_again() -> None:
    source, learner = made("logistic")
    target = optimizee(learner, source.spec, 4)
    problem = take(problems(source.sample(KEY, 1)), 0)
    first, second, again = (
        target.data(problem, torch.tensor(step, dtype=F64)).x for step in (0.0, 1.0, 0.0)
    )
    assert torch.equal(first, again) and not torch.equal(first, second) and first.shape == (4, 3)


def test_real_images_are_objectives_too(data_root: Any) -> None:
    del data_root
    source = Omniglot(ways=3, shots=2, queries=1).build()
    target = optimizee(MLP(sizes=(4,)).build(source.spec), source.spec, 2)
    problem = take(problems(source.sample(KEY, 1)), 0)
    assert target.held_out(target.init(problem), problem) == pytest.approx(1.0986, abs=0.3)


def test_a_wrong_objective_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="have no parameters"):
        Own().build(Sinusoid().build().spec)
    with pytest.raises(ConfigError, match="unknown split"):
        Quadratics().build(split="later")
    with pytest.raises(ValueError, match="multiple of 4 for powell"):
        Landscapes(function="powell", dims=6)
    with pytest.raises(ValueError, match=r"dims_min must be <= dims 10 \(got 12\)"):
        Quadratics(dims_min=12)
    with pytest.raises(ConfigError, match="at most 104"):
        Digits(shots=100, queries=10).build()
