"""Workloads of R2-D2, iMAML and ResNet-12: every engine computes the gradient of plain autograd in
float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from metalearn.bench import bench, contenders, limit
from metalearn.bench.command import NAMES
from metalearn.bench.engines import by_torchopt, imaml, native, r2d2, torch_packages
from metalearn.bench.engines.engine import Engine, LeftOut
from metalearn.bench.problem import Problem, gap
from metalearn.bench.workloads import WORKLOADS
from metalearn.executors.timings import ExecutorChoice

CLOSE = 1e-3  # of float32 to float64


def small(name: str) -> Problem:
    """The workload with fewer filters and pixels, two tasks."""
    changes: dict[str, Any] = {"tasks": 2, "queries": 2, "filters": 8}
    if name == "resnet12_84_5w1s":
        changes |= {"x_shape": (3, 16, 16), "filters": 4}
    work = dataclasses.replace(WORKLOADS[name], **changes)
    return bench.PROBLEMS.get(work.family, Problem)(work, "cpu")


@pytest.mark.parametrize("name", ["r2d2_5w1s", "imaml_5w1s", "resnet12_84_5w1s"])
def test_every_engine_computes_the_same_gradient(name: str) -> None:
    problem = small(name)
    expected, flops = limit.reference_and_flops(problem)
    found: dict[str, Engine] = {
        choice: native.engine(problem, ExecutorChoice(choice)) for choice in ("loop", "vmap")
    }
    for peer in ("learn2learn", "higher", "torchopt", "torch"):
        try:
            found |= {f"{peer} {one.form}": one for one in peers(problem, peer)}
        except LeftOut as why:
            assert peer in str(why), why
    assert flops > 0
    for label, engine in found.items():
        assert engine.gradient is not None
        for _ in range(2):
            error = gap(engine.gradient(problem.check), expected)
            assert error < CLOSE, (label, error)
            engine.step()
            engine.wait()


def peers(problem: Problem, name: str) -> list[Engine]:
    if name == "torchopt":
        return by_torchopt.engines(problem)
    if name != "torch":
        return [torch_packages.engine(name, problem)]
    return [r2d2.engine(problem)] if isinstance(problem, r2d2.R2D2Problem) else []


def test_other_episodes_have_another_gradient() -> None:
    problem = small("imaml_5w1s")
    expected = imaml.reference(problem, problem.check)
    other = imaml.reference(problem, problem.episodes(7))
    assert gap(other, expected) > 100 * CLOSE


@pytest.mark.parametrize("name", ["r2d2_5w1s", "imaml_5w1s", "resnet12_84_5w1s"])
def test_every_engine_has_its_row_or_its_reason(name: str) -> None:
    problem = small(name)
    assert {one.engine for one in contenders.contenders(problem, NAMES)} == set(NAMES)
    title = {"r2d2_5w1s": "R2-D2", "imaml_5w1s": "iMAML", "resnet12_84_5w1s": "ResNet-12"}
    assert title[name] in problem.workload.sentence()
