"""A traced step without what does nothing: shorter, and the same bits."""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import pytest
import torch
from small import SOURCE, tiny

from metalearn.executors.simplify import interpret_simplified, simplify_graph
from metalearn.executors.trace import interpret_unchanged, specialize_by_shape, trace
from metalearn.rng import fold_in
from metalearn.tree import leaves


def operations(graph: Any) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_what_does_nothing_goes_and_what_does_something_stays() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        same = x.expand(3, 4).view(3, 4).t().t().transpose(0, 1).transpose(-1, -2).detach()
        return same.reshape(12).view(6, 2) + torch.sin(x).reshape(6, 2) * torch.sin(x).reshape(6, 2)

    x = torch.randn(3, 4)
    found = trace(function, x)
    before = operations(found.graph)
    after = operations(simplify_graph(found.graph))
    assert before.count("aten.sin.default") == 2 and after.count("aten.sin.default") == 1
    assert not {"aten.expand.default", "aten.transpose.int", "aten.detach.default"} & set(after)
    assert torch.equal(specialize_by_shape(function, interpret_simplified)(x), function(x))


def test_views_that_move_something_stay() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        turned = x.transpose(0, 1).contiguous().view(3, 4).transpose(0, 1)
        return turned.expand(2, 4, 3).sum(0) + x.expand(4, 3) + x[:1].expand(4, 3)

    x = torch.randn(4, 3)
    assert torch.equal(specialize_by_shape(function, interpret_simplified)(x), function(x))


def test_a_graph_that_writes_into_a_value_is_left_alone() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y.view(-1).add_(1)
        return y + x.view(-1).view(x.shape)

    found = trace(function, torch.zeros(2, 2))
    assert simplify_graph(found.graph) is found.graph
    assert torch.equal(
        specialize_by_shape(function, interpret_simplified)(torch.zeros(2, 2)), torch.ones(2, 2)
    )


def test_torch_takes_the_list_and_where_it_does_not_python_runs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = tiny()
    state, data = method.init(fold_in(0)), SOURCE.sample(fold_in(1), 3)
    expected, listed, made = leaves(method.step(state, data)), torch._C._create_graph_by_tracing, []

    def counted(*args: Any, **how: Any) -> Any:
        made.append(listed(*args, **how))
        return made[-1]

    def refused(*args: Any, **how: Any) -> Any:
        raise RuntimeError("no such operation")

    for way, count in ((counted, 1), (refused, 1)):
        monkeypatch.setattr(torch._C, "_create_graph_by_tracing", way)
        step = specialize_by_shape(method.step, interpret_simplified)
        for _ in range(2):
            assert all(
                torch.equal(a, b) for a, b in zip(leaves(step(state, data)), expected, strict=True)
            )
        assert len(made) == count


def test_a_list_goes_with_who_made_it() -> None:
    """torch.jit.trace files each list with the process for good, 13 kB an operation."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("needs glibc 2.33 to say what is allocated")

    class Heap(ctypes.Structure):
        # the eighth: bytes in use
        _fields_ = tuple((f"field{place}", ctypes.c_size_t) for place in range(10))

    def longer(x: torch.Tensor) -> torch.Tensor:
        for _ in range(500):
            x = x.sin()
        return x

    library.mallinfo2.restype, used = Heap, []
    for _ in range(6):
        specialize_by_shape(longer, interpret_simplified)(torch.ones(3))
        gc.collect()
        used.append(library.mallinfo2().field7)
    assert used[-1] - used[1] < 4 * 1e6


def test_the_list_does_not_hold_what_it_was_made_with() -> None:
    x = torch.randn(4)
    reference, step = (
        weakref.ref(x),
        specialize_by_shape(lambda x: x.sin() * 2, interpret_simplified),
    )
    step(x)
    del x
    assert reference() is None and torch.equal(step(torch.ones(4)), torch.ones(4).sin() * 2)


def test_a_graph_that_writes_into_what_it_is_given_writes_once() -> None:
    x = torch.zeros(3)
    specialize_by_shape(lambda x: x.add_(1) * 2, interpret_simplified)(x)
    assert torch.equal(x, torch.ones(3))


def test_one_tensor_given_twice_is_another_case_than_two() -> None:
    step, one, two = (
        specialize_by_shape(lambda x, y: x + 2 * y, interpret_simplified),
        torch.ones(2),
        torch.zeros(2),
    )
    assert torch.equal(step(one, one), 3 * one) and torch.equal(step(one, two), one)


def test_a_meta_step_is_shorter_and_the_same_bits() -> None:
    method = tiny(inner_steps=3)
    state, data = method.init(fold_in(0)), SOURCE.sample(fold_in(1), 5)
    found = trace(method.step, state, data)
    before = len(operations(found.graph))
    assert len(operations(simplify_graph(found.graph))) < 0.8 * before
    for finish in (interpret_unchanged, interpret_simplified):
        mine = specialize_by_shape(method.step, finish)(state, data)
        assert all(
            torch.equal(a, b)
            for a, b in zip(leaves(mine), leaves(method.step(state, data)), strict=True)
        )


NOTHING: dict[str, Any] = {
    "times one": lambda x: x * 1,
    "times ones": lambda x: torch.ones_like(x) * x,
    "over one": lambda x: x / 1.0,
    "plus zero": lambda x: x + 0.0,
    "zeros plus": lambda x: torch.zeros_like(x.sum(0)).expand(3, 4) + x,
    "minus zeros": lambda x: x - torch.zeros_like(x),
    "power one": lambda x: x**1.0,
    "times power zero": lambda x: x * x**0,
    "a gradient of a sum": lambda x: x * torch.func.grad(lambda x: x.sum())(x),
}


@pytest.mark.parametrize("name", NOTHING)
def test_arithmetic_that_changes_nothing_goes(name: str) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return NOTHING[name](x.sin()).cos()

    x = torch.randn(3, 4)
    expected = ["aten.sin.default", "aten.cos.default"]
    assert operations(simplify_graph(trace(function, x).graph)) == expected
    assert torch.equal(specialize_by_shape(function, interpret_simplified)(x), function(x))


SOMETHING: dict[str, Any] = {
    "another shape": lambda x: x[0] + torch.zeros_like(x),
    "another type": lambda x: x * torch.ones_like(x, dtype=torch.float64),
    "another layout": lambda x: (x[:1].expand(3, 4) * 1).view(2, 6),
    "nothing times infinity": lambda x: torch.zeros_like(x) * (x / 0),
    "scaled": lambda x: torch.add(x, torch.ones_like(x), alpha=3),
    "rounded": lambda x: torch.div(x, torch.ones_like(x), rounding_mode="floor"),
    "from one": lambda x: torch.ones_like(x) - x,
    "one over": lambda x: 1.0 / x + torch.ones_like(x) / x,
    "another place": lambda x: torch.as_strided(x[1:] * 1, (4,), (1,), 0),
    "a number's type": lambda x: x * (torch.ones_like(x) * (torch.ones_like(x.double().sum()) / 3)),
    "whole numbers": lambda x: (
        (x > 0).long() * torch.ones_like(x, dtype=torch.long) + torch.zeros_like(x)
    ),
    "a third of ones": lambda x: (
        x * (torch.ones_like(x) / 3) + (torch.ones_like(x) / 3).expand(2, 3, 4)
    ),
    "a third of ones, turned": lambda x: (
        x.t() * (torch.ones_like(x) / 3).t() / (torch.ones_like(x) / 3).t()
    ),
    "spread": lambda x: x[:, :1].expand(3, 4) + x * x[0].expand(3, 4) - x[:1].expand(3, 4),
    "spread twice": lambda x: x[:1].expand(3, 4) + x[:, :1].expand(3, 4),
    "spread from fewer": lambda x: (
        x[0].expand(3, 4) / x + x[0, 0].expand(3, 4) * x.t().contiguous().t()
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SOMETHING)
def test_arithmetic_that_changes_something_is_the_same(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, dtype=dtype)
    expected, found = (
        SOMETHING[name](x),
        specialize_by_shape(SOMETHING[name], interpret_simplified)(x),
    )
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
    assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())


def test_joined_pieces_of_one_vector_are_the_vector() -> None:
    """Of a split, of slices in their order, and where something is added to each."""
    sizes = [2, 3, 4]

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pieces = [piece.reshape(2, -1, 1) for piece in x.split(sizes, 1)]
        joined = torch.cat([piece.reshape(2, -1) for piece in pieces], 1)
        slices = x[:, :2], x[:, 2:5], x[:, 5:]
        others = [piece.reshape(2, -1, 1).exp() for piece in y.split(sizes, 1)]
        sums = [(a.reshape(2, -1, 1) + b).reshape(2, -1) for a, b in zip(slices, others)]
        turned = [(b + a).reshape(2, -1) for a, b in zip(pieces, others)]
        return joined * 2, torch.cat(sums, 1), torch.cat(turned, 1)

    x, y = torch.randn(2, 9), torch.randn(2, 9)
    short = operations(simplify_graph(trace(function, x, y).graph))
    assert short.count("aten.cat.default") == 2  # of the others, once for each sum
    assert short.count("aten.add.Tensor") == 2
    found = specialize_by_shape(function, interpret_simplified)(x, y)
    assert all(torch.equal(a, b) for a, b in zip(found, function(x, y), strict=True))


APART: dict[str, Any] = {
    "other order": lambda x: torch.cat(x.split([2, 3, 4], 1)[::-1], 1),
    "not all": lambda x: torch.cat(x.split([2, 3, 4], 1)[:2], 1),
    "another axis": lambda x: torch.cat(x.split([3, 3, 3], 1), 0),
    "turned": lambda x: torch.cat([p.t().reshape(2, -1) for p in x.split([2, 3, 4], 1)], 1),
    "of two": lambda x: torch.cat([x.split([4, 5], 1)[0], x.exp().split([4, 5], 1)[1]], 1),
    "steps": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "spread sums": lambda x: torch.cat([p + p[:1] for p in x.split([2, 3, 4], 1)], 1),
    "scaled sums": lambda x: torch.cat(
        [torch.add(p, p.exp(), alpha=2) for p in x.split([2, 3, 4], 1)], 1
    ),
    "numbers": lambda x: torch.cat([p + 1 for p in x.split([2, 3, 4], 1)], 1),
    "types": lambda x: torch.cat([p + p.double() for p in x.split([2, 3, 4], 1)], 1),
}


@pytest.mark.parametrize("name", APART)
def test_other_concatenations_are_the_same(name: str) -> None:
    x = torch.randn(2, 9)
    found, expected = specialize_by_shape(APART[name], interpret_simplified)(x), APART[name](x)
    assert torch.equal(found, expected) and found.dtype == expected.dtype
