"""A CUDA device gives the numbers of the CPU, and no step makes the host wait for it.

Run on a real card, or on an emulated one (test_cuda_emulated.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cuda_cases import (
    EVERY,
    F64,
    LEARNING,
    METHODS,
    MODELS,
    SOURCES,
    TASKS,
    Problem,
    draw_of,
    outcome,
    start_of,
)

from metalearn.executors import step, trace
from metalearn.executors.step import build_train_step
from metalearn.executors.trace import traceable
from metalearn.nas import MLPReg
from metalearn.nas.spaces.space import one_hot
from metalearn.rng import fold_in
from metalearn.tree import leaves, named_leaves

pytestmark = pytest.mark.gpu
BATCHED = ("vmap", "graph")
PIECES = ("chunk", "loop")
EXECUTORS = (*BATCHED, *PIECES, "traced")


@contextmanager
def no_waits() -> Iterator[None]:
    """RuntimeError for whatever makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_equal(found: Any, expected: Any) -> None:
    """Results of the device, all of which lie there, and of the CPU: 1e-6 of the largest number of
    each leaf in float64, as the order of sums differs."""
    here, there = named_leaves(expected), named_leaves(found)
    assert here.keys() == there.keys()
    assert [name for name, leaf in there.items() if leaf.device.type != "cuda"] == []
    for name, leaf in here.items():
        if not leaf.is_floating_point():
            assert torch.equal(leaf, there[name].cpu()), name
            continue
        scale = float(leaf.nan_to_num().abs().max()) if leaf.numel() else 0.0
        torch.testing.assert_close(
            there[name].cpu(), leaf, rtol=1e-6, atol=1e-6 * max(scale, 1e-3), equal_nan=True
        )


@pytest.mark.parametrize("name", EVERY)
def test_a_device_learns_as_the_cpu_does(name: str) -> None:
    """Two steps and three new tasks, of every source, model, method, rule and searcher."""
    check_equal(outcome(*EVERY[name].built("cuda")), outcome(*EVERY[name].built("cpu")))


def three_steps(problem: Problem, device: str, executor: str) -> Any:
    """State and metrics after three steps; those after the first without a wait."""
    source, method = problem.built(device)
    if method.step is None:
        pytest.skip("nothing is learned across tasks")
    made = build_train_step(
        method,
        draw_of(source, method),
        fold_in(0, "train"),
        tasks=TASKS,
        device=device,
        executor=executor,
        chunk=2 if executor == "chunk" else None,
    )
    state, metrics = made.step(start_of(method), made.step_input(0))
    for number in (1, 2):
        if device == "cpu":
            state, metrics = made.step(state, made.step_input(number))
            continue
        before, copies = state, [leaf.clone() for leaf in leaves(state)]
        with no_waits():
            state, metrics = made.step(state, made.step_input(number))
        # what was returned is not written to again
        assert all(torch.equal(a, b) for a, b in zip(leaves(before), copies, strict=True))
    return state, metrics


@pytest.fixture
def sampling_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Executors of the same sampling (equal what its function closes over) share its trace."""
    made: dict[tuple[Any, ...], Any] = {}

    def once(function: Any, *args: Any) -> Any:
        key = tuple(cell.cell_contents for cell in function.__closure__)
        if key not in made:
            made[key] = traceable(function, *args)
        return made[key]

    monkeypatch.setattr(trace, "traceable", once)
    monkeypatch.setattr(step, "traceable", once)


@pytest.mark.usefixtures("sampling_traced_once")
@pytest.mark.parametrize("name", LEARNING)
def test_executors_give_the_numbers_of_the_cpu_and_never_wait(name: str) -> None:
    """Each executor that needs no compiler with every method; two with what may differ inside a
    task: sources, models, learned rules."""
    expected = three_steps(LEARNING[name], "cpu", "vmap")
    executors = EXECUTORS if name in METHODS else BATCHED
    if LEARNING[name].built("cpu")[1].task_grad is None:  # nothing is computed in pieces
        executors = tuple(one for one in executors if one not in PIECES)
    for executor in executors:
        check_equal(three_steps(LEARNING[name], "cuda", executor), expected)


def test_a_pass_of_a_supernet_never_waits() -> None:
    """Of the masks of widths, too: a search makes it in every step."""
    source = SOURCES["sinusoid"].task.build(device="cuda", dtype=F64)
    space = MLPReg().build(source.spec)
    params = {**space.supernet.init(fold_in(0, "init")), **one_hot(space, space.default)}
    x = source.sample(fold_in(1), 1).support.x[0]
    with no_waits():
        space.supernet.apply(params, x)


@pytest.mark.parametrize("name", ["conv4-query_batch", "conv4-strided"])
def test_a_bias_that_the_mean_removes_is_never_moved(name: str) -> None:
    """Its gradient would be rounding noise, which Adam turns into steps in float32."""
    source, method = MODELS[name].built("cuda", torch.float32)
    start = start_of(method)
    after = method.step(start, source.sample(fold_in(1), TASKS))[0]  # type: ignore[misc]
    biases = [leaf for leaf in start.meta if "convs" in leaf and leaf.endswith("bias")]
    assert len(biases) == 4
    assert all(torch.equal(start.meta[leaf], after.meta[leaf]) for leaf in biases)
