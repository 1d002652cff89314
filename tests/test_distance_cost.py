"""Distances count as a matrix product at every size, and one query costs what it adds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn.config.experiment import parse
from metalearn.evaluate.cost_block import prediction_parts
from metalearn.evaluate.flops import count
from metalearn.evaluate.ledger import CostLedger
from metalearn.inner.heads import LARGE, negative_squared_distance
from metalearn.models import MLP, Standardised
from metalearn.results.costs import prediction_cost, prediction_cost_parts
from metalearn.results.records import load
from metalearn.rng import fold_in
from metalearn.run.run import run_one
from metalearn.run.trained.load import load_run
from metalearn.tasks import Digits
from metalearn.transfer import KNN, NearestCentroid, SimpleShot

SMALL, BIG = (25, 5, 64), (3000, 50, 64)  # B, N, D: on both sides of LARGE


def vectors(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    rows, centres, width = shape
    assert (rows * centres * width > LARGE) == (shape == BIG)
    return torch.rand(rows, width), torch.rand(centres, width)


def of_loss(z: Tensor, centres: Tensor) -> Tensor:
    return torch.log_softmax(negative_squared_distance(z, centres), -1)[:, 0].sum()


def gradient(z: Tensor, centres: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = torch.func.grad(of_loss, (0, 1))(z, centres)
    return found


def second(z: Tensor, centres: Tensor) -> tuple[Tensor, ...]:
    def length(z: Tensor, centres: Tensor) -> Tensor:
        return torch.stack([part.square().sum() for part in gradient(z, centres)]).sum()

    found: tuple[Tensor, ...] = torch.func.grad(length, (0, 1))(z, centres)
    return found


@pytest.mark.parametrize("shape", [SMALL, BIG])
def test_distances_count_as_a_product_whatever_their_number(shape: tuple[int, int, int]) -> None:
    """And two more for the gradients; a second derivative has products of the same size."""
    z, centres = vectors(shape)
    product = 2 * shape[0] * shape[1] * shape[2]
    assert count(negative_squared_distance, z, centres).matrix == product
    assert count(gradient, z, centres).matrix == 3 * product
    assert count(second, z, centres).matrix == 9 * product
    tasks = torch.stack([z] * 3), torch.stack([centres] * 3)
    for function, products in ((negative_squared_distance, 1), (gradient, 3), (second, 9)):
        assert count(torch.func.vmap(function), *tasks).matrix == 3 * products * product


def test_counting_changes_no_distance() -> None:
    z, centres = vectors(SMALL)
    differences = -(z.unsqueeze(1) - centres).square().sum(-1)
    count(negative_squared_distance, z, centres)
    assert torch.equal(negative_squared_distance(z, centres), differences)
    compiled = torch.compile(negative_squared_distance, backend="eager", fullgraph=True)
    assert torch.equal(compiled(z, centres), differences)
    traced = make_fx(negative_squared_distance)(z, centres)
    assert torch.equal(traced(z, centres), differences)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("rows", [20, 40])  # torch multiplies matrices of more than 25
def test_distances_of_torch_count_as_a_product(
    rows: int, batch: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    x, y = torch.rand(*batch, rows, 8), torch.rand(*batch, 30, 8)
    product = 2 * math.prod(batch) * rows * 30 * 8
    assert count(torch.cdist, x, y).matrix == product

    def gradient(x: Tensor, y: Tensor) -> Any:
        return torch.func.grad(lambda x, y: torch.cdist(x, y).sum(), (0, 1))(x, y)

    assert count(gradient, x, y).matrix == 3 * product
    assert not caplog.messages


@pytest.mark.parametrize("component", [KNN(), NearestCentroid(), SimpleShot()])
@pytest.mark.parametrize("features", [64, 16])
def test_a_prediction_by_distances_is_counted_as_by_hand(component: Any, features: int) -> None:
    """Of 5 classes of 3 shots and 25 queries: on images of 64 pixels as they are, and on 16
    features."""
    source = Digits(ways=5, shots=3, queries=5).build()
    model = Standardised() if features == 64 else MLP(sizes=(features,))
    method = component.build(model.build(source.spec), source.spec)
    episode, ledger = source.sample(fold_in(1), 2), CostLedger()
    meta = method.init(fold_in(0)).meta
    method.learn(meta, episode.support, episode.query.x, (0,), ledger=ledger)
    stored = 15 if isinstance(component, KNN) else 5
    network = 0 if features == 64 else 2 * 25 * 64 * features
    assert ledger.cost()["predict"]["flops"] == 2 * (2 * 25 * stored * features + network)


#
# one query


IMAGES: dict[str, Any] = {
    "task": {"source": "digits", "ways": 3, "shots": 2, "queries": 5},
    "model": {"name": "conv4", "filters": 4, "norm": "support"},
    "run": {"meta_steps": 0, "executor": "vmap", "validate": {"every": 2, "episodes": 2}},
    "evaluate": {"episodes": 4, "steps": [0, 1], "chunk": 4},
}
METHODS: list[dict[str, Any]] = [
    {"name": "conditional_neural_process", "width": 32},
    {"name": "attentive_neural_process"},
    {"name": "proto_net"},
    {"name": "knn"},
    {"name": "maml", "inner_steps": 1},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method["name"]))
def test_a_query_costs_what_it_adds_to_the_others(method: dict[str, Any], tmp_path: Path) -> None:
    """Under the policy `support` the network runs on the support set again, and the head, the
    distances and the attention on the queries alone."""
    result = run_one(parse({**IMAGES, "method": method}).experiments[0], tmp_path / "run")
    whole, one, all_but_one = (predicting(tmp_path / "run", number) for number in (15, 1, 14))
    each, predict = whole - all_but_one, result["cost"]["predict"]
    assert each == (whole - one) / 14 and whole > 15 * each
    assert result["normalisation"] == "support" and predict["queries"] == 15
    assert (predict["flops"], predict["flops_one_query"]) == (whole, one)
    assert predict["flops_per_query"] == each
    run = load(tmp_path / "run")
    assert prediction_cost_parts(run, "flops") == (whole - 15 * each, each)
    assert prediction_cost(run, "flops", 1) == one


def predicting(folder: Path, queries: int) -> float:
    """Return the FLOPs of predicting a number of queries of one task."""
    run, ledger = load_run(folder), CostLedger()
    episode = run.source.sample(fold_in(1), 1)
    meta, x = run.state.meta, episode.query.x[:, :queries]
    run.method.learn(meta, episode.support, x, (0,), ledger=ledger)
    return float(ledger.cost()["predict"]["flops"])


def test_results_without_the_cost_of_one_query_divide_that_of_all() -> None:
    entry = {"flops": 800, "seconds_batched": None}
    assert prediction_parts(entry, "flops", 15) == (0, 800 / 15)
    assert prediction_parts(entry, "flops", 15, beside=5) == (200, 40)
    assert prediction_parts({**entry, "flops_one_query": 240}, "flops", 15, beside=5) == (200, 40)
    assert prediction_parts({**entry, "flops_one_query": 100}, "flops", 15, beside=5) == (50, 50)
    assert prediction_parts({**entry, "flops_one_query": 5}, "flops", 1) == (0, 800)
    assert prediction_parts(entry, "seconds", 15) is None
