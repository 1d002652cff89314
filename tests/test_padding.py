"""Padding changes nothing: the common check of every method, and what refuses weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from checks import Case, case, close, episodes
from torch import Tensor

import metalearn as ml
from metalearn.config.registry import METHODS
from metalearn.errors import ConfigError
from metalearn.inner.heads import is_head
from metalearn.inner.method import make_step_over_tasks
from metalearn.labels import check_labels
from metalearn.padding import weighted_moments
from metalearn.rng import fold_in, normal
from metalearn.tree import leaves
from metalearn.types import Batch, Episode

# Methods that refuse weights, in a sentence; all others are checked.
REFUSING = {"learn_optimizer", "per_task_nas", "shared_nas", "meta_nas"}
TAKING = sorted(set(METHODS) - REFUSING)
DRAWS_BY_WEIGHT = {"reptile"}  # minibatches of weighted support sets are other draws
EXACT = {torch.float64: 1e-12, torch.float32: 1e-6}
# Steps that divide by small numbers make up to 3e-6 of the float32 rounding of CPUs with AVX-512;
# in float64 they keep the limit of all.
ENLARGE_ROUNDING = {"imaml_hessian_free": 1e-5, "tuned_adam": 1e-5}


def weighted(batch: Batch, dtype: torch.dtype, padding: int = 0, junk: float = 0.0) -> Batch:
    """Weights of 1, and `padding` examples of weight 0 behind, full of `junk`."""
    tasks, count = batch.y.shape
    weight = torch.ones(tasks, count, dtype=dtype)
    if not padding:
        return batch._replace(weight=weight)
    extra = normal(fold_in(1, "junk"), (tasks, padding, *batch.x.shape[2:]), dtype) + junk
    x = torch.cat([batch.x, extra], 1)
    y = torch.cat([batch.y, torch.full_like(batch.y[:, :padding], -1)], 1)
    return Batch(x, y, torch.cat([weight, weight.new_zeros(tasks, padding)], 1))


def variants(given: Case, dtype: torch.dtype, junk: float) -> tuple[Episode, Episode]:
    """(the same episodes with weights, and with padding)."""
    plain = episodes(given)
    sets = plain.support, plain.query
    ones = [weighted(one, dtype) for one in sets]
    padded = [weighted(one, dtype, n, junk) for one, n in zip(sets, (3, 5), strict=True)]
    return plain._replace(support=ones[0], query=ones[1]), plain._replace(
        support=padded[0], query=padded[1]
    )


def learned(given: Case, meta: Any, episode: Episode) -> Tensor:
    keys = fold_in(episode.info["key"], "learn")
    weight = {"query_weight": episode.query.weight} if episode.query.weight is not None else {}
    found = given.method.learn(
        meta, episode.support, episode.query.x, (0, 1, 3), key=keys, **weight
    )
    predictions: Tensor = found.predictions
    return predictions


@pytest.mark.parametrize("junk", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["64", "32"])
@pytest.mark.parametrize("name", TAKING)
def test_padding_changes_nothing(name: str, dtype: torch.dtype, junk: float) -> None:
    given = case(name, METHODS[name], dtype=dtype)
    ones, padded = variants(given, dtype, junk)
    state, limit = given.state(), EXACT[dtype]
    if dtype == torch.float32:
        limit = ENLARGE_ROUNDING.get(name, limit)
    plain = learned(given, state.meta, ones)
    other = learned(given, state.meta, padded)[:, :, : plain.shape[2]]
    torch.testing.assert_close(other, plain, rtol=limit, atol=limit)
    if given.method.task_grad is None:
        return
    found = [given.step(state, one) for one in (ones, padded)]
    for one, two in zip(leaves(found[0]), leaves(found[1]), strict=True):
        torch.testing.assert_close(one, two, rtol=10 * limit, atol=10 * limit)


@pytest.mark.parametrize("norm", ["query_batch", "support", "support_plus_one", "running"])
@pytest.mark.parametrize("name", ["maml", "proto_net", "anil", "reptile", "fine_tune"])
def test_padding_changes_no_statistic_of_normalisation(name: str, norm: str) -> None:
    given = case(name, METHODS[name], norm=norm)
    ones, padded = variants(given, torch.float64, 100.0)
    state = given.state()
    plain = learned(given, state.meta, ones)
    other = learned(given, state.meta, padded)[:, :, : plain.shape[2]]
    torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-10)
    if given.method.task_grad is not None:
        close(given.step(state, ones), given.step(state, padded), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(TAKING) - DRAWS_BY_WEIGHT))
def test_weights_of_one_are_no_weights(name: str) -> None:
    given = case(name, METHODS[name])
    ones, _ = variants(given, torch.float64, 0.0)
    plain, meta = episodes(given), given.state().meta
    torch.testing.assert_close(
        learned(given, meta, ones), learned(given, meta, plain), rtol=1e-10, atol=1e-10
    )


def without_class(given: Case, last: int) -> Episode:
    """Episodes whose examples of class `last` are padding."""
    episode = variants(given, torch.float64, 0.0)[0]
    support, query = (one._replace(weight=(one.y != last).to(torch.float64)) for one in episode[:2])
    return episode._replace(support=support, query=query)


def of_two_classes(episode: Episode) -> Episode:
    """The same tasks without the third class, whose examples are left out."""

    def part(batch: Batch) -> Batch:
        tasks = len(batch.y)
        chosen = batch.y < 2
        x = batch.x[chosen].reshape(tasks, -1, *batch.x.shape[2:])
        return Batch(x, batch.y[chosen].reshape(tasks, -1))

    return episode._replace(support=part(episode.support), query=part(episode.query))


@pytest.mark.parametrize(
    "name",
    ["maml", "anil", "boil", "proto_net", "nearest_centroid", "metaopt_svm", "linear_svm"],
)
def test_a_class_that_is_padding_is_no_class(name: str) -> None:
    given = case(name, METHODS[name])
    episode, meta = without_class(given, 2), given.state().meta
    found = learned(given, meta, episode)
    fewer = dataclasses.replace(given.source.spec, ways=2, outputs=2)
    small = {"maml", "anil", "boil"}
    other = {n: v[:2] if is_head(n) else v for n, v in meta.items()} if name in small else meta
    learner = ml.models.MLP(sizes=(8, 7), activation="tanh").build(fewer)
    from method_options import OPTIONS

    method = METHODS[name](**OPTIONS.get(name, {})).build(learner, fewer)
    plain = of_two_classes(episode)
    keys = fold_in(episode.info["key"], "learn")
    alone = method.learn(other, plain.support, plain.query.x, (0, 1, 3), key=keys).predictions
    tasks, points = found.shape[:2]
    mine = episode.query.y.unsqueeze(1).expand(tasks, points, -1) < 2
    rows = found[mine].reshape(tasks, points, -1, 3)
    torch.testing.assert_close(rows[..., :2], alone, rtol=1e-10, atol=1e-10)
    assert (rows.softmax(-1)[..., 2] == 0).all()


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_methods_without_weights_refuse_them(name: str) -> None:
    source = case("maml", METHODS["maml"]).source
    spec = dataclasses.replace(source.spec, padded=True)
    learner = ml.models.MLP(sizes=(8,)).build(spec)
    from method_options import OPTIONS

    options: dict[str, Any] = {}
    if METHODS[name].contains_by_default is not None:
        options["contained"] = ml.algorithms.MAML()
    with pytest.raises(ConfigError, match="does not support example weights"):
        METHODS[name](**OPTIONS.get(name, {})).build(learner, spec, **options)


def test_padding_in_pretraining_changes_nothing() -> None:
    given = case("fine_tune", METHODS["fine_tune"], norm="query_batch")
    batch = given.data(0)
    ones = batch._replace(weight=torch.ones(len(batch.y), dtype=torch.float64))
    zeros = torch.cat([ones.weight, torch.zeros(4, dtype=torch.float64)])
    padded = Batch(torch.cat([batch.x, 9 * batch.x[:4]]), torch.cat([batch.y, batch.y[:4]]), zeros)
    state = given.state()
    close(given.step(state, ones), given.step(state, padded), rtol=1e-10, atol=1e-10)
    close(given.step(state, batch), given.step(state, ones), rtol=1e-10, atol=1e-10)


def test_weighted_moments_are_those_of_repeated_examples() -> None:
    x = normal(fold_in(0, "x"), (4, 3, 5), torch.float64)
    weight = torch.tensor([2.0, 0, 1, 3], dtype=torch.float64)
    repeated = x.repeat_interleave(weight.long(), 0).transpose(0, 1).flatten(1)
    mean, var, count = weighted_moments(x, weight)
    torch.testing.assert_close(mean, repeated.mean(1))
    torch.testing.assert_close(var, repeated.var(1, correction=0))
    assert count == repeated.shape[1]


def test_labels_that_are_no_classes_of_a_task_are_refused() -> None:
    given = case("maml", METHODS["maml"])
    episode, state = episodes(given), given.state()
    for change in (1, 7, -1):
        wrong = episode._replace(support=episode.support._replace(y=episode.support.y + change))
        with pytest.raises(ConfigError, match=r"a task of 3 ways has 0 \.\. 2"):
            given.step(state, wrong)
    fewer = episode.support._replace(y=episode.support.y.clamp(max=1))
    with pytest.raises(ConfigError, match="no example of class 2"):
        given.step(state, episode._replace(support=fewer))
    assert make_step_over_tasks is not None


def test_labels_of_every_place_are_checked_too() -> None:
    """Of a tagger [T, B, L], where -100 stands for no label in other packages."""
    x, y = torch.zeros(2, 6, 4), torch.arange(6).remainder(3).expand(2, 6).unsqueeze(-1)
    labels = y.expand(2, 6, 4).clone()
    good = Batch(x, labels)
    check_labels(Episode(good, good, {}), 3)
    labels = labels.clone()
    labels[1, 5, 2] = -100
    wrong = Batch(x, labels)
    with pytest.raises(ConfigError, match=r"of the query set are -100, .* has 0 \.\. 2"):
        check_labels(Episode(good, wrong, {}), 3)
    weight = torch.ones(2, 6)
    weight[1, 5] = 0
    padding = Batch(x, labels, weight)
    check_labels(Episode(padding, padding, {}), 3)


def test_byte_labels_are_computed() -> None:
    given = case("proto_net", METHODS["proto_net"])
    episode, state = episodes(given), given.state()
    small = episode._replace(
        support=episode.support._replace(y=episode.support.y.to(torch.uint8)),
        query=episode.query._replace(y=episode.query.y.to(torch.uint8)),
    )
    close(given.step(state, small), given.step(state, episode))
