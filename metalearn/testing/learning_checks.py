"""Checks of how a method learns new tasks, and of resuming."""

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


def check_predictions_have_their_shape(case: Case) -> None:
    """Predictions are [T, P, M, C] and finite, for any number of queries.

    Those at single steps are equal to those of the whole path."""
    state, episode = case.state(), episodes(case)
    spec, keys = case.method.spec, fold_in(episode.info["key"], "learn")
    selected, path = (
        predictions_of(case, state.meta, episode, STEPS, keys),
        predictions_of(case, state.meta, episode, STEPS[-1], keys),
    )
    assert selected.shape == (TASKS, len(STEPS), spec.ways * spec.queries, spec.outputs)
    assert selected.dtype == F64
    assert selected.isfinite().all()
    close(selected, path[:, list(STEPS)])
    changes = bool((path[:, 0] - path[:, -1]).abs().max() > 1e-6)
    assert changes == case.method.traits.uses_steps
    for count in (1, 0):
        part = episode._replace(query=Batch(episode.query.x[:, :count], episode.query.y[:, :count]))
        few = predictions_of(case, state.meta, part, STEPS, keys)
        assert few.shape == (TASKS, len(STEPS), count, spec.outputs)
        close(few, selected[:, :, :count])


def check_regression_is_learned_or_refused(case: Case) -> None:
    """On tasks with one target, a step and a learning curve work, [T, P, M, 1].

    Or `build` refuses them with a ConfigError, as require_classes does."""
    try:
        regression = case.on_values()
    except ConfigError:
        return
    try:
        if regression.method.step is not None:
            regression.step(regression.state(), regression.data(0))
        curve = learning_curve(
            regression.method, regression.state().meta, regression.source, (0, 1), 2
        )
    except ConfigError:
        raise
    except Exception as error:
        text = (
            "regression ends with an error: a method of classes alone refuses it in `build`, with"
        )
        raise AssertionError(
            f"{text} metalearn.inner.requirements.require_classes(self.name, spec)"
        ) from error
    assert curve.metric == "loss" and curve.scores.shape == (2, 2)


def check_learning_is_a_function_of_the_tasks_key(case: Case) -> None:
    """A task is learned in the same way in a batch, alone, and a second time."""
    state, episode = case.state(), episodes(case)
    keys = fold_in(episode.info["key"], "learn")
    together = predictions_of(case, state.meta, episode, key=keys)
    assert torch.equal(together, predictions_of(case, state.meta, episode, key=keys))
    for task in (0, TASKS - 1):
        task_slice = slice(task, task + 1)
        close(
            predictions_of(case, state.meta, take(episode, task_slice), key=keys[task_slice]),
            together[task_slice],
        )


def check_queries_see_each_other_only_if_transductive(case: Case) -> None:
    """Other queries change a prediction with `query_batch` and no other policy.

    Labels of queries are not an argument."""
    expected = ["meta", "support", "query_x"]
    assert list(inspect.signature(case.method.learn).parameters)[:3] == expected
    for policy in POLICIES:
        policy_case = case.rebuild(norm=policy)
        meta, episode = policy_case.state().meta, episodes(policy_case)
        changed_x = episode.query.x.clone()
        changed_x[:, 3:] = 5 + 2 * normal(fold_in(8, "others"), changed_x[:, 3:].shape, F64)
        before, after = (
            predictions_of(policy_case, meta, episode._replace(query=Batch(x, episode.query.y)))
            for x in (episode.query.x, changed_x)
        )
        change = float((before - after)[:, :, :3].abs().max())
        assert policy_case.method.traits.normalisation == policy and before.isfinite().all()
        assert policy_case.method.traits.transductive == (policy == "query_batch"), policy
        assert change > 1e-4 if policy_case.method.traits.transductive else change < 1e-9, (
            policy,
            change,
        )


@needs("step")
def check_every_leaf_receives_gradient(case: Case) -> None:
    """One step updates every leaf of the meta.

    With running statistics it updates them, and all leaves that `query_batch` updates, which need
    not include a bias that the mean of the batch cancels."""
    unchanged = {}
    for policy in ("none", "query_batch", "running"):
        policy_case = case.rebuild(norm=policy)
        state = policy_case.state()
        after, _ = policy_case.step(state, policy_case.data(0))
        old, new = named_leaves(state.meta), named_leaves(after.meta)
        unchanged[policy] = [name for name in old if torch.equal(old[name], new[name])]
    assert unchanged["none"] == [] and set(unchanged["running"]) <= set(unchanged["query_batch"]), (
        unchanged
    )


def check_resuming_is_bitwise(case: Case) -> None:
    """Two steps, save, load into another state, two steps: bitwise equal to four steps."""
    state = case.method.init(fold_in(0, "init"))
    if case.method.step is None:
        steps: list[Any] = []
    else:
        steps = [case.data(step) for step in range(4)]
    for data in steps[:2]:
        state, _ = case.step(state, data)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.path_of(Path(folder), 2)
        checkpoint.save(path, state)
        resumed = checkpoint.load(path, case.method.init(fold_in(1, "another")))
    assert same(resumed, state)
    for data in steps[2:]:
        state, resumed = case.step(state, data)[0], case.step(resumed, data)[0]
    assert same(resumed, state) and state.step == len(steps)


# gain in accuracy over the initial state, on tasks of classes that were not trained on
MARGIN = 0.06


def check_it_learns(case: Case) -> None:
    """New tasks are learned better after training than before, with each of three seeds.

    Methods without training must be better after their steps than before them."""
    tests = Clusters("test", 24)
    points = (0, 5) if case.method.traits.uses_steps else (0,)
    count = 100 if case.method.traits.host_side else 300  # a task may be a whole search
    for seed in range(3):
        state = case.state(seed)
        start = learning_curve(case.method, state.meta, tests, points, count, seed=seed)
        if case.method.step is None:
            assert start.mean[-1] > start.mean[0] + MARGIN, start.mean
            continue
        for step in range(1, case.training + 1):
            state, _ = case.step(state, case.data(step - 1, seed))
            if step % TRAINING:
                continue
            end = learning_curve(case.method, state.meta, tests, points, count, seed=seed)
            if end.mean[-1] > start.mean[-1] + MARGIN:
                break
        else:
            raise AssertionError((seed, start.mean, end.mean))
