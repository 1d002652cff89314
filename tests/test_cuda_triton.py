"""Triton kernels behind the operators of a CUDA device: the step that they make.

Run on a real card, or on an emulated one, where each launch is one node of a captured graph
(kernel_launches.py; test_cuda_emulated.py)."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from kernel_launches import recorded_launches

from metalearn.bench.problem import Problem
from metalearn.bench.workloads import WORKLOADS
from metalearn.executors.step import build_train_step
from metalearn.kernels import choice
from metalearn.kernels.launch import available
from metalearn.tree import named_leaves

pytestmark = pytest.mark.gpu
NODES = 148  # of the captured strided Conv4-64 step with Triton; 469 without


def two_steps(triton: bool) -> tuple[Any, int | None]:
    """State and metrics after two captured steps, and the nodes of the graph where that is known.

    The strided Conv4-64 of Omniglot 5-way 1-shot; the nodes do not depend on the tasks."""
    emulator = sys.modules.get("fakecuda")
    with recorded_launches() if triton and emulator else nullcontext():
        problem = Problem(WORKLOADS["conv4_stride_5w1s_q1"].with_tasks(2), "cuda")
        draw, state = problem.source.sample, problem.method.init(problem.key)
        made = build_train_step(
            problem.method, draw, problem.key, tasks=2, device="cuda", executor="graph"
        )
        for number in (0, 1):
            found = made.step(state, made.step_input(number))
            state = found[0]
    return found, emulator.GRAPHS[-1].size if emulator else None


def test_a_captured_step_has_few_nodes_and_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if sys.modules.get("fakecuda") is None and not available():
        pytest.skip("needs Triton on a card")
    monkeypatch.setenv("METALEARN_TRITON", "1")  # on a card, too
    found, nodes = two_steps(triton=True)
    monkeypatch.setenv("METALEARN_TRITON", "0")
    monkeypatch.setattr(choice, "available", lambda: False)
    expected, _ = two_steps(triton=False)
    assert nodes is None or nodes <= NODES
    right = named_leaves(expected)
    for name, leaf in named_leaves(found).items():
        torch.testing.assert_close(leaf, right[name], rtol=1e-3, atol=1e-4, msg=name)
