"""Checks of what a method learns of new tasks, and of resuming."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

import torch

from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learning_curve
from metalearn.rng import fold_in, normal
from metalearn.storage import checkpoint
from metalearn.testing.case import (
    F64,
    POLICIES,
    STEPS,
    TASKS,
    TRAINING,
    Case,
    close,
    episodes,
    needs,
    predictions_of,
    same,
)
from metalearn.testing.clusters import Clusters
from metalearn.tree import named_leaves, take
from metalearn.types import Batch


def check_predictions_have_their_shape(given: Case) -> None:
    """Predictions are [T, P, M, C] and finite, for any number of queries.

    The points asked for are those of the whole path."""
    state, episode = given.state(), episodes(given)
    spec, keys = given.method.spec, fold_in(episode.info["key"], "learn")
    few, path = (
        predictions_of(given, state.meta, episode, STEPS, keys),
        predictions_of(given, state.meta, episode, STEPS[-1], keys),
    )
    assert few.shape == (TASKS, len(STEPS), spec.ways * spec.queries, spec.outputs)
    assert few.dtype == F64
    assert few.isfinite().all()
    close(few, path[:, list(STEPS)])
    moves = bool((path[:, 0] - path[:, -1]).abs().max() > 1e-6)
    assert moves == given.method.traits.uses_steps
    for count in (1, 0):
        part = episode._replace(query=Batch(episode.query.x[:, :count], episode.query.y[:, :count]))
        cut = predictions_of(given, state.meta, part, STEPS, keys)
        assert cut.shape == (TASKS, len(STEPS), count, spec.outputs)
        close(cut, few[:, :, :count])


def check_regression_is_learned_or_refused(given: Case) -> None:
    """On tasks with one target a step and a learning curve work, [T, P, M, 1].

    Or `build` refuses them with a ConfigError, as require_classes does."""
    try:
        one = given.on_values()
    except ConfigError:
        return
    try:
        if one.method.step is not None:
            one.step(one.state(), one.data(0))
        found = learning_curve(one.method, one.state().meta, one.source, (0, 1), 2)
    except ConfigError:
        raise
    except Exception as error:
        text = (
            "regression ends with an error: a method of classes alone refuses it in `build`, with"
        )
        raise AssertionError(
            f"{text} metalearn.inner.requirements.require_classes(self.name, spec)"
        ) from error
    assert found.metric == "loss" and found.scores.shape == (2, 2)


def check_learning_is_a_function_of_the_tasks_key(given: Case) -> None:
    """A task is learned alike in a batch and alone, and alike twice."""
    state, episode = given.state(), episodes(given)
    keys = fold_in(episode.info["key"], "learn")
    together = predictions_of(given, state.meta, episode, key=keys)
    assert torch.equal(together, predictions_of(given, state.meta, episode, key=keys))
    for task in (0, TASKS - 1):
        part = slice(task, task + 1)
        close(
            predictions_of(given, state.meta, take(episode, part), key=keys[part]), together[part]
        )


def check_queries_see_each_other_only_if_transductive(given: Case) -> None:
    """Other queries change a prediction under `query_batch` and no other policy.

    Labels have no way in."""
    expected = ["meta", "support", "query_x"]
    assert list(inspect.signature(given.method.learn).parameters)[:3] == expected
    for policy in POLICIES:
        one = given.rebuild(norm=policy)
        meta, episode = one.state().meta, episodes(one)
        other = episode.query.x.clone()
        other[:, 3:] = 5 + 2 * normal(fold_in(8, "others"), other[:, 3:].shape, F64)
        before, after = (
            predictions_of(one, meta, episode._replace(query=Batch(x, episode.query.y)))
            for x in (episode.query.x, other)
        )
        change = float((before - after)[:, :, :3].abs().max())
        assert one.method.traits.normalisation == policy and before.isfinite().all()
        assert one.method.traits.transductive == (policy == "query_batch"), policy
        assert change > 1e-4 if one.method.traits.transductive else change < 1e-9, (policy, change)


@needs("step")
def check_every_leaf_receives_gradient(given: Case) -> None:
    """One step moves every leaf of the meta.

    With running statistics these, and what moves without them: not a bias that the mean of the
    batch takes out again."""
    still = {}
    for policy in ("none", "query_batch", "running"):
        one = given.rebuild(norm=policy)
        state = one.state()
        after, _ = one.step(state, one.data(0))
        old, new = named_leaves(state.meta), named_leaves(after.meta)
        still[policy] = [name for name in old if torch.equal(old[name], new[name])]
    assert still["none"] == [] and set(still["running"]) <= set(still["query_batch"]), still


def check_resuming_is_bitwise(given: Case) -> None:
    """Two steps, save, load into another start, two steps: the same bits as four steps at once."""
    state = given.method.init(fold_in(0, "init"))
    if given.method.step is None:
        steps: list[Any] = []
    else:
        steps = [given.data(number) for number in range(4)]
    for data in steps[:2]:
        state, _ = given.step(state, data)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.path_of(Path(folder), 2)
        checkpoint.save(path, state)
        again = checkpoint.load(path, given.method.init(fold_in(1, "another")))
    assert same(again, state)
    for data in steps[2:]:
        state, again = given.step(state, data)[0], given.step(again, data)[0]
    assert same(again, state) and state.step == len(steps)


# accuracy gained over the method's own start, on tasks of classes that were not trained on
MARGIN = 0.06


def check_it_learns(given: Case) -> None:
    """New tasks are learned better than from the start, by three seeds.

    Without training, better than not at all."""
    tests = Clusters("test", 24)
    points = (0, 5) if given.method.traits.uses_steps else (0,)
    count = 100 if given.method.traits.host_side else 300  # a task may be a whole search
    for seed in range(3):
        state = given.state(seed)
        start = learning_curve(given.method, state.meta, tests, points, count, seed=seed)
        if given.method.step is None:
            assert start.mean[-1] > start.mean[0] + MARGIN, start.mean
            continue
        for number in range(1, given.training + 1):
            state, _ = given.step(state, given.data(number - 1, seed))
            if number % TRAINING:
                continue
            end = learning_curve(given.method, state.meta, tests, points, count, seed=seed)
            if end.mean[-1] > start.mean[-1] + MARGIN:
                break
        else:
            raise AssertionError((seed, start.mean, end.mean))
