"""The convolutions and normalisations of kernels/ on a CUDA device: the numbers of the CPU's
operators, in few launches.

Run on a real card, or on an emulated one (test_cuda_emulated.py)."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from cuda_cases import MODELS, TASKS, start_of
from torch import Tensor

from metalearn.bench.problem import Problem
from metalearn.bench.workloads import WORKLOADS
from metalearn.executors.cuda_graphs import captured
from metalearn.executors.precision import gradient_error, with_precision
from metalearn.executors.simplify import shorten_for_capture
from metalearn.executors.step import build_train_step
from metalearn.executors.trace import trace
from metalearn.kernels import native
from metalearn.kernels.conv import conv2d
from metalearn.kernels.norm_relu_pool import norm_relu_pool
from metalearn.rng import fold_in, normal

pytestmark = pytest.mark.gpu
F64 = torch.float64
EXACT = {"rtol": 1e-9, "atol": 1e-9}
NODES = 469  # of the captured strided Conv4-64 step; 1,352 with torch's operators


def draw(name: str, *shape: int) -> Tensor:
    return normal(fold_in(0, name), shape, F64)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2), (3, 3)])
def test_convolutions_are_those_of_the_cpu(size: int, stride: int, shared: bool) -> None:
    native.kernel()
    ops, groups = torch.ops.metalearn, 3
    x = draw("x", groups, 2, 7, 6, 4)
    w = draw("w", 1 if shared else groups, size, size, 4, 5)
    y = ops.conv(x, w, stride)
    g = draw("g", *y.shape)
    calls: list[tuple[Any, tuple[Tensor, ...], tuple[int, ...]]] = [
        (ops.conv, (x, w), (stride,)),
        (ops.conv_input, (g, w), (stride, 7, 6)),
        (ops.conv_weight, (x, g), (stride, size)),
    ]
    for operator, tensors, numbers in calls:
        found = operator(*(tensor.cuda() for tensor in tensors), *numbers)
        torch.testing.assert_close(found.cpu(), operator(*tensors, *numbers), **EXACT)


def derivatives(function: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The value, and what mixes every first and second derivative, on the CPU."""
    inputs = tuple(value.requires_grad_() for value in inputs)
    found = [function(*inputs)]
    for _ in range(2):
        loss = sum((part * part.tanh()).sum() for part in found[-3:])
        found += torch.autograd.grad(loss, inputs, create_graph=True)
    return [value.detach().cpu() for value in found]


@pytest.mark.parametrize("stride", [1, 2])
def test_derivatives_of_a_convolution_are_those_of_the_cpu(stride: int) -> None:
    native.kernel()
    inputs = draw("x", 2, 6, 5, 3), draw("w", 4, 3, 3, 3)
    there = tuple(value.cuda() for value in inputs)
    found = derivatives(lambda x, w: conv2d(x, w, None, stride), there)
    expected = derivatives(lambda x, w: conv2d(x, w, None, stride), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize(("window", "height", "width"), [(1, 5, 4), (2, 6, 4), (2, 5, 7)])
def test_normalisations_and_derivatives_are_those_of_the_cpu(
    window: int, height: int, width: int
) -> None:
    native.kernel()
    inputs = 2 + 3 * draw("y", 3, height, width, 5), draw("gain", 5), draw("bias", 5)
    there = tuple(value.cuda() for value in inputs)
    found = derivatives(lambda *v: norm_relu_pool(*v, window), there)
    expected = derivatives(lambda *v: norm_relu_pool(*v, window), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_autocast_reaches_the_convolutions() -> None:
    """Products in bfloat16, statistics in float32."""
    source, method = MODELS["conv4-strided"].built("cuda", torch.float32)
    state, batch = start_of(method), source.sample(fold_in(1), TASKS)
    rough = with_precision(method, "bf16", False, "cuda")
    error = gradient_error(method, rough, state, batch, "bf16")
    assert error is not None and 1e-4 < error < 0.3
    x, weight = torch.ones(1, 4, 4, 1, device="cuda"), torch.ones(2, 1, 3, 3, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert conv2d(x, weight).dtype == torch.bfloat16


def test_they_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1, device="cuda")
    assert native.usable(x) and not native.usable(x.long())
    monkeypatch.setenv("METALEARN_CUDA_KERNELS", "0")
    assert not native.usable(x)


def test_a_captured_step_has_few_nodes() -> None:
    """The strided Conv4-64 of Omniglot 5-way 1-shot; their number does not depend on the tasks."""
    emulator = sys.modules.get("fakecuda")
    if emulator is None:
        pytest.skip("a card does not tell the number of nodes")
    problem = Problem(WORKLOADS["conv4_stride_5w1s_q1"].with_tasks(2), "cuda")
    draw = problem.source.sample
    made = build_train_step(
        problem.method, draw, problem.key, tasks=2, device="cuda", executor="graph"
    )
    made.step(problem.method.init(problem.key), made.step_input(0))
    assert emulator.GRAPHS[-1].size <= NODES


def test_convolutions_of_one_input_gather_its_patches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are small; the numbers are the same."""
    native.kernel()
    x, w = draw("x", 2, 6, 5, 3).cuda(), draw("w", 4, 3, 3, 3).cuda()

    def function(x: Tensor, w: Tensor) -> Tensor:
        return torch.func.grad(lambda w: conv2d(x, w, None, 2).square().sum())(w)

    for largest, gathers in ((1 << 26, 1), (0, 0)):
        monkeypatch.setattr("metalearn.executors.passes.shared_patches.LARGEST", largest)
        found = trace(function, x, w)
        graph = shorten_for_capture(found)
        names = [str(node.target) for node in graph.graph.nodes]
        assert names.count("metalearn.patches.default") == gathers
        torch.testing.assert_close(graph(x, w, *found.constants)[0], function(x, w), **EXACT)


def test_operators_add_what_a_second_derivative_adds() -> None:
    """To the gradients of a convolution's input, and of what is normalised and its gain."""
    native.kernel()
    shapes = {"x": (2, 6, 5, 3), "w": (4, 3, 3, 3), "gain": (4,), "bias": (4,)}
    inputs = tuple(draw(name, *shape).cuda() for name, shape in shapes.items())

    def value(x: Tensor, w: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        y = norm_relu_pool(conv2d(x.tanh(), w, None, 2), gain, bias, 1)
        return (y.square() * y).sum()

    def function(*inputs: Tensor) -> Any:
        def slopes(*inputs: Tensor) -> Tensor:
            found = torch.func.grad(value, argnums=(0, 1, 2))(*inputs)
            return torch.stack([one.square().sum() for one in found]).sum()

        return torch.func.grad(slopes, argnums=(0, 1, 2))(*inputs)

    sums = []
    for exact in (True, False):
        found = trace(function, *inputs)
        graph = shorten_for_capture(found, exact=exact)
        names = [str(node.target) for node in graph.graph.nodes]
        sums.append(names.count("aten.add.Tensor"))
        results = tuple(graph(*inputs, *found.constants))
        torch.testing.assert_close(results, function(*inputs), **EXACT)
    assert sums[1] == sums[0] - 3


def test_results_that_are_constants_stay_the_callers() -> None:
    call = captured(lambda x: (torch.zeros_like(x), x + 1), compiling=False)
    x = torch.ones(3, device="cuda")
    for _ in range(2):
        zeros, more = call(x)
        assert not bool(zeros.any()) and bool((more == 2).all())
        zeros.fill_(5.0)
