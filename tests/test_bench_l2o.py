"""The workloads of learned optimizers: every engine computes the gradient of plain autograd in
float64."""

from __future__ import annotations

import dataclasses

import pytest

from metalearn.bench import contenders
from metalearn.bench.command import NAMES
from metalearn.bench.engines import l2o, l2o_jax, native
from metalearn.bench.engines.engine import Engine, LeftOut
from metalearn.bench.problem import gap
from metalearn.bench.workloads import WORKLOADS
from metalearn.executors import trace
from metalearn.executors.timings import ExecutorChoice

CLOSE = 1e-4  # of float32 to float64 after a few steps; seen: up to 1e-6


def small(name: str, steps: int = 4) -> l2o.LearnedProblem:
    return l2o.LearnedProblem(
        dataclasses.replace(WORKLOADS[name], tasks=2, inner_steps=steps), "cpu"
    )


@pytest.mark.parametrize("name", ["l2o_quadratics", "l2o_mlp"])
def test_every_engine_computes_the_same_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "compile_flat", trace.interpret_unchanged)
    problem = small(name)
    expected = l2o.reference(problem, problem.check)
    found: dict[str, Engine] = {
        choice: native.engine(problem, ExecutorChoice(choice))
        for choice in ("vmap", "compiled_steps")
    }
    found["torch"] = l2o.engine(problem)
    try:
        found["jax"] = l2o_jax.engine(problem)
    except LeftOut as why:
        assert "jax" in str(why)
    for label, engine in found.items():
        assert engine.gradient is not None
        error = gap(engine.gradient(problem.check), expected)
        assert error < CLOSE, (label, error)
        engine.step()
        engine.wait()
    other = l2o.reference(small(name, 3), problem.check)
    assert gap(other, expected) > 100 * CLOSE  # one step fewer is another gradient


def test_every_engine_has_its_row_or_its_reason() -> None:
    problem = small("l2o_quadratics")
    assert WORKLOADS["l2o_quadratics"].inner_steps == WORKLOADS["l2o_mlp"].inner_steps == 100
    assert (
        {one.engine for one in contenders.contenders(problem, NAMES)}
        == set(NAMES)
        == set(contenders.ENGINES)
    )
    for one in contenders.contenders(problem, ("learn2learn", "higher", "torchopt")):
        with pytest.raises(LeftOut, match="does not support learned optimizers"):
            one.build({})
