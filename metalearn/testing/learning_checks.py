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
)
from metalearn.testing.clusters import Clusters
from metalearn.testing.sentences import expect_same
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
    shape = (TASKS, len(STEPS), spec.ways * spec.queries, spec.outputs)
    assert tuple(selected.shape) == shape and selected.dtype == F64, (
        f"predictions must be {F64} of shape [T, P, M, C] = {shape}, and are {selected.dtype} of "
        f"shape {tuple(selected.shape)}"
    )
    assert selected.isfinite().all(), "predictions must be finite, and some are not"
    text = f"predictions at the steps {STEPS} must be those of the whole path, and"
    close(selected, path[:, list(STEPS)], text)
    change, uses_steps = (path[:, 0] - path[:, -1]).abs().max(), case.method.traits.uses_steps
    assert bool(change > 1e-6) == uses_steps, (
        f"predictions must {'' if uses_steps else 'not '}change with the steps, as "
        f"traits.uses_steps is {uses_steps}, and change by {change:.3g} in {STEPS[-1]} steps"
    )
    for count in (1, 0):
        part = episode._replace(query=Batch(episode.query.x[:, :count], episode.query.y[:, :count]))
        few = predictions_of(case, state.meta, part, STEPS, keys)
        shape = (TASKS, len(STEPS), count, spec.outputs)
        assert tuple(few.shape) == shape, (
            f"predictions of {count} queries must have shape {shape}, and have {tuple(few.shape)}"
        )
        text = f"predictions of the first {count} queries alone must be those among all, and"
        close(few, selected[:, :, :count], text)


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
    assert curve.metric == "loss" and curve.scores.shape == (2, 2), (
        f"the curve of 2 regression tasks at 2 points must have losses of shape (2, 2), and has "
        f"{curve.metric} of shape {tuple(curve.scores.shape)}"
    )


def check_learning_is_a_function_of_the_tasks_key(case: Case) -> None:
    """A task is learned in the same way in a batch, alone, and a second time."""
    state, episode = case.state(), episodes(case)
    keys = fold_in(episode.info["key"], "learn")
    together = predictions_of(case, state.meta, episode, key=keys)
    text = "learning must give the same predictions a second time with the same keys, and"
    expect_same(predictions_of(case, state.meta, episode, key=keys), together, text)
    for task in (0, TASKS - 1):
        task_slice = slice(task, task + 1)
        close(
            predictions_of(case, state.meta, take(episode, task_slice), key=keys[task_slice]),
            together[task_slice],
            f"task {task} must be learned alone as in a batch of {TASKS} tasks, and",
        )


def check_queries_see_each_other_only_if_transductive(case: Case) -> None:
    """Other queries change a prediction with `query_batch` and no other policy.

    Labels of queries are not an argument."""
    expected = ["meta", "support", "query_x"]
    found = list(inspect.signature(case.method.learn).parameters)[:3]
    assert found == expected, f"the first arguments of learn must be {expected}, and are {found}"
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
        traits, transductive = policy_case.method.traits, policy == "query_batch"
        assert traits.normalisation == policy and traits.transductive == transductive, (
            f"with the normalisation {policy}, the traits must have normalisation={policy!r} and "
            f"transductive={transductive}, and have {traits.normalisation!r} and "
            f"{traits.transductive}"
        )
        assert before.isfinite().all(), f"predictions with {policy} must be finite, and are not"
        assert change > 1e-4 if transductive else change < 1e-9, (
            f"other queries must {'' if transductive else 'not '}change the prediction for a query "
            f"with the normalisation {policy}, and change it by {change:.3g}"
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
    assert unchanged["none"] == [], (
        f"a step must update every tensor of the meta, and leaves {unchanged['none']} unchanged"
    )
    only = sorted(set(unchanged["running"]) - set(unchanged["query_batch"]))
    assert not only, (
        f"a step with running statistics must update what it updates with query_batch, and leaves "
        f"{only} unchanged"
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
    expect_same(resumed, state, "a state must be the same after saving and loading, and")
    for data in steps[2:]:
        state, resumed = case.step(state, data)[0], case.step(resumed, data)[0]
    expect_same(resumed, state, "steps after loading must be those without it, and the state")
    assert state.step == len(steps), (
        f"state.step must count {len(steps)} steps, and is {int(state.step)}"
    )


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
            before, after = start.mean[0], start.mean[-1]
            assert after > before + MARGIN, (
                f"learning a new task must raise the accuracy by more than {MARGIN}, and raises it "
                f"from {before:.3f} to {after:.3f} in {points[-1]} steps (seed {seed})"
            )
            continue
        for step in range(1, case.training + 1):
            state, _ = case.step(state, case.data(step - 1, seed))
            if step % TRAINING:
                continue
            end = learning_curve(case.method, state.meta, tests, points, count, seed=seed)
            if end.mean[-1] > start.mean[-1] + MARGIN:
                break
        else:
            raise AssertionError(
                f"training must raise the accuracy on new tasks by more than {MARGIN}, and raises "
                f"it from {start.mean[-1]:.3f} to {end.mean[-1]:.3f} in {case.training} meta-steps "
                f"(seed {seed})"
            )
