"""Triton kernels in Triton's interpreter: the numbers of torch's operators, on the CPU.

Run by test_triton.py in a process of its own, as TRITON_INTERPRET is read when they are defined."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import losses
from metalearn.executors.passes import fusion
from metalearn.executors.simplify import shorten_for_capture
from metalearn.executors.trace import trace
from metalearn.inner.rules import adam
from metalearn.kernels import (
    choice,
    draw_in_torch,
    draw_in_triton,
    gather_conv,
    gather_in_triton,
    norm_in_torch,
    norm_in_triton,
)
from metalearn.kernels.gather_conv import images, planes
from metalearn.rng import fold_in, normal

if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
    text = "needs Triton and TRITON_INTERPRET=1 (test_triton.py sets it)"
    pytest.skip(text, allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # of Triton's interpreter
F64 = torch.float64
NORMS = ("norm_relu_pool", "norm_relu_pool_grad", "norm_relu_pool_second")
TOLERANCE = {F64: 1e-13, torch.float32: 2e-6}
# groups, images, height, width, filters, window: odd borders, one image, more places than a tile
SHAPES = [
    (2, 3, 5, 4, 5, 1),
    (2, 3, 6, 4, 5, 2),
    (3, 2, 5, 7, 3, 2),
    (1, 1, 2, 2, 1, 2),
    (1, 5, 16, 17, 2, 2),
    (1, 5, 16, 17, 2, 1),
]


def draw(name: str, *shape: int) -> Tensor:
    return normal(fold_in(0, name), shape, F64)


def norm_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """The arguments of each operator; gain and bias are slices of longer vectors."""
    groups, batch, height, width, filters, window = shape
    extents = batch, height, width
    y = images(planes(2 + 3 * draw("y", groups, *extents, filters)).contiguous(), *extents)
    y = y.to(dtype)
    gain, bias, s, t = (draw(n, groups, 2 * filters)[:, filters:].to(dtype) for n in "abst")
    p, mean, scale = norm_in_torch.norm_relu_pool(y, gain, bias, window)
    g, v = draw("g", *p.shape).to(dtype), draw("v", *y.shape).to(dtype)
    grad = g, y, gain, bias, mean, scale, p, window
    _, dgain, dbias = norm_in_torch.norm_relu_pool_grad(*grad)
    second = v, s, t, g, y, gain, bias, mean, scale, dgain, dbias, p, window
    return dict(zip(NORMS, ((y, gain, bias, window), grad, second), strict=True))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_normalisation_and_both_derivatives_are_those_of_torchs_operators(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    for name, given in norm_inputs(shape, dtype).items():
        expected = getattr(norm_in_torch, name)(*given)
        found = getattr(norm_in_triton, name)(*given)
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert one.shape == other.shape and one.dtype == other.dtype
            gap = float((one - other).abs().max()) / max(float(other.abs().max()), 1.0)
            assert gap <= TOLERANCE[dtype], (name, place, gap)


def test_float32_is_as_near_to_float64_where_the_mean_is_large() -> None:
    exact, errors = norm_inputs((1, 5, 14, 14, 3, 1), F64)["norm_relu_pool"], []
    y, gain, bias, window = exact[0] + 50, *exact[1:]
    given = tuple(value.float() for value in (y, gain, bias))
    right = norm_in_torch.norm_relu_pool(*(value.double() for value in given), window)[0]
    for module in (norm_in_triton, norm_in_torch):
        errors.append(float((module.norm_relu_pool(*given, window)[0] - right).norm()))
    assert errors[0] <= 1.5 * errors[1]


def test_of_equal_places_the_first_is_chosen_and_what_is_not_finite_stays() -> None:
    y = torch.tensor([5.0, 5.0, 5.0, -9.0], dtype=F64).view(1, 1, 2, 2, 1)
    gain, bias = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)
    p, mean, scale = norm_in_triton.norm_relu_pool(y, gain, bias, 2)
    given = torch.ones_like(p), y, gain, bias, mean, scale, p, 2
    found, expected = (m.norm_relu_pool_grad(*given)[0] for m in (norm_in_triton, norm_in_torch))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    p, *_ = norm_in_triton.norm_relu_pool(y / 0, gain, bias, 2)
    assert bool(p.isnan().all())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2), (3, 3), (4, 2)])
def test_convolutions_are_those_of_torchs_operators(size: int, stride: int, shared: bool) -> None:
    x = draw("x", 3, 2, 7, 6, 4)
    w = draw("w", 1 if shared else 3, size, size, 4, 5)
    g = draw("g", *gather_conv.conv(x, w, stride).shape)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("patches", (x, size, stride)),
        ("conv", (x, w, stride)),
        ("conv_input", (g, w, stride, 7, 6)),
        ("conv_weight", (x, g, stride, size)),
    ]
    for name, given in calls:
        found = getattr(gather_in_triton, name)(*given)
        expected = getattr(gather_conv, name)(*given)
        assert found.stride() == expected.stride()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ways, shots, queries, classes, examples of every class or 0 where they differ, rows of a turn
EPISODES = [
    (5, 1, 1, 1028, 20, 7777),
    (3, 2, 0, 40, 7, 100),
    (2, 1, 1, 5, 0, 0),
    (4, 2, 3, 9, 0, 9),
]


@pytest.mark.parametrize("sizes", EPISODES)
def test_draws_are_the_same_bits(sizes: tuple[int, ...]) -> None:
    of = draw_in_torch.Sizes(*sizes)
    counts = torch.tensor([of.same or 40 + 7 * place for place in range(of.classes)])
    starts = counts.cumsum(0) - counts
    given = fold_in(5, "key"), counts, starts, 3, 2, *of
    assert draw_in_triton.fits(of)
    found, expected = (m.episode_rows(*given) for m in (draw_in_triton, draw_in_torch))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) and one.is_contiguous() and other.is_contiguous()


def test_images_and_keys_are_the_same_bits() -> None:
    key, number = fold_in(3), torch.tensor(12)
    assert torch.equal(draw_in_triton.fold_in(key, number), fold_in(key, number))
    pool, rows = torch.arange(250).to(torch.uint8).view(5, 50), torch.tensor([4, 0, 4])
    for dtype in (torch.float32, F64):
        scale = torch.tensor(1 / 255, dtype=dtype)
        found, expected = (
            m.scaled_rows(pool, rows, scale) for m in (draw_in_triton, draw_in_torch)
        )
        assert found.dtype == dtype and torch.equal(found, expected)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated kernels for arrays on the CPU, without a choice."""
    monkeypatch.setenv("METALEARN_TRITON", "1")
    monkeypatch.setattr(fusion, "DEVICE", "cpu")
    for module in (fusion, choice):
        monkeypatch.setattr(module, "available", lambda: True)


def adam_step(g: Tensor, first: Tensor, second: Tensor, count: Tensor) -> Any:
    state = {"count": count, "first": {"all": first}, "second": {"all": second.square()}}
    return adam(0.1, schedule=lambda count: 0.9**count).update({"all": g}, state, None, count)


def classification(logits: Tensor, y: Tensor, weight: Tensor) -> Any:
    """Loss, score, and first and second derivatives: [T, B, C], [T, B], [T, B, C]."""

    def slope(z: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return (torch.func.grad(losses.cross_entropy)(z, y) * weight).sum()

    first, second = torch.func.grad(losses.cross_entropy), torch.func.grad(slope)
    found = losses.cross_entropy(logits, y, batch_dims=1), losses.accuracy(logits, y, batch_dims=1)
    return *found, torch.vmap(first)(logits, y), torch.vmap(second)(logits, y, weight)


def read_on_the_way(x: Tensor, w: Tensor, unused: Tensor) -> Any:
    """A product stands between two operations, and another depends on it."""
    one = x.exp() * 2
    product = one @ w
    return (one + 1).sqrt() / x, product, product + one


CASES: dict[str, tuple[Any, tuple[Tensor, ...], int]] = {
    "adam": (
        adam_step,
        (draw("g", 3000), draw("m", 3000), draw("v", 3000), draw("n").abs() + 1),
        1,
    ),
    "classes": (
        classification,
        (draw("z", 3, 4, 5), torch.arange(12).view(3, 4) % 5, draw("w", 3, 4, 5)),
        3,
    ),
    "rows": (
        lambda x, row, w: (x * 0.5 + row).exp(),
        (draw("x", 4, 2000), draw("r", 2000), draw("z")),
        1,
    ),
    "order": (read_on_the_way, (draw("x", 4, 4).abs() + 1, draw("y", 4, 4), draw("z")), 1),
}


# operations that fit into no group: one whose neighbours have another shape, or come too late
ALONE = {
    "classes": {torch.ops.aten.neg.default},
    "order": {torch.ops.aten.add.Tensor},
}


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_groups_of_operations_are_one_kernel_each(
    name: str, dtype: torch.dtype, on_cpu: None
) -> None:
    function, inputs, kernels = CASES[name]
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    traced = trace(function, *inputs)
    graph = shorten_for_capture(traced)
    graph.graph.lint()
    calls = [node.op for node in graph.graph.nodes]
    assert 1 <= calls.count("call_module") <= kernels
    left = {node.target for node in graph.graph.nodes} & set(fusion.ELEMENTWISE)
    assert left <= ALONE.get(name, set())
    found = traced.unflatten(graph(*inputs, *traced.constants))
    close = {F64: 1e-12, torch.float32: 2e-5}[dtype]
    torch.testing.assert_close(found, function(*inputs), rtol=close, atol=close)


def test_a_kernel_on_rows_takes_infinite_numbers_as_torch_does(on_cpu: None) -> None:
    z, y = draw("z", 2, 3, 6), torch.zeros(2, 3, dtype=torch.int64)
    z[0, 0, 1], z[0, 1, 2], z[1, 2, 0] = float("-inf"), float("inf"), float("nan")
    traced = trace(losses.accuracy, z[0], y[0])
    graph = shorten_for_capture(traced)
    for logits, labels in zip(z, y, strict=True):
        found = traced.unflatten(graph(logits, labels, *traced.constants))
        assert torch.equal(found, losses.accuracy(logits, labels))


def test_derivatives_are_added_to_what_is_there() -> None:
    for shape in SHAPES:
        given = norm_inputs(shape, F64)["norm_relu_pool_grad"]
        sums = draw("y", *given[1].shape), draw("gain", *given[2].shape)
        for more in (sums, (sums[0], None), (None, sums[1])):
            found = norm_in_triton.norm_relu_pool_grad(*given, *more)
            expected = list(norm_in_torch.norm_relu_pool_grad(*given))
            expected = [a if b is None else a + b for a, b in zip(expected, (*more, None))]
            torch.testing.assert_close(list(found), expected, rtol=1e-12, atol=1e-12)
            found = norm_in_torch.norm_relu_pool_grad(*given, *more)
            torch.testing.assert_close(list(found), expected, rtol=1e-12, atol=1e-12)
    g, w, before = draw("g", 3, 2, 4, 3, 5), draw("w", 3, 3, 3, 4, 5), draw("x", 3, 2, 7, 6, 4)
    expected_x = gather_conv.conv_input(g, w, 2, 7, 6) + before
    for module in (gather_in_triton, gather_conv):
        found_x = module.conv_input(g, w, 2, 7, 6, before)
        torch.testing.assert_close(found_x, expected_x, rtol=1e-12, atol=1e-12)
