"""The policy `running`: batch statistics in training, running averages on new tasks, as torch's
batch norm in its two modes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import sinusoid
from small import F64, gap, pictures
from torch import Tensor, nn

from metalearn.algorithms import ANIL, MAML, MetaOptNet, ProtoNet, Reptile
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.executors import executor
from metalearn.inner.recompute import checkpointing
from metalearn.inner.rules import SGD
from metalearn.models import MLP, Conv4
from metalearn.models.external.from_module import from_module
from metalearn.padding import padding_scope
from metalearn.rng import fold_in, normal
from metalearn.run.directory import status, why_other
from metalearn.run.run import run_one
from metalearn.scopes.running_statistics import training_scope
from metalearn.storage import checkpoint
from metalearn.transfer import LinearProbe
from metalearn.tree import stack, take
from metalearn.types import EpisodeSpec, Params

LR = 0.1
STRIDES = pytest.mark.parametrize("downsample", ["stride", "pool"])


def network(downsample: str, params: Params, outputs: int = 0) -> nn.Sequential:
    """Conv4 of 4 filters in torch's layers, with these parameters."""
    stride, blocks = (2, []) if downsample == "stride" else (1, [nn.MaxPool2d(2)])
    layers: list[nn.Module] = []
    for place in range(4):
        conv = nn.Conv2d(1 if place == 0 else 4, 4, 3, stride, 1)
        layers += [conv, nn.BatchNorm2d(4), nn.ReLU(), *blocks]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    for (conv, norm), place in zip(pairs(net), range(4), strict=True):
        part = {"weight": params[f"convs.{place}.weight"], "bias": params[f"convs.{place}.bias"]}
        conv.load_state_dict(part)
        part = {name: params[f"norms.{place}.{name}"] for name in ("weight", "bias")}
        norm.load_state_dict({**norm.state_dict(), **part})
    return net


def pairs(net: nn.Sequential) -> list[tuple[nn.Module, nn.Module]]:
    convs = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    return list(zip(convs, [x for x in net if isinstance(x, nn.BatchNorm2d)], strict=True))


def holds(params: Params, net: nn.Sequential) -> None:
    """The parameters and running statistics of both are equal."""
    for place, (conv, norm) in enumerate(pairs(net)):
        named = {f"convs.{place}.weight": conv.weight, f"norms.{place}.weight": norm.weight}
        named |= {f"stats.norms.{place}.mean": norm.running_mean}
        named |= {f"stats.norms.{place}.var": norm.running_var}
        for name, value in named.items():
            torch.testing.assert_close(params[name], value.detach(), rtol=1e-8, atol=1e-10)


def descend(net: nn.Module, loss: Tensor) -> None:
    net.zero_grad()
    loss.backward()
    with torch.no_grad():
        for value in net.parameters():
            value -= LR * value.grad


@STRIDES
def test_pretraining_is_torchs_in_training_mode_and_new_tasks_in_evaluation(
    downsample: Any,
) -> None:
    source = pictures()
    learner = Conv4(filters=4, downsample=downsample, norm="running").build(source.spec)
    method = LinearProbe(outer=SGD(lr=LR)).build(learner, source.spec)
    state = method.init(fold_in(0))
    head = nn.Linear(4, 8).double()
    head.load_state_dict({n[5:]: x for n, x in state.meta["pretrain_head"].items()})
    net = network(downsample, state.meta["params"])
    whole = nn.Sequential(net, head).train()
    for step in range(3):
        batch = source.examples(fold_in(1, step), 24)
        state, _ = method.step(state, batch)  # type: ignore[misc]
        descend(whole, nn.functional.cross_entropy(whole(batch.x), batch.y))
    holds(state.meta["params"], net)
    x = normal(fold_in(2), (5, 1, 16, 16), F64)
    found = learner.features(state.meta["params"], x, context=x[:2])
    torch.testing.assert_close(found, net.eval()(x), rtol=1e-8, atol=1e-10)
    assert not method.traits.transductive and method.traits.normalisation == "running"


@STRIDES
@pytest.mark.parametrize("one_pass", [True, False])
def test_training_on_a_task_is_torchs(downsample: Any, one_pass: bool) -> None:
    """ProtoNet passes support and queries together, MetaOptNet one after the other."""
    source = pictures()
    learner = Conv4(filters=4, downsample=downsample, norm="running").build(source.spec)
    component = ProtoNet(outer=SGD(lr=LR)) if one_pass else MetaOptNet(outer=SGD(lr=LR))
    method = component.build(learner, source.spec)
    state = method.init(fold_in(0))
    params = state.meta if one_pass else state.meta["params"]
    net = network(downsample, params).train()
    state, _ = method.step(state, source.sample(fold_in(1), 1))  # type: ignore[misc]
    episode = take(source.sample(fold_in(1), 1), 0)
    (support, y, _), (query, labels, _) = episode.support, episode.query
    if one_pass:
        z, asked = net(torch.cat([support, query])).split([3, 6])
        centres = torch.stack([z[y == n].mean(0) for n in range(3)])
        logits = -(asked.unsqueeze(1) - centres).square().sum(-1)
        loss = nn.functional.cross_entropy(logits, labels)
    else:
        z, asked = net(support), net(query)
        ridge = 50 * torch.eye(3, dtype=F64)
        one_hot = nn.functional.one_hot(y, 3).double()
        weight = z.T @ torch.linalg.solve(z @ z.T + ridge, one_hot)
        target = 0.05 + (0.9 - 0.05) * nn.functional.one_hot(labels, 3).double()
        loss = -(target * (2.0 * asked @ weight).log_softmax(-1)).sum(-1).mean()
    descend(net, loss)
    holds(state.meta if one_pass else state.meta["params"], net)


METHODS = [MAML(inner_steps=2, inner_lr=0.1), ANIL(inner_steps=2), ProtoNet(), Reptile()]


@pytest.mark.parametrize("component", METHODS, ids=lambda component: component.name)
@pytest.mark.parametrize("how", ["loop", "chunk", "traced", "threads"])
def test_pieces_move_the_averages_as_the_whole_does(component: Any, how: str) -> None:
    """One step of 5 tasks in each executor; the averages are those over tasks."""
    source = pictures()
    learner = Conv4(filters=4, norm="running").build(source.spec)
    method = component.build(learner, source.spec, 10)
    state, tasks = method.init(fold_in(0)), source.sample(fold_in(1), 5)
    name, *options = ("chunk", 2, 2) if how == "threads" else (how, 2 if how == "chunk" else None)
    one, other = (executor.make_step(method, *way) for way in (("vmap",), (name, *options)))
    whole, pieces = one(state, tasks)[0], other(state, tasks)[0]
    assert gap(pieces.meta, whole.meta) < 1e-9
    moved = [leaf for leaf in whole.meta if leaf.startswith("stats.")]
    assert moved and all((whole.meta[leaf] != state.meta[leaf]).any() for leaf in moved)
    assert all(torch.equal(whole.meta[leaf], whole.meta[leaf].detach()) for leaf in moved)


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.5, 0.25]])
@pytest.mark.parametrize("kind", ["own", "torch"])
def test_the_variance_of_one_example_is_zero_and_no_division_by_zero(
    kind: str, weights: list[float]
) -> None:
    spec = EpisodeSpec("regression", 1, 2, 2, (3,), 1, 0, dtype=F64)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    learner = MLP(sizes=(4,), norm="running").build(spec)
    if kind == "torch":
        learner = from_module(net, spec, policy="running")
    params, x = learner.init(fold_in(0)), normal(fold_in(1), (2, 3), F64)
    with training_scope() as scope, padding_scope(torch.tensor(weights, dtype=F64)):
        learner.apply(params, x)
        after = scope.updated(params)
    (name,) = (name for name in after if name.startswith("stats.") and "var" in name)
    assert after[name].isfinite().all() and (after[name] >= 0).all()
    if weights[1] == 0:
        torch.testing.assert_close(after[name], 0.9 * torch.ones(4, dtype=F64))


def test_recomputed_inner_steps_normalise_by_the_batch_too() -> None:
    source = pictures()
    learner = Conv4(filters=4, norm="running").build(source.spec)
    method = MAML(inner_steps=2, inner_lr=0.1, outer=SGD(lr=LR)).build(learner, source.spec)
    state, tasks = method.init(fold_in(0)), source.sample(fold_in(1), 2)
    found, _ = method.step(state, tasks)  # type: ignore[misc]
    with checkpointing():
        again, _ = method.step(state, tasks)  # type: ignore[misc]
    assert gap(again.meta, found.meta) < 1e-9


@pytest.mark.parametrize(
    ("how", "steps"),
    [("compiled_steps", 2), ("compiled", 1)],  # C++ of every step of "compiled"
    ids=["compiled_steps", "compiled"],
)
@pytest.mark.skipif(not executor.compiler_found(), reason="no C++ compiler was found")
def test_compiled_training_leaves_new_tasks_to_the_averages(how: str, steps: int) -> None:
    """A compiled inner step of training is not the one of new tasks."""
    source = pictures()
    learner = Conv4(filters=4, norm="running").build(source.spec)
    method = MAML(inner_steps=steps, inner_lr=0.1).build(learner, source.spec)
    state, tasks = method.init(fold_in(0)), source.sample(fold_in(1), 2)
    expected, _ = method.step(state, tasks)  # type: ignore[misc]
    before = method.learn(state.meta, tasks.support, tasks.query.x, steps).predictions
    found, _ = executor.make_step(method, how)(state, tasks)
    assert gap(found.meta, expected.meta) < 1e-7
    after = method.learn(state.meta, tasks.support, tasks.query.x, steps).predictions
    torch.testing.assert_close(after, before)


def test_a_run_is_resumed_with_its_averages(tmp_path: Path) -> None:
    source = pictures()
    learner = Conv4(filters=4, norm="running").build(source.spec)
    method = ProtoNet().build(learner, source.spec)
    state = method.init(fold_in(0))
    for step in range(4):
        state, _ = method.step(state, source.sample(fold_in(1, step), 2))  # type: ignore[misc]
        if step == 1:
            path = checkpoint.path_of(tmp_path, 2)
            checkpoint.save(path, state)
    again = checkpoint.load(path, method.init(fold_in(9)))
    for step in (2, 3):
        again, _ = method.step(again, source.sample(fold_in(1, step), 2))  # type: ignore[misc]
    assert all(torch.equal(again.meta[leaf], value) for leaf, value in state.meta.items())


@pytest.mark.parametrize("norm", ["running", "query_batch"])
def test_runs_of_versions_with_other_training_steps_are_not_continued(
    norm: str, tmp_path: Path
) -> None:
    """Their environment.json lacks the mark of training steps that normalise by the batch."""
    run = {"meta_steps": 2, "checkpoint_every": 1, "validate": {"every": None}}
    data = sinusoid(model={"name": "mlp", "sizes": [4], "norm": norm}, run=run)
    one = parse({**data, "evaluate": {"episodes": 2, "steps": [0, 1]}}).experiments[0]
    run_one(one, tmp_path)
    path = tmp_path / "environment.json"
    facts = json.loads(path.read_text())
    assert facts.pop("training_statistics") == "batch"
    assert status(tmp_path, one) == "finished"
    path.write_text(json.dumps(facts))
    assert status(tmp_path, one) == ("other" if norm == "running" else "finished")
    if norm == "running":
        assert "older version" in why_other(tmp_path)
    (tmp_path / "result.json").unlink()
    if norm == "running":
        with pytest.raises(ConfigError, match="older version"):
            run_one(one, tmp_path)
        return
    run_one(one, tmp_path)
    assert status(tmp_path, one) == "finished"


def test_a_module_from_outside_trains_as_in_training_mode() -> None:
    source = pictures()
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 6), nn.BatchNorm1d(6, momentum=0.3), nn.ReLU(), nn.Linear(6, 3)
    ).double()
    learner = from_module(net, source.spec, policy="running", keep=True)
    method = ProtoNet(outer=SGD(lr=LR)).build(learner, source.spec)
    state, tasks = method.init(fold_in(0)), source.sample(fold_in(1), 2)
    new, _ = method.step(state, tasks)  # type: ignore[misc]
    means = []
    for task in range(2):
        norm = nn.BatchNorm1d(6, momentum=0.3).double()
        episode = take(tasks, task)
        norm(net[1](torch.cat([episode.support.x, episode.query.x]).flatten(1)))
        means.append(dict(norm.state_dict()))
    for name, value in stack(means).items():
        leaf = next((leaf for leaf in new.meta if leaf.endswith(name)), None)
        if "running" in name:
            assert leaf is not None
            torch.testing.assert_close(new.meta[leaf], value.mean(0), rtol=1e-9, atol=1e-12)
