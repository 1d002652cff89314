"""Integers and floats that a model cannot read are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_sources import QUICK, Points, by_split, with_batches
from torch import nn

import metalearn as ml
from metalearn.types import Batch


class Words(Points):
    """Points rounded to the numbers of 9 words, in tasks and in examples."""

    def sample(self, key: Any, num_tasks: int, start: int = 0) -> Any:
        return with_batches(numbered)(super().sample(key, num_tasks, start))

    def examples(self, key: Any, size: int) -> Any:
        return numbered(super().examples(key, size))


def numbered(batch: Batch) -> Batch:
    return batch._replace(x=(9 * batch.x.abs()).long() % 9)


HINT = r"task\.inputs: are int64, and this network multiplies floats: give x\.float\(\) for numbers"
LINEAR = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Embedded(nn.Module):
    """4 words, each with a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.table(x).flatten(1))


def trained(tmp_path: Path, method: Any, task: Any, model: Any) -> Any:
    options = {name: value for name, value in QUICK.items() if name != "model"}
    return ml.train(method, task=task, model=model, out=tmp_path / "run", **options)


@pytest.mark.parametrize("model", [ml.models.MLP(sizes=(4,)), LINEAR], ids=["mlp", "module"])
@pytest.mark.parametrize("method", [ml.algorithms.MAML(), ml.transfer.FineTune()])
def test_integers_for_a_float_network_are_refused(tmp_path: Path, method: Any, model: Any) -> None:
    with pytest.raises(ml.ConfigError, match=HINT) as error:
        trained(tmp_path, method, by_split(Words), model)
    assert len(error.value.problems) == 1, "one sentence for training and test tasks"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "method",
    [
        ml.algorithms.MAML(),
        ml.algorithms.RelationNet(hidden=4),
        ml.transfer.LinearSVM(),
        ml.in_context.CAML(),
        ml.learned_optimizers.LearnToOptimize(inner_steps=2),
        ml.learned_optimizers.LearnOptimizer(horizon={"name": "constant", "steps": 2}, unroll=2),
    ],
    ids=lambda method: str(method.name),
)
def test_integers_are_looked_up(tmp_path: Path, method: Any) -> None:
    result = trained(tmp_path, method, by_split(Words), Embedded())
    assert (tmp_path / "run/result.json").exists() and result is not None


def test_a_method_without_the_model_takes_integers(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    method = ml.transfer.GradientBoosting()
    assert trained(tmp_path, method, by_split(Words), ml.models.MLP(sizes=())) is not None


def test_integer_rows_are_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 9, (200, 4))
    task = ml.tasks.Arrays(x, np.repeat(np.arange(20), 10), ways=3, shots=2, queries=4)
    assert task.build().sample(ml.fold_in(0), 1).support.x.dtype == torch.float32
    assert trained(tmp_path / "mlp", ml.algorithms.MAML(), task, LINEAR) is not None
    why = r"task\.inputs: of these tasks are floats, but the module needs integer indices: pass "
    spec = task.build().spec
    with pytest.raises(ml.ConfigError, match=why + r"inputs=lambda x: x\.long\(\) with it"):
        trained(tmp_path / "words", ml.algorithms.MAML(), task, Embedded())
    assert spec.x_shape == (4,) and not (tmp_path / "words/run").exists()
    model = ml.models.Module(Embedded(), inputs=lambda x: x.long())
    assert trained(tmp_path / "words", ml.algorithms.MAML(), task, model) is not None


def test_floats_are_read_as_before(tmp_path: Path) -> None:
    assert trained(tmp_path, ml.algorithms.MAML(), by_split(Points), LINEAR) is not None
