"""Marks of what the compiler's cache holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import sinusoid
from small import SOURCE
from torch import Tensor

from metalearn.algorithms import ANIL, BOIL, MAML, Reptile
from metalearn.config.experiment import parse
from metalearn.config.signature import signature
from metalearn.executors import trace as trace_module
from metalearn.executors.compile_cache import NotReady, asking, noted, only_ready
from metalearn.executors.executor import compiler_found
from metalearn.executors.trace import compiled, trace
from metalearn.models import MLP
from metalearn.rng import fold_in
from metalearn.tree import leaves


def double(x: Tensor) -> Tensor:
    return x * 2 + 1


def test_a_mark_is_made_when_a_compilation_is_through_and_not_before(tmp_path: Path) -> None:
    x = torch.zeros(3)
    graph = trace(double, x).graph
    with pytest.raises(KeyError), noted(tmp_path, graph, [x], {}):
        raise KeyError
    with only_ready(), pytest.raises(NotReady), noted(tmp_path, graph, [x], {}):
        raise AssertionError("nothing is compiled")
    with noted(tmp_path, graph, [x], {}):
        assert not any((tmp_path / "ready").glob("*"))
    with only_ready(), noted(tmp_path, graph, [x], {}):
        assert asking()
    assert not asking()


def test_a_mark_is_of_one_graph_its_inputs_and_settings(tmp_path: Path) -> None:
    x = torch.zeros(3)
    graph, other = trace(double, x).graph, trace(lambda x: x * 3 + 1, x).graph
    with noted(tmp_path, graph, [x], {}):
        pass
    for changed in (
        (other, [x], {}),
        (graph, [x.double()], {}),
        (graph, [torch.zeros(4)], {}),
        (graph, [x], {"a": 1}),
    ):
        with only_ready(), pytest.raises(NotReady), noted(tmp_path, *changed):
            pass


def test_a_cache_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "ready").write_text("a file where the folder should be")
    x = torch.zeros(3)
    with noted(tmp_path, trace(double, x).graph, [x], {}):
        pass


@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler was found")
def test_only_what_was_compiled_before_is_compiled_where_only_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "COMPILER_CACHE", tmp_path)
    x = torch.arange(3.0)
    with only_ready(), pytest.raises(NotReady):
        compiled(double)(x)
    assert torch.equal(compiled(double)(x), double(x))
    with only_ready():
        assert torch.equal(compiled(double)(x), double(x))


@pytest.mark.parametrize("kind", [MAML, ANIL, BOIL, Reptile])
def test_a_step_of_another_inner_rate_is_the_same_code_or_another_signature(kind: Any) -> None:
    """The rate is an input of the step: a sweep over it compiles once. Where it is not, what is
    known is not shared.
    """
    data = SOURCE.sample(fold_in(1), 3)
    found = []
    for rate in (0.01, 0.1):
        method = kind(inner_lr=rate).build(MLP(sizes=(6,)).build(SOURCE.spec), SOURCE.spec)
        state = method.init(fold_in(0))
        found.append((trace(method.step, state, data), method.step(state, data)))  # type: ignore[misc, arg-type]
    (one, first), (two, second) = found
    names = []
    for rate in (0.01, 0.1):
        experiment = parse(sinusoid(method={"name": kind().name, "inner_lr": rate})).experiments[0]
        names.append(signature(experiment, SOURCE.spec, "cpu"))
    assert (one.graph.code == two.graph.code) == (names[0] == names[1]) == (kind is not Reptile)
    assert any(not torch.equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))
