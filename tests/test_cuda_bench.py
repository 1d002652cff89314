"""The rows of `metalearn bench --device cuda` for ways of replaying, and for validation.

Run on a real card, or on an emulated one (test_cuda_emulated.py)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from metalearn.bench import contenders as bench
from metalearn.bench.engines import native
from metalearn.bench.problem import Problem
from metalearn.bench.table import engine_detail
from metalearn.bench.workloads import WORKLOADS
from metalearn.executors import cuda_graphs

pytestmark = pytest.mark.gpu


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each capture."""
    found, capture = list[Any](), cuda_graphs._captured_flat

    def counted(*args: Any) -> Any:
        found.append(args)
        return capture(*args)

    monkeypatch.setattr(cuda_graphs, "_captured_flat", counted)
    return found


def test_captured_steps_have_rows_of_several_and_without_triton(
    captures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "REPLAYED", 3)
    monkeypatch.setattr(bench, "available", lambda: True)
    problem = Problem(WORKLOADS["sinusoid_1step"].with_tasks(2), "cuda")
    found = [one for one in bench.contenders(problem, ("native",)) if one.executor == "graph"]
    engines = [one.build({})[0] for one in found]
    forms = [engine.form for engine in engines]
    assert forms == ["", "3 steps a replay", "without Triton"]
    assert engine_detail({"executor": "graph", "form": forms[1]}) == "graph, 3 steps a replay"
    gradients, counts = [], []
    for engine in engines:
        engine.step()
        engine.step()
        counts.append(len(captures))
        assert engine.gradient is not None
        gradients.append(engine.gradient(problem.check))
    assert [engine.per for engine in engines] == [1, 3, 1] and counts == [1, 3, 4]
    assert "METALEARN_TRITON" not in os.environ
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])
    chosen = bench.contenders(problem, ("native",), ("graph",))
    assert len(chosen) == 1


def test_validation_has_an_eager_and_a_captured_row(captures: list[Any]) -> None:
    work = replace(WORKLOADS["validation_5w1s"], tasks=2, filters=4, queries=1)
    found = bench.contenders(Problem(work, "cuda"), ("native", "learn2learn"))
    counts = []
    for one in found:
        (engine,) = one.build({})
        engine.step()
        engine.step()
        counts.append(len(captures))
    assert [one.executor for one in found] == ["vmap", "graph"] and counts == [0, 2]
    on_cpu = bench.contenders(Problem(work, "cpu"), ("native",))
    assert [one.executor for one in on_cpu] == ["vmap"]
