"""The workloads of in-context learners: every engine computes the gradient of plain modules in
float64."""

from __future__ import annotations

import dataclasses

import pytest

from metalearn.bench import contenders
from metalearn.bench.command import NAMES
from metalearn.bench.engines import in_context, in_context_jax, native
from metalearn.bench.engines.engine import Engine, LeftOut
from metalearn.bench.problem import gap
from metalearn.bench.workloads import WORKLOADS
from metalearn.executors.timings import ExecutorChoice

CLOSE = 1e-4  # of float32 to float64; seen: up to 3e-6


def small(name: str) -> in_context.InContextProblem:
    work = dataclasses.replace(WORKLOADS[name], tasks=2, filters=8)
    return in_context.InContextProblem(work, "cpu")


@pytest.mark.parametrize("name", ["in_context_sinusoid", "in_context_omniglot"])
def test_every_engine_computes_the_same_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its modules compute the same with and without the compiler, which takes half a minute.
    monkeypatch.setattr("torch.compile", lambda module, **options: module)
    problem = small(name)
    expected = in_context.reference(problem, problem.check)
    found: dict[str, Engine] = {
        choice: native.engine(problem, ExecutorChoice(choice)) for choice in ("loop", "vmap")
    }
    found["torch"] = in_context.engine(problem)
    try:
        found["jax"] = in_context_jax.engine(problem)
    except LeftOut as why:
        assert "jax" in str(why)
    for label, engine in found.items():
        assert engine.gradient is not None
        error = gap(engine.gradient(problem.check), expected)
        assert error < CLOSE, (label, error)
        engine.step()
        engine.wait()
        assert gap(engine.gradient(problem.check), expected) < CLOSE, label
    other = in_context.reference(problem, problem.episodes(7))
    assert gap(other, expected) > 100 * CLOSE  # other episodes have another gradient


def test_every_engine_has_its_row_or_its_reason() -> None:
    problem = small("in_context_omniglot")
    assert {one.engine for one in contenders.contenders(problem, NAMES)} == set(NAMES)
    assert "vmap" in native.candidates(problem)
    assert "without normalisation" in problem.workload.sentence()
    for one in contenders.contenders(problem, ("learn2learn", "higher", "torchopt")):
        with pytest.raises(LeftOut, match="does not support in-context learners"):
            one.build({})
