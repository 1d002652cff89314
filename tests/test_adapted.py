"""New tasks learned from labelled examples by a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.rng import fold_in
from metalearn.run.load import LoadedRun, load_run
from metalearn.run.run import run_one
from metalearn.tree import take

GLYPHS: dict[str, Any] = {
    "experiment": "tiny",
    "task": {"source": "glyphs", "ways": 3, "shots": 1, "queries": 2},
    "model": {"name": "conv4", "filters": 4, "downsample": "stride", "norm": "support"},
    "run": {"meta_steps": 2, "tasks_per_step": 2, "executor": "vmap"},
    "evaluate": {"episodes": 2, "steps": [0, 1]},
}


def trained(folder: Path, method: dict[str, Any], **sections: Any) -> LoadedRun:
    run_one(parse({**GLYPHS, "method": method, **sections}).experiments[0], folder)
    return load_run(folder)


@pytest.fixture(scope="module")
def maml(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return trained(tmp_path_factory.mktemp("maml") / "run", {"name": "maml", "inner_lr": 0.1})


@pytest.fixture(scope="module")
def proto_net(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return trained(tmp_path_factory.mktemp("proto_net") / "run", {"name": "proto_net"})


def test_a_task_is_learned_as_an_episode_is(maml: LoadedRun) -> None:
    episode = maml.source.sample(fold_in(5), 1)
    one = take(episode, 0)
    learned = maml.method.learn(maml.state.meta, episode.support, episode.query.x, (2,))
    task = maml.adapt(one.support.x, one.support.y, steps=2)
    torch.testing.assert_close(task.outputs(one.query.x), learned.predictions[0, 0])
    probabilities = task.predict_proba(one.query.x)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(6))
    assert torch.equal(task.predict(one.query.x), probabilities.argmax(-1))


def test_the_adapted_module_gives_the_same_answers(maml: LoadedRun) -> None:
    one = take(maml.source.sample(fold_in(6), 1), 0)
    task = maml.adapt(one.support.x, one.support.y, steps=1)
    module = task.module()
    torch.testing.assert_close(module(one.query.x).detach(), task.outputs(one.query.x))
    assert set(module.state_dict()) == set(maml.state.meta)
    module(one.query.x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_labels_are_of_any_kind_and_unequal_in_number(proto_net: LoadedRun) -> None:
    x = np.random.default_rng(0).random((7, 1, 28, 28), dtype=np.float32)
    y = ["cat", "dog", "cat", "emu", "emu", "emu", "fox"]
    task = proto_net.adapt(x, y)
    found = task.predict(x)
    assert isinstance(found, np.ndarray) and set(found) <= set(y)
    assert task.predict_proba(x).shape == (7, 4) and list(task.classes) == sorted(set(y))
    alone = proto_net.adapt(x[[6, 1, 0, 2, 3, 4, 5]], [y[i] for i in (6, 1, 0, 2, 3, 4, 5)])
    np.testing.assert_allclose(alone.predict_proba(x), task.predict_proba(x), atol=1e-5)


def test_regression_and_methods_on_the_host(tmp_path: Path) -> None:
    sections = {"task": {"source": "sinusoid", "shots": 5, "queries": 5}, "model": {"name": "mlp"}}
    run = trained(tmp_path / "a", {"name": "maml"}, **sections)
    x = np.linspace(-5, 5, 8)[:, None]
    task = run.adapt(x, np.sin(x[:, 0]), steps=3)
    assert task.predict(x).shape == (8, 1)
    with pytest.raises(ConfigError, match="regression"):
        task.predict_proba(x)
    module = task.module()
    outputs = module(torch.as_tensor(x, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(outputs, task.predict(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (np.zeros((3, 1, 20, 20)), [0, 1, 2], r"shape \[B, 1, 28, 28\]"),
        (np.zeros((3, 1, 28, 28), np.uint8), [0, 1, 2], "floats in 0..1"),
        (np.full((3, 1, 28, 28), np.nan), [0, 1, 2], "finite"),
        (np.zeros((3, 1, 28, 28)), [0, 1], "2 entries for 3 inputs"),
        (np.zeros((3, 1, 28, 28)), [1, 1, 1], "at least 2 classes"),
        (np.zeros((4, 1, 28, 28)), [0, 1, 2, 3], "learned for 3"),
        (np.zeros((0, 1, 28, 28)), [], "B >= 1"),
    ],
)
def test_examples_that_do_not_fit_are_refused(maml: LoadedRun, x: Any, y: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        maml.adapt(x, y)


def test_a_metric_learner_has_no_weights_to_take_away(proto_net: LoadedRun) -> None:
    one = take(proto_net.source.sample(fold_in(6), 1), 0)
    with pytest.raises(ConfigError, match="adapts no weights"):
        proto_net.adapt(one.support.x, one.support.y).module()
