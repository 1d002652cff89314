"""Learning new tasks by captured graphs: the bits of an eager call.

Run on a real card, or on an emulated one (test_cuda_emulated.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_cases import METHODS, TASKS, start_of
from test_cuda_runs import experiment
from torch import Tensor

from metalearn.evaluate.curves import learning_curve
from metalearn.executors import cuda_graphs
from metalearn.executors.cuda_graphs import captured_learning
from metalearn.rng import fold_in
from metalearn.run import final_test
from metalearn.run.run import run_one
from metalearn.scopes.over_tasks import call

pytestmark = pytest.mark.gpu


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each capture."""
    found, capture = list[Any](), cuda_graphs._capture

    def counted(*args: Any, **options: Any) -> Any:
        found.append(options)
        return capture(*args, **options)

    monkeypatch.setattr(cuda_graphs, "_capture", counted)
    return found


@pytest.mark.parametrize("name", ["maml", "reptile", "proto_net", "learned-meta"])
def test_captured_learning_gives_the_bits_of_an_eager_call(name: str, captures: list[Any]) -> None:
    """Adapting and predicting are two graphs, captured once for all batches of one shape."""
    source, method = METHODS[name].built("cuda")
    meta = start_of(method).meta

    def learned(number: int) -> Tensor:
        batch = source.sample(fold_in(7, number), TASKS)
        found = method.learn(meta, batch.support, batch.query.x, (0, 1, 2), batch.info["key"])
        return found.predictions

    numbers = range(3)
    expected = [learned(number) for number in numbers]
    assert captures == []
    with captured_learning("cuda"):
        found = [learned(number) for number in numbers]
    assert [one["exact"] for one in captures] == [True, True]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_curve_of_many_batches_is_the_eager_one(captures: list[Any]) -> None:
    source, method = METHODS["maml"].built("cuda")
    meta, options = start_of(method).meta, {"steps": (0, 2), "episodes": 20, "chunk": 4}
    expected = learning_curve(method, meta, source, **options)
    with captured_learning("cuda"):
        found = learning_curve(method, meta, source, **options)
    assert len(captures) == 2
    assert torch.equal(found.scores, expected.scores)


def test_what_cannot_be_captured_goes_on_as_it_is() -> None:
    def owner() -> None: ...

    def decide(x: Tensor) -> Tensor:
        return x + 1 if bool(x.sum() > 0) else x - 1

    x = torch.ones(2, device="cuda")
    with captured_learning("cuda"):
        for _ in range(2):
            assert torch.equal(call(decide, owner, "decide", x), x + 1)


def test_looks_of_a_run_are_captured_and_its_test_is_not(
    captures: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seconds of the test are those of a new task."""
    before, curve = list[int](), final_test.curve

    def counted(*args: Any) -> Any:
        before.append(len(captures))
        return curve(*args)

    monkeypatch.setattr(final_test, "curve", counted)
    options = {"meta_steps": 2, "checkpoint_every": 1, "validate": {"every": 1, "episodes": 4}}
    run_one(experiment(device="cuda", executor="vmap", **options), tmp_path)
    assert before == [len(captures)] and len(captures) == 2
