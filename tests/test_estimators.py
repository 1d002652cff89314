"""Estimators of the outer gradient: finite differences, each other, loops, diverging runs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.executors import executor, trace
from metalearn.inner.adapt import adapt
from metalearn.inner.method import broadcast_task_state
from metalearn.inner.rules import momentum
from metalearn.inner.stepwise import stepwise
from metalearn.learned_optimizers import (
    ES,
    LSTM,
    NRES,
    PES,
    TBPTT,
    Constant,
    LearnedMomentum,
    LearnedSGD,
    LearnOptimizer,
    LogUniform,
)
from metalearn.learned_optimizers.horizons import round_up_to_windows, staggered_length
from metalearn.models import MLP, Own
from metalearn.rng import fold_in
from metalearn.storage import checkpoint
from metalearn.tasks import Digits, Quadratics
from metalearn.tree import leaves, named_leaves, tree_map, vmap
from metalearn.types import Batch, Method

F64 = torch.float64
KEY = fold_in(3, "estimators")
PAIRS = 2**16
HORIZON, WINDOW = 8, 2
SOURCE = Quadratics(dims=3, start=0.0).build(dtype=F64)


def method(source: Any = SOURCE, model: Any = None, **options: Any) -> Method:
    learner = (model or Own()).build(source.spec)
    return LearnOptimizer(**{"rule": LearnedSGD(lr=0.1), **options}).build(learner, source.spec)


def after(built: Method, step: Any, count: int = 3, tasks: int = 4, source: Any = SOURCE) -> Any:
    """State and metrics after so many outer steps."""
    state, metrics = broadcast_task_state(built.init(fold_in(0, "init")), tasks), {}
    for number in range(count):
        state, metrics = step(state, source.sample(fold_in(KEY, number), tasks))
    return state, metrics


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(named_leaves(a), named_leaves(b), rtol=1e-9, atol=1e-12)


# bias


def full_loss(log_lr: float, x: Tensor, y: Tensor) -> float:
    """Sum over windows of the mean loss after each step: plain descent on |Wp - y|^2 by hand."""
    point, losses = torch.zeros(3, dtype=F64), []
    for _ in range(HORIZON):
        residual = x @ point - y
        point = point - 0.1 * torch.tensor(log_lr, dtype=F64).exp() * 2 / 3 * x.T @ residual
        losses.append(float((x @ point - y).square().mean()))
    return sum(losses) / WINDOW


def errors_off(estimator: Any) -> float:
    """|sum over windows of the estimate - finite difference| in standard errors, 2^16 pairs."""
    built = method(estimator=estimator, unroll=WINDOW, horizon=Constant(steps=HORIZON))
    one = SOURCE.sample(KEY, 1)
    x, y = one.support.x[0], one.support.y[0, :, 0]
    assert built.lanes is not None and built.task_grad is not None
    lanes, meta = built.lanes(KEY, PAIRS), built.init(KEY).meta
    total = torch.zeros(PAIRS, dtype=F64)
    for window in range(HORIZON // WINDOW):
        # the same function for all, other noise for each
        keys = fold_in(KEY, window, torch.arange(PAIRS))
        episodes = one._replace(
            support=tree_map(lambda part: part.expand(PAIRS, *part.shape[1:]), one.support),
            query=tree_map(lambda part: part.expand(PAIRS, *part.shape[1:]), one.query),
            info={"key": keys, "step": torch.full((PAIRS,), float(window), dtype=F64)},
        )
        grads, _, lanes = vmap(built.task_grad, in_dims=(None, 0, 0))(meta, episodes, lanes)
        total = total + grads["log_lr"]
    step = 1e-5
    exact = (full_loss(step, x, y) - full_loss(-step, x, y)) / (2 * step)
    assert abs(exact) > 0.01
    return float((total.mean() - exact).abs() / (total.std() / PAIRS**0.5))


@pytest.mark.parametrize("estimator", [PES(sigma=0.01), NRES(sigma=0.01)])
def test_windows_add_up_to_the_gradient_of_the_whole_run(estimator: Any) -> None:
    assert errors_off(estimator) < 4


def test_the_bias_of_truncated_strategies_is_seen() -> None:
    """The same check fails where windows know nothing of those before them."""
    assert errors_off(ES(sigma=0.01)) > 40


def test_back_propagation_through_a_whole_run_is_the_finite_difference() -> None:
    built = method(unroll=HORIZON, horizon=Constant(steps=HORIZON), first_order=False)
    one = SOURCE.sample(KEY, 1)
    assert built.task_grad is not None
    episode = one._replace(
        support=Batch(one.support.x[0], one.support.y[0]),
        query=Batch(one.query.x[0], one.query.y[0]),
        info={name: value[0] for name, value in one.info.items()},
    )
    grads, metrics = built.task_grad(built.init(KEY).meta, episode)
    x, y = one.support.x[0], one.support.y[0, :, 0]
    exact = (full_loss(1e-5, x, y) - full_loss(-1e-5, x, y)) / 2e-5 * WINDOW / HORIZON
    assert float(grads["log_lr"]) == pytest.approx(exact, rel=1e-6)
    assert float(metrics["outer_loss"]) == pytest.approx(full_loss(0.0, x, y) * WINDOW / HORIZON)


def test_one_window_a_run_makes_persistent_strategies_full_ones() -> None:
    options = {
        "unroll": HORIZON,
        "horizon": Constant(steps=HORIZON),
        "rule": LearnedMomentum(lr=0.05),
    }
    built = [method(estimator=kind(sigma=0.02), **options) for kind in (PES, ES)]
    (one, _), (two, _) = (after(each, each.step) for each in built)
    close((one.meta, one.opt), (two.meta, two.opt))
    assert all(value != 0 for value in leaves(one.meta))


# loops and lanes

LONG = {"unroll": 2, "horizon": LogUniform(low=2, high=8), "stagger": True}
ESTIMATORS = [TBPTT(), ES(), PES(), NRES()]
each_estimator = pytest.mark.parametrize(
    "estimator", ESTIMATORS, ids=[one.name for one in ESTIMATORS]
)


@each_estimator
def test_all_lanes_at_once_equal_one_after_another(estimator: Any) -> None:
    built = method(estimator=estimator, **LONG)
    close(after(built, built.step), after(built, executor.make_step(built, "loop")))


@each_estimator
def test_lanes_come_back_from_a_checkpoint_bit_for_bit(estimator: Any, tmp_path: Path) -> None:
    built = method(estimator=estimator, **LONG)
    state, _ = after(built, built.step, 2)
    checkpoint.save(tmp_path / "step-000000002.pt", state)
    again = checkpoint.load(tmp_path / "step-000000002.pt", built.init(fold_in(1, "other")))
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(again), strict=True))


def test_lanes_end_at_different_times_and_take_the_fresh_task() -> None:
    built = method(unroll=2, horizon=Constant(steps=8), stagger=True)
    state, ends = broadcast_task_state(built.init(KEY), 16), []
    for number in range(5):
        episodes = SOURCE.sample(fold_in(KEY, number), 16)
        before = state.lanes
        state, _ = built.step(state, episodes)  # type: ignore[misc]
        ended = before.step >= before.problem.horizon  # type: ignore[union-attr]
        ends.append(int(ended.sum()))
        fresh = (state.lanes.problem.key == episodes.info["key"]).to(F64)  # type: ignore[union-attr]
        assert torch.equal(fresh, ended.to(F64))
    assert ends[0] == 16 and min(ends[1:]) >= 1 and max(ends[1:]) < 16 and sum(ends[1:5]) == 16


def test_lengths_are_whole_windows_between_their_ends() -> None:
    keys = fold_in(KEY, torch.arange(2000))
    drawn = round_up_to_windows(
        vmap(lambda key: LogUniform(low=10, high=1000).draw(key, F64))(keys), 10
    )
    assert (
        drawn.min() == 20 and drawn.max() > 900 and drawn.max() <= 1000 and (drawn % 10 == 0).all()
    )
    assert 80 < drawn.median() < 125  # the geometric mean of the ends
    assert round_up_to_windows(torch.tensor(100.0), 20) == 100
    assert round_up_to_windows(torch.tensor(101.0), 20) == 120
    parts = vmap(lambda key: staggered_length(torch.tensor(40.0), key, 10))(keys)
    assert set(parts.tolist()) == {10.0, 20.0, 30.0, 40.0}


@pytest.mark.parametrize(
    "outer", [{}, {"outer_on": "query", "batch": 4, "rescale": 3.0}, {"estimator": PES()}]
)
@pytest.mark.parametrize("first_order", [True, False])
def test_one_step_for_all_equals_the_unrolled_loop(
    outer: dict[str, Any], first_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compiled_steps`, traced without the C++ compiler: a network, minibatches, LSTM memories."""
    monkeypatch.setattr(trace, "compile_flat", trace.interpret_unchanged)
    source = Digits(ways=2, shots=3, queries=1).build(dtype=F64)
    built = method(
        source,
        MLP(sizes=(3,)),
        rule=LSTM(hidden=3),
        unroll=3,
        horizon=Constant(steps=6),
        first_order=first_order,
        **outer,
    )
    steps = executor.make_step(built, "compiled_steps")
    close(after(built, built.step, 3, 3, source), after(built, steps, 3, 3, source))


def test_the_gradient_of_a_mean_over_tasks_goes_through_one_step_for_all() -> None:
    """vmap inside a gradient: theta's gradient is a sum over tasks, and inner points contribute."""
    x = torch.stack([SOURCE.sample(KEY, 1, start).support.x[0] for start in range(4)])

    def loss(params: Any, batch: Batch, step: int) -> Tensor:
        return (batch.x @ params["p"] - batch.y).square().mean()

    rule = momentum(0.1, 0.5)

    def mean(start: Tensor) -> Tensor:
        def one(x: Tensor) -> Tensor:
            path = adapt(
                loss, {"p": start}, rule, Batch(x, x[0]), 4, keep=(0, 2, 4), step_invariant=True
            )
            return (
                path.points[1]["p"].square().sum() + path.points[2]["p"].sum() + path.losses.sum()
            )

        return vmap(one)(x).mean()

    start = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    expected = torch.func.grad_and_value(mean)(start)
    with stepwise(lambda function: function):
        close(torch.func.grad_and_value(mean)(start), expected)


# trouble and limits


def alive() -> int:
    """Bytes of all tensors there are; those that a tracer has left have none."""

    def size(tensor: Tensor) -> int:
        try:
            return tensor.nbytes
        except RuntimeError:  # symbolic sizes
            return 0

    gc.collect()
    return sum(size(thing) for thing in gc.get_objects() if issubclass(type(thing), Tensor))


@pytest.mark.parametrize(("estimator", "windows"), [(ES(), 20), (PES(), 100)])
def test_ten_thousand_inner_steps_take_no_more_memory_than_a_window(
    estimator: Any, windows: int
) -> None:
    """Two thousand of ES, which keeps of an inner problem a half of what PES keeps."""
    built = method(estimator=estimator, unroll=100, horizon=Constant(steps=100 * windows))
    state, sizes, step = built.init(KEY), [], executor.make_step(built, "loop")
    for number in range(windows):
        state, metrics = step(state, SOURCE.sample(fold_in(KEY, number), 1))
        if number in (4, windows - 1):
            sizes.append(alive())
    assert (
        state.lanes.step == 100 * windows
        and state.lanes.problem.key == SOURCE.sample(fold_in(KEY, 0), 1).info["key"]
    )  # type: ignore[union-attr]
    assert sizes[0] == sizes[1] and metrics["outer_loss"].isfinite()


@each_estimator
def test_a_diverging_run_is_a_bounded_loss_that_is_counted(estimator: Any) -> None:
    source = Quadratics(dims=3, start=0.1).build()
    built = method(
        source,
        estimator=estimator,
        rule=LearnedSGD(lr=1e4),
        unroll=10,
        horizon=Constant(steps=40),
        bound=7.0,
    )
    state = broadcast_task_state(built.init(KEY), 4)
    for number in range(4):
        episodes = source.sample(fold_in(KEY, number), 4)
        state, metrics = built.step(state, episodes)  # type: ignore[misc]
        assert all(value.isfinite() for value in [*leaves(state.meta), *metrics.values()])
        first = (
            state.lanes.kept if isinstance(estimator, TBPTT | ES) else state.lanes.kept.plus
        ).first  # type: ignore[union-attr]
        assert metrics["diverged"] > 0.8
        assert 0 < metrics["outer_loss"] <= 7.0 * first.mean() * (1 + 1e-6)
    assert metrics["diverged"] == 1


def test_a_gradient_that_is_not_finite_is_left_out_and_counted() -> None:
    """float32 overflows in a window of bounded loss: 0 times infinity in the backward pass."""
    source = Quadratics(dims=3, start=0.1).build()
    built = method(
        source, rule=LearnedSGD(lr=1e25), unroll=10, horizon=Constant(steps=10), first_order=False
    )
    state, metrics = after(built, built.step, 2, source=source)
    assert (
        metrics["grad_not_finite"] == 1 and metrics["grad_norm"] == 0 and state.meta["log_lr"] == 0
    )


def test_clipping_shortens_the_gradient_of_every_task() -> None:
    loose, tight = (method(unroll=4, horizon=Constant(steps=4), clip=clip) for clip in (None, 1e-3))
    episodes = SOURCE.sample(KEY, 5)
    grads = [vmap(m.task_grad, (None, 0))(m.init(KEY).meta, episodes) for m in (loose, tight)]
    free, cut = (found["log_lr"].abs() for found, _ in grads)
    assert (free > 1e-3).all() and torch.allclose(cut, torch.full_like(cut, 1e-3))
    close(grads[0][1], grads[1][1])  # the reported norm is that before clipping


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="unroll must be <= 100, the horizon"):
        LearnOptimizer(unroll=200)
    with pytest.raises(ValueError, match="low must be <= high"):
        LogUniform(low=9, high=3)
    with pytest.raises(ValueError, match="must be null: a function has no examples"):
        method(batch=2)
    with pytest.raises(ValueError, match="is query, but these tasks have no queries"):
        source = Digits(queries=0).build()
        method(source, MLP(sizes=()), outer_on="query")
