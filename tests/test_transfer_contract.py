"""What holds for every method of transfer: batching, keys, policies, names, and no way in for
query labels."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import pytest
import torch
from clusters import POLICIES, Clusters, make, of_task, predictions_of

from metalearn.component import Component
from metalearn.evaluate.curves import learning_curve
from metalearn.rng import fold_in
from metalearn.transfer import (
    TRANSFER,
    BaselinePlusPlus,
    FineTune,
    LinearProbe,
    RFSDistill,
    Scratch,
)
from metalearn.tree import leaves
from metalearn.types import Batch, Episode

# Methods that draw no start for a task.
WITHOUT_START = {
    *("nearest_centroid", "simple_shot", "logistic_regression", "rfs", "knn"),
    *("rfs_distill", "linear_svm"),
    "gradient_boosting",
}
WITHOUT_NETWORK = {"gradient_boosting"}  # nothing that a policy could normalise

# what every method keeps


@pytest.mark.parametrize("name", TRANSFER)
def test_a_batch_gives_what_each_task_gives_alone(name: str) -> None:
    source = Clusters("train", 9)
    method = make(name, source.spec)
    meta, episode = method.init(fold_in(0)).meta, source.sample(fold_in(1), 3)
    keys = fold_in(episode.info["key"], "learn")
    together = predictions_of(method, meta, episode, key=keys)
    for task in range(3):
        alone = predictions_of(method, meta, of_task(task, episode), key=keys[task : task + 1])
        torch.testing.assert_close(together[task : task + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", sorted(set(TRANSFER) - WITHOUT_START))
def test_the_start_is_a_function_of_the_tasks_key(name: str) -> None:
    source = Clusters("train", 9)
    method = make(name, source.spec)
    meta, one = method.init(fold_in(0)).meta, of_task(0, source.sample(fold_in(1), 1))
    twice = Episode(*(Batch(b.x.repeat(2, 1, 1), b.y.repeat(2, 1)) for b in one[:2]), {})
    different = predictions_of(method, meta, twice, key=torch.stack([fold_in(7), fold_in(8)]))
    assert (different[0, 0] - different[1, 0]).abs().max() > 1e-2
    same = predictions_of(method, meta, twice, key=torch.stack([fold_in(7), fold_in(7)]))
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], different[0])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", sorted(set(TRANSFER) - WITHOUT_NETWORK))
def test_queries_see_each_other_only_where_the_traits_say_so(name: str, policy: str) -> None:
    source = Clusters("train", 9)
    method = make(name, source.spec, norm=policy)
    meta, episode = method.init(fold_in(0)).meta, source.sample(fold_in(1), 2)
    other = episode.query.x.clone()
    other[:, 3:] += 5
    one, two = (
        predictions_of(method, meta, episode._replace(query=Batch(x, episode.query.y)))
        for x in (episode.query.x, other)
    )
    assert one.isfinite().all()
    assert method.traits.normalisation == policy
    assert method.traits.transductive == (policy == "query_batch")
    assert torch.allclose(one[:, :, :3], two[:, :, :3], atol=1e-9) != method.traits.transductive


@pytest.mark.parametrize(
    "name", ["linear_probe", "baseline_plus_plus", "nearest_centroid", "fine_tune", "scratch"]
)
def test_under_policy_support_queries_are_normalised_by_the_support_set(name: str) -> None:
    source = Clusters("train", 9)
    method = make(name, source.spec, norm="support")
    meta, episode = method.init(fold_in(0)).meta, source.sample(fold_in(1), 2)
    itself = Episode(episode.support, episode.support, {})
    first = Episode(episode.support, Batch(episode.support.x[:, :1], episode.support.y[:, :1]), {})
    torch.testing.assert_close(
        predictions_of(method, meta, itself)[:, :, :1],
        predictions_of(method, meta, first),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("name", TRANSFER)
def test_query_labels_have_no_way_in(name: str) -> None:
    method = make(name, Clusters("train", 9).spec)
    expected = ["meta", "support", "query_x", "steps", "key", "ledger", "query_weight"]
    assert list(inspect.signature(method.learn).parameters) == expected
    assert method.task_grad is None


@pytest.mark.parametrize("name", TRANSFER)
def test_inputs_are_left_as_they_were(name: str) -> None:
    source = Clusters("train", 9)
    method, batch = make(name, source.spec), source.examples(fold_in(2), 16)
    state, episode = method.init(fold_in(0)), source.sample(fold_in(1), 2)
    given = leaves([state.meta, state.opt, state.step, batch, episode.support, episode.query])
    before = [leaf.clone() for leaf in given]
    predictions_of(method, state.meta, episode)
    if method.step is not None:
        method.step(state, batch)
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True))


def test_scratch_carries_nothing_over() -> None:
    source = Clusters("train", 9)
    method = make("scratch", source.spec)
    state = method.init(fold_in(0))
    assert method.step is None and method.update is None and method.traits.consumes == "nothing"
    assert state.meta == {} and state.opt == {} and state.lanes is None
    assert state.step.shape == () and state.step.dtype == torch.float64
    quick = make("scratch", source.spec, inner_lr=0.3)
    curve = learning_curve(quick, state.meta, source, (0, 20), episodes=200, seed=1)
    assert abs(curve.mean[0] - 1 / 3) < 4 * curve.ci95[0] / 1.96
    assert curve.mean[1] > 0.55


@pytest.mark.parametrize("component", TRANSFER.values())
def test_components_are_named_after_their_line_and_say_which_fields_adapt(
    component: type[Component],
) -> None:
    made = component()
    name = component.model_fields["name"]
    assert TRANSFER[name.default] is component
    assert typing.get_args(name.annotation) == (name.default,)
    assert component.model_validate_json(made.model_dump_json()) == made
    names = {"inner", "inner_lr", "inner_momentum", "weight_decay", "normalise", "adapts"}
    names |= {"strength", "iterations", "copies", "augment", "neighbours", "temperature"}
    names |= {"rate", "depth", "subsample", "head_start"}
    names |= {"lr_factors", "head_lr_factors", "folds"}
    # of both phases, or of the pretraining
    names -= {"temperature"} if component in (BaselinePlusPlus, RFSDistill) else set()
    adapt = names & set(component.model_fields)
    assert component.fields_at_adapt() == adapt
    assert all(info.description for info in component.model_fields.values())


@pytest.mark.parametrize("component", [Scratch, FineTune, LinearProbe, BaselinePlusPlus])
def test_step_sizes_out_of_range_are_refused(component: Any) -> None:
    for wrong in (
        {"inner_lr": 0},
        {"inner_lr": float("inf")},
        {"inner_momentum": 1},
        {"inner_lrr": 0.1},
    ):
        with pytest.raises(ValueError):
            component(**wrong)
