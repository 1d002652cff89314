"""Losses against torch's own, weighted by hand, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.errors import ConfigError
from metalearn.inner import heads
from metalearn.inner.heads import negative_squared_distance
from metalearn.losses import LOSSES, accuracy, criterion, metrics
from metalearn.rng import fold_in, integers, normal
from metalearn.types import EpisodeSpec

F64 = torch.float64
KEY = fold_in(3, "losses")
CLASSES = EpisodeSpec("classification", 4, 1, 1, (2,), 4, 4, dtype=F64)
NUMBERS = EpisodeSpec("regression", 1, 1, 1, (2,), 4, 0, dtype=F64)


def torchs(name: str, predictions: Tensor, y: Tensor) -> Tensor:
    """[B, ...] -> the loss of each example: [B]."""
    if name == "cross_entropy":
        each = F.cross_entropy(predictions.movedim(-1, 1), y, reduction="none")
    else:
        of = {"mse": F.mse_loss, "huber": F.huber_loss, "bce": F.binary_cross_entropy_with_logits}
        each = of[name](predictions, y, reduction="none")
    return each.reshape(len(each), -1).mean(1)


def case(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    predictions = 2 * normal(fold_in(KEY, "p"), (*shape, 4), F64)
    if name == "cross_entropy":
        return predictions, integers(fold_in(KEY, "y"), shape, 4)
    y = normal(fold_in(KEY, "y"), (*shape, 4), F64)
    return predictions, (y > 0).to(F64) if name == "bce" else y


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 5)])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_torchs_and_weights_count_examples(name: str, shape: tuple[int, ...]) -> None:
    predictions, y = case(name, shape)
    loss, each = LOSSES[name], torchs(name, predictions, y)
    torch.testing.assert_close(loss(predictions, y), each.mean(), rtol=1e-12, atol=0)
    weight = torch.tensor([1.0, 0, 2, 1, 0, 0.5], dtype=F64)
    expected = (weight * each).sum() / weight.sum()
    torch.testing.assert_close(loss(predictions, y, weight), expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(
        lambda p: loss(p, y, weight), predictions.clone().requires_grad_()
    )
    # leading axes are kept, with and without weights, and are what vmap gives
    pair, both = torch.stack([predictions, predictions + 1]), torch.stack([y, y])
    alone = torch.stack([loss(p, y) for p in pair])
    torch.testing.assert_close(loss(pair, both, batch_dims=1), alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.func.vmap(loss)(pair, both), alone, rtol=1e-12, atol=0)
    weights = torch.stack([weight, weight])
    torch.testing.assert_close(loss(pair, both, weights, 1)[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_nothing_not_even_where_it_is_not_finite(name: str) -> None:
    predictions, y = case(name, (6,))
    padded = torch.cat([predictions, torch.full_like(predictions[:2], float("inf"))])
    labels = torch.cat([y, y[:2]])
    weight = torch.tensor([1.0] * 6 + [0.0] * 2, dtype=F64)
    expected = LOSSES[name](predictions, y)
    torch.testing.assert_close(LOSSES[name](padded, labels, weight), expected, rtol=1e-12, atol=0)


def test_metrics_and_accuracy_count_weights() -> None:
    logits, y = torch.eye(4, dtype=F64), torch.tensor([0, 1, 0, 0])
    weight = torch.tensor([1.0, 0, 1, 0], dtype=F64)
    assert float(accuracy(logits, y)) == 0.5 and float(accuracy(logits, y, weight)) == 0.5
    found = metrics(CLASSES, logits, y, weight)
    assert float(found["query_accuracy"]) == 0.5
    torch.testing.assert_close(found["query_loss"], LOSSES["cross_entropy"](logits, y, weight))
    assert "query_accuracy" not in metrics(NUMBERS, logits, logits, loss=LOSSES["huber"])
    assert float(accuracy(logits, y.to(torch.uint8))) == 0.5


@pytest.mark.parametrize(
    ("name", "predictions", "y", "words"),
    [
        ("mse", (5,), (5, 1), "keep the last axis of the predictions"),
        ("mse", (5, 1), (5,), r"add a last axis, y\[..., None\]"),
        ("mse", (5, 2), (5, 1), r"have shape \[5, 1\], the predictions have \[5, 2\]"),
        ("huber", (5, 2), (2,), "both must be equal"),
        ("bce", (5, 3), (5,), "both must be equal"),
        ("cross_entropy", (5, 3, 2, 2), (5, 2, 2), "the classes on the last axis"),
        ("cross_entropy", (5, 3), (5, 1), "the classes on the last axis"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    name: str, predictions: Any, y: Any, words: str
) -> None:
    dtype = torch.int64 if name == "cross_entropy" else F64
    with pytest.raises(ConfigError, match=words):
        LOSSES[name](torch.zeros(predictions), torch.zeros(y, dtype=dtype))


def test_labels_weights_and_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="labels: are float32: classes are integers"):
        LOSSES["cross_entropy"](torch.zeros(5, 3), torch.zeros(5))
    with pytest.raises(ConfigError, match=r"weight: has shape \[5, 1\]"):
        LOSSES["mse"](torch.zeros(5, 3), torch.zeros(5, 3), torch.ones(5, 1))
    with pytest.raises(ConfigError, match="unknown loss 'hubert'; did you mean 'huber'"):
        criterion(NUMBERS, "hubert")
    with pytest.raises(ConfigError, match="bce does not fit classification"):
        criterion(CLASSES, "bce")
    assert criterion(CLASSES) is LOSSES["cross_entropy"] and criterion(NUMBERS) is LOSSES["mse"]


def test_distances_of_many_ways_are_those_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    z, centres = (50 + normal(fold_in(KEY, n), (9, 6), F64) for n in ("z", "centres"))
    expected = negative_squared_distance(z, centres)
    monkeypatch.setattr(heads, "LARGE", 0)
    torch.testing.assert_close(negative_squared_distance(z, centres), expected)


def test_targets_that_are_true_or_false_are_ones_and_zeros() -> None:
    outputs, y = torch.randn(5, 2), torch.tensor([True, False]).expand(5, 2)
    for name in ("mse", "huber", "bce"):
        loss = LOSSES[name]
        assert torch.equal(loss(outputs, y), loss(outputs, y.to(outputs.dtype)))
