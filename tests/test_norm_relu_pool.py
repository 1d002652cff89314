"""Normalisation, ReLU and pooling in one operator: norm_relu_pool.cpp against torch's operators,
derivatives, vmap, threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from metalearn import fold_in
from metalearn.kernels import native
from metalearn.kernels.norm_relu_pool import norm_relu_pool
from metalearn.models.conv4 import Conv4, pool
from metalearn.rng import normal
from metalearn.types import EpisodeSpec

F64 = torch.float64
pytestmark = pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")
Form = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def draw(name: str, *shape: int) -> Tensor:
    return normal(fold_in(0, name), shape, F64)


def plain(y: Tensor, gain: Tensor, bias: Tensor, window: int) -> Tensor:
    """[B, H, W, F] in torch's operators."""
    off = y - y.mean((0, 1, 2))
    z = (gain * off * torch.rsqrt(off.square().mean((0, 1, 2)) + 1e-5) + bias).relu()
    return pool(z) if window == 2 else z


def derivatives(form: Form, inputs: tuple[Tensor, ...], window: int) -> list[Tensor]:
    """The value and what mixes every first, second and third derivative of it."""
    found = [form(*inputs, window)]
    for _ in range(3):
        made = torch.autograd.grad(
            sum((part * part.tanh()).sum() for part in found[-3:]), inputs, create_graph=True
        )
        found += made
    return found


@settings(max_examples=15)
@given(
    images=st.integers(1, 4),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    filters=st.integers(1, 70),
    window=st.sampled_from((1, 2)),
)
def test_any_shape_gives_torchs_values_and_three_derivatives(
    images: int, height: int, width: int, filters: int, window: int
) -> None:
    native.kernel()
    y = 2 + 3 * draw("y", images, height, width, filters)
    inputs = tuple(v.requires_grad_() for v in (y, draw("gain", filters), draw("bias", filters)))
    for mine, other in zip(
        derivatives(norm_relu_pool, inputs, window), derivatives(plain, inputs, window), strict=True
    ):
        torch.testing.assert_close(
            mine, other, rtol=1e-7, atol=1e-7 * float(other.detach().abs().max()) + 1e-10
        )


@pytest.mark.parametrize("window", [1, 2])
def test_float32_is_as_near_to_float64_as_torchs(window: int) -> None:
    """Also where the mean is large beside the deviation."""
    native.kernel()
    exact = (50 + draw("y", 5, 28, 28, 64), draw("gain", 64), draw("bias", 64))
    given = tuple(value.float().double() for value in exact)
    want = plain(*given, window)
    errors = [
        float((form(*(v.float() for v in given), window) - want).norm())
        for form in (norm_relu_pool, plain)
    ]
    assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("window", [1, 2])
def test_derivatives_are_the_numerical_ones(window: int) -> None:
    native.kernel()
    inputs = tuple(
        v.requires_grad_() for v in (draw("y", 2, 5, 4, 3), draw("gain", 3), draw("bias", 3))
    )
    assert torch.autograd.gradcheck(lambda *v: norm_relu_pool(*v, window), inputs)
    assert torch.autograd.gradgradcheck(lambda *v: norm_relu_pool(*v, window), inputs)


def test_of_equal_places_the_first_is_chosen() -> None:
    native.kernel()
    y = torch.tensor([[5.0, 5.0], [5.0, -9.0]], dtype=F64).reshape(1, 2, 2, 1).requires_grad_()
    one, none = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
    (ours,) = torch.autograd.grad(norm_relu_pool(y, one, none, 2).sum(), y)
    z = F.batch_norm(y.permute(0, 3, 1, 2), None, None, one, none, training=True)
    (theirs,) = torch.autograd.grad(F.max_pool2d(z, 2).sum(), y)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims", [(0, 0, 0), (0, None, None), (2, 1, 0)])
def test_vmap_is_a_loop_through_two_derivatives(dims: tuple[int | None, ...]) -> None:
    native.kernel()
    arrays = (draw("y", 3, 2, 4, 5, 7), draw("gain", 3, 7), draw("bias", 3, 7))

    def curved(form: Form, y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        def slope(y: Tensor, gain: Tensor) -> Tensor:
            dy, dgain = torch.func.grad(
                lambda y, g: form(y, g, bias, 2).tanh().square().sum(), (0, 1)
            )(y, gain)
            return dy.square().sum() + dgain.square().sum()

        return torch.func.grad(slope)(y, gain)

    placed = tuple(a[0] if d is None else a.movedim(0, d) for a, d in zip(arrays, dims))
    ours = torch.func.vmap(lambda *v: curved(norm_relu_pool, *v), in_dims=dims)(*placed)
    loop = [
        curved(plain, *(a[0] if d is None else a[i] for a, d in zip(arrays, dims)))
        for i in range(3)
    ]
    torch.testing.assert_close(ours, torch.stack(loop), rtol=1e-9, atol=1e-9)


def test_the_number_of_threads_changes_no_bit() -> None:
    native.kernel()
    y = draw("y", 2, 5, 9, 9, 33).float().requires_grad_()
    gain, bias = draw("gain", 33).float().requires_grad_(), draw("bias", 33).float()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            p = torch.func.vmap(lambda y: norm_relu_pool(y, gain, bias, 2))(y)
            first = torch.autograd.grad(p.square().sum(), (y, gain), create_graph=True)
            found.append(
                (p, *first, *torch.autograd.grad(sum(v.square().sum() for v in first), (y, gain)))
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_conv4_uses_it_and_gives_the_same_without(
    downsample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EpisodeSpec(
        kind="classification",
        ways=3,
        shots=1,
        queries=1,
        x_shape=(1, 17, 18),
        outputs=3,
        num_classes=9,
        dtype=F64,
    )
    learner = Conv4(filters=5, downsample=downsample).build(spec)  # type: ignore[arg-type]
    params, x, calls = learner.init(fold_in(0, "start")), draw("x", 4, 1, 17, 18), []

    def counted(*inputs: Any) -> Tensor:
        calls.append(inputs)
        return norm_relu_pool(*inputs)

    def slopes() -> dict[str, Tensor]:
        return torch.func.grad(lambda p: learner.apply(p, x).sin().sum())(params)

    monkeypatch.setattr("metalearn.models.conv4.norm_relu_pool", counted)
    ours = slopes()
    assert len(calls) == 4
    monkeypatch.setattr(native, "usable", lambda x: False)
    theirs = slopes()
    assert len(calls) == 4
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-9)
