"""The convolution of models/: conv.cpp against torch's own, its derivatives, vmap, and life without
a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from metalearn import fold_in
from metalearn.kernels import native
from metalearn.kernels.conv import conv2d
from metalearn.rng import normal

F64 = torch.float64
needs_kernel = pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")


def draw(name: str, *shape: int) -> Tensor:
    return normal(fold_in(0, name), shape, F64)


def torchs(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """[B, H, W, C] by torch's convolution."""
    return F.conv2d(x.permute(0, 3, 1, 2), w, stride=stride, padding=w.shape[-1] // 2).permute(
        0, 2, 3, 1
    )


@needs_kernel
def test_the_kernel_is_built_and_used_where_there_is_a_compiler() -> None:
    assert native.why_not() is None and native.kernel() is not None
    assert native.usable(torch.zeros(1)) and native.usable(torch.zeros(1, dtype=F64))
    assert not native.usable(torch.zeros(1, dtype=torch.bfloat16))
    assert not native.usable(torch.zeros(1, device="meta"))


@needs_kernel
@given(
    images=st.integers(1, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.integers(1, 35),
    filters=st.integers(1, 70),
    size=st.sampled_from((1, 3, 5)),
    stride=st.sampled_from((1, 2, 3)),
    dtype=st.sampled_from((torch.float32, F64)),
)
def test_any_shape_gives_torchs_values_and_gradients(
    images: int,
    height: int,
    width: int,
    channels: int,
    filters: int,
    size: int,
    stride: int,
    dtype: torch.dtype,
) -> None:
    native.kernel()
    x = draw("x", images, height, width, channels).to(dtype).requires_grad_()
    w = draw("w", filters, channels, size, size).to(dtype).requires_grad_()
    ours, theirs = conv2d(x, w, None, stride), torchs(x, w, stride)
    scale = (channels * size * size) ** 0.5
    near = {"rtol": 1e-10, "atol": 1e-10} if dtype == F64 else {"rtol": 1e-4, "atol": 2e-5 * scale}
    torch.testing.assert_close(ours, theirs, **near)
    g = draw("g", *theirs.shape).to(dtype)
    for mine, other in zip(
        torch.autograd.grad(ours, (x, w), g), torch.autograd.grad(theirs, (x, w), g)
    ):
        torch.testing.assert_close(mine, other, rtol=near["rtol"], atol=10 * near["atol"])


@needs_kernel
@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives_are_the_numerical_ones(stride: int) -> None:
    native.kernel()
    x, w = draw("x", 2, 4, 5, 2).requires_grad_(), draw("w", 3, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: conv2d(x, w, None, stride), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: conv2d(x, w, None, stride), (x, w))


@needs_kernel
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0), (2, 1)])
def test_vmap_is_a_loop(stride: int, dims: tuple[int | None, int | None]) -> None:
    """Also inside another vmap, where groups and images are folded together; and through two
    derivatives."""
    native.kernel()
    outer, inner = 3, 2
    x, w = draw("x", outer, inner, 2, 6, 5, 3), draw("w", outer, inner, 4, 3, 3, 3)
    first = torch.func.vmap(lambda a, b: conv2d(a, b, None, stride), in_dims=dims)
    a = x[0] if dims[0] is not None else x[0, 0]
    b = w[0] if dims[1] is not None else w[0, 0]
    placed = tuple(v.movedim(0, d) if d else v for v, d in ((a, dims[0]), (b, dims[1])))
    want = [
        torchs(a[i] if dims[0] is not None else a, b[i] if dims[1] is not None else b, stride)
        for i in range(inner)
    ]
    torch.testing.assert_close(first(*placed), torch.stack(want), rtol=1e-10, atol=1e-10)

    def curved(convolve: object, a: Tensor, b: Tensor) -> Tensor:
        """A function of the two whose second derivatives mix them."""

        def loss(a: Tensor, b: Tensor) -> Tensor:
            return convolve(a, b).tanh().square().sum()  # type: ignore[operator]

        slope = torch.func.grad(
            lambda b: sum(g.square().sum() for g in torch.func.grad(loss, (0, 1))(a, b))
        )(b)
        return slope

    ours = torch.func.vmap(
        torch.func.vmap(
            lambda a, b: curved(lambda p, q: conv2d(p, q, None, stride), a, b), in_dims=(0, None)
        )
    )(x, w[:, 0])
    loop = [
        [curved(lambda p, q: torchs(p, q, stride), x[i, j], w[i, 0]) for j in range(inner)]
        for i in range(outer)
    ]
    torch.testing.assert_close(
        ours, torch.stack([torch.stack(row) for row in loop]), rtol=1e-9, atol=1e-9
    )


@needs_kernel
def test_the_number_of_threads_changes_no_bit() -> None:
    native.kernel()
    x, w = (
        draw("x", 40, 9, 9, 17).float().requires_grad_(),
        draw("w", 33, 17, 3, 3).float().requires_grad_(),
    )
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = conv2d(x, w, None, 2)
            found.append((y, *torch.autograd.grad(y.square().sum(), (x, w))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


PROBE = """
import torch
from metalearn.kernels import native
from metalearn.kernels.conv import conv2d
native.kernel()
x = torch.arange(2 * 5 * 5 * 3, dtype=torch.float64).reshape(2, 5, 5, 3).sin()
w = torch.arange(4 * 3 * 9, dtype=torch.float64).reshape(4, 3, 3, 3).cos()
print(native.why_not()); print(f"{conv2d(x, w, None, 2).square().sum():.10f}")
"""


def probe(tmp_path: Path, **environment: str) -> tuple[str, str]:
    """(why there is no kernel, a number that the convolution gives) in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    why, value = done.stdout.strip().splitlines()
    return why, value


def test_without_a_kernel_torch_gives_the_same_and_the_reason_is_said(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'this compiler is broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    off = probe(tmp_path, METALEARN_NATIVE="0")
    none = probe(tmp_path, PATH=str(tmp_path / "empty"), CXX="")
    bad = probe(tmp_path, CXX=str(broken))
    assert "METALEARN_NATIVE=0" in off[0]
    assert "no C++ compiler was found" in none[0]
    assert "this compiler is broken" in bad[0]
    assert not list(tmp_path.rglob("*.so")), "a failed build left something behind"
    assert off[1] == none[1] == bad[1]
    if native.compiler():
        assert probe(tmp_path) == ("None", off[1])
        assert len(list(tmp_path.rglob("*.so"))) == 2  # the convolution, and what follows it
