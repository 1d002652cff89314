"""Reptile whose new tasks start from the slots that training left, against loops in float64."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import SHOTS, SPEC, WAYS, classifier, cross_entropy, episode_of, forward, stacked
from checks import Check, case, close, parametrize
from commandline import Commands, sinusoid, write
from test_algorithms_reptile import published_minibatches
from test_distributed import CHOICES, EXACT, side_by_side
from torch import Tensor

import metalearn as ml
from metalearn import rng
from metalearn.algorithms import Reptile
from metalearn.algorithms.reptile import ORDER, SLOTS
from metalearn.config.experiment import parse
from metalearn.executors import executor, trace
from metalearn.inner.rules import SGD, Momentum
from metalearn.storage import checkpoint
from metalearn.testing import METHOD_CHECKS
from metalearn.tree import named_leaves, tree_map
from metalearn.types import Batch, Episode, Params

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
RATE = 0.02
REPTILE = Reptile(inner_steps=4, inner_lr=RATE, inner_batch=5, adapt_batch=5, adapt_slots="trained")
STEPS = 6
KEYS = rng.fold_in(8, torch.arange(1))  # of learning the new task


def gradients(params: Params, support: Batch, piece: list[int]) -> Params:
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    loss = cross_entropy(leaves, Batch(support.x[piece], support.y[piece]))
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def adam_by_hand(
    theta: Params, slots: dict[str, Any], support: Batch, pieces: Any
) -> tuple[list[Params], dict[str, Any]]:
    """Every point of the path of Adam with beta1 = 0, and its state after it."""
    points, count, second = [theta], slots["count"], slots["second"]
    for piece in pieces:
        grads, count = gradients(points[-1], support, piece), count + 1
        second = {n: 0.999 * second[n] + 0.001 * g * g for n, g in grads.items()}
        correction = 1 - 0.999**count
        points.append(
            {
                n: points[-1][n] - RATE * g / ((second[n] / correction).sqrt() + 1e-8)
                for n, g in grads.items()
            }
        )
    return points, {"count": count, "second": second}


def pieces_of(episode: Episode, size: int, steps: int, key: Tensor) -> Any:
    return published_minibatches(key, WAYS * SHOTS, size, steps)


def learned(method: Any, meta: Any, episode: Episode) -> Tensor:
    """Predictions [P, M, C] on a new task."""
    support, query_x = stacked([episode]).support, episode.query.x[None]
    found: Tensor = method.learn(meta, support, query_x, STEPS, key=KEYS).predictions[0]
    return found


def test_one_task_a_step_leaves_the_state_of_one_adam_throughout() -> None:
    """torch's Adam is stepped in all of training; a new task starts from a copy of its state."""
    method = REPTILE.build(classifier(), SPEC, meta_steps=10)
    state = method.init(rng.fold_in(0, "init"))
    theta = state.meta["params"]
    live = {name: value.clone().requires_grad_() for name, value in theta.items()}
    adam = torch.optim.Adam(live.values(), lr=RATE, betas=(0.0, 0.999), eps=1e-8)

    def train_on(support: Batch, pieces: Any) -> None:
        for piece in pieces:
            adam.zero_grad()
            cross_entropy(live, Batch(support.x[piece], support.y[piece])).backward()
            adam.step()

    def reset(values: Params) -> None:
        with torch.no_grad():
            for name, value in live.items():
                value.copy_(values[name])

    assert method.step is not None
    for number, name in enumerate("abcde"):
        episode = episode_of(name)
        train_on(episode.support, pieces_of(episode, 5, 4, rng.fold_in(episode.info["key"], ORDER)))
        eps = 1 - number / 10
        theta = {n: value + eps * (live[n].detach() - value) for n, value in theta.items()}
        reset(theta)
        state, _ = method.step(state, stacked([episode]))
    torch.testing.assert_close(state.meta["params"], theta, **CLOSE)
    assert state.meta[SLOTS]["count"] == 20
    before, new = copy.deepcopy(adam.state_dict()), episode_of("new")
    for _ in range(2):  # the state is restored after each test task
        adam.load_state_dict(copy.deepcopy(before))
        reset(theta)
        expected = [forward(theta, new.query.x)]
        for piece in pieces_of(new, 5, STEPS, KEYS[0]):
            train_on(new.support, [piece])
            expected.append(forward(live, new.query.x).detach())
        torch.testing.assert_close(learned(method, state.meta, new), torch.stack(expected), **CLOSE)
    fresh = REPTILE.model_copy(update={"adapt_slots": "zero"}).build(classifier(), SPEC)
    gap = (learned(fresh, state.meta["params"], new) - torch.stack(expected)).abs()
    assert gap[0].max() < 1e-12 and gap[1:].amax((1, 2)).min() > 1e-3


def test_several_tasks_a_step_leave_the_mean_of_their_slots() -> None:
    """Each task slot has an Adam of its own; their mean is the start, the count included."""
    method = REPTILE.build(classifier(), SPEC)
    state = method.init(rng.fold_in(0, "init"))
    theta = state.meta["params"]
    zero = {"count": 0, "second": {name: torch.zeros_like(x) for name, x in theta.items()}}
    slots = [zero, zero]
    assert method.step is not None
    for pair in ("ab", "cd", "ef"):
        episodes, ends = [episode_of(name) for name in pair], []
        for place, episode in enumerate(episodes):
            key = rng.fold_in(episode.info["key"], ORDER)
            pieces = pieces_of(episode, 5, 4, key)
            path, slots[place] = adam_by_hand(theta, slots[place], episode.support, pieces)
            ends.append(path[-1])
        theta = {n: (ends[0][n] + ends[1][n]) / 2 for n in theta}
        state, _ = method.step(state, stacked(episodes))
        torch.testing.assert_close(state.meta["params"], theta, **CLOSE)
        mean = {n: (slots[0]["second"][n] + slots[1]["second"][n]) / 2 for n in theta}
        torch.testing.assert_close(state.meta[SLOTS]["second"], mean, **CLOSE)
    assert state.meta[SLOTS]["count"] == 12
    start, new = {"count": 12, "second": mean}, episode_of("new")
    pieces = pieces_of(new, 5, STEPS, KEYS[0])
    path, _ = adam_by_hand(theta, start, new.support, pieces)
    expected = torch.stack([forward(point, new.query.x) for point in path])
    torch.testing.assert_close(learned(method, state.meta, new), expected, **CLOSE)


@parametrize({"reptile": Reptile}, METHOD_CHECKS)
def test_the_common_suite(name: str, component: type[Reptile], check: Check) -> None:
    check(case(name, component, adapt_slots="trained"))


@pytest.mark.parametrize("inner", [None, Momentum(lr=0.02)])
def test_training_is_that_of_zero_slots(inner: Any) -> None:
    """theta and the losses are the same bits, so that recorded training remains valid."""
    rule = {"inner_lr": RATE} if inner is None else {"inner": inner}
    options = {"inner_steps": 3, "inner_batch": 4, **rule}
    cases = [
        ml.testing.method_case(Reptile, {**options, "adapt_slots": how})
        for how in ("zero", "trained")
    ]
    states = [one.state() for one in cases]
    for number in range(3):
        pairs = [one.step(s, one.data(number)) for one, s in zip(cases, states, strict=True)]
        states = [state for state, _ in pairs]
        assert torch.equal(pairs[0][1]["support_loss"], pairs[1][1]["support_loss"])
    mine = states[1].meta
    assert all(torch.equal(mine["params"][n], value) for n, value in states[0].meta.items())
    close(mine[SLOTS], tree_map(lambda x: x.mean(0), states[1].lanes))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_executor_and_several_processes_keep_the_same_mean(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "compile_flat", trace.interpret_unchanged)
    given = case("reptile", Reptile, adapt_slots="trained")
    state = given.state()
    for number in range(2):
        state, _ = given.step(state, given.data(number))
    for choice in CHOICES if size == 1 else CHOICES[:4]:
        if size > 1:
            found = side_by_side(given, choice, size)[0]
        else:
            step, found = executor.make_step(given.method, *choice), given.state()
            for number in range(2):
                found, _ = step(found, given.data(number))
        close(found, state, **EXACT)


def test_in_float32_the_mean_stays_that_of_the_slots_over_many_steps() -> None:
    """The meta takes the change of the slots; its rounding does not add up."""
    given = case("reptile", Reptile, dtype=torch.float32, adapt_slots="trained", inner_steps=1)
    state, data = given.state(), given.data(0)
    data = tree_map(lambda x: x.float() if x.is_floating_point() else x, data)
    for _ in range(300):
        state, _ = given.step(state, data)
    means = tree_map(lambda x: x.mean(0), state.lanes)
    assert state.meta[SLOTS]["count"] == 300
    close(state.meta[SLOTS]["second"], means["second"], rtol=1e-5, atol=1e-12)


def test_a_rule_without_a_state_is_refused_and_the_default_keeps_its_hash() -> None:
    with pytest.raises(ValueError, match="adapt_slots: trained needs an inner rule with a state"):
        Reptile(inner=SGD(lr=0.1), adapt_slots="trained")
    assert Reptile(inner=Momentum(lr=0.1), adapt_slots="trained")
    data = {**sinusoid(), "method": {"name": "reptile"}}
    hashes = [
        parse({**data, "method": {"name": "reptile", **more}}).experiments[0].hash()
        for more in ({}, {"adapt_slots": "zero"}, {"adapt_slots": "trained"})
    ]
    assert hashes[0] == hashes[1] != hashes[2]


# runs


def run_of(metalearn: Commands, name: str, method: dict[str, Any], **sections: Any) -> Any:
    """(the loaded run, messages) of a small experiment."""
    data = {**sinusoid(method=None, experiment=name, **sections), "method": method}
    done = metalearn("train", write(metalearn.folder, name, data), "--out", name)
    assert done.code == 0, done.err
    return ml.load_run(metalearn.folder / name), done.err


def named_meta(run: Any) -> dict[str, Tensor]:
    return named_leaves(run.state.meta)


TRAINED = {"name": "reptile", "inner_steps": 2, "adapt_slots": "trained"}
UNTRAINED = {"run": {"meta_steps": 0, "validate": {"every": None}}}


@pytest.fixture(scope="module")
def base(metalearn: Commands) -> dict[str, Tensor]:
    """The meta of a run that keeps the slots; its network adapts to a task of one's own."""
    run, _ = run_of(metalearn, "base", TRAINED)
    meta = named_meta(run)
    assert meta[f"{SLOTS}.count"] > 0
    task = run.adapt(torch.rand(4, 1), torch.rand(4, 1))
    x = torch.rand(3, 1)
    torch.testing.assert_close(task.module()(x), task.predict(x))
    return meta


def test_a_run_keeps_the_slots_and_its_test_alone_starts_from_them(
    metalearn: Commands, base: dict[str, Tensor]
) -> None:
    """Reptile's 5 shots and transductive rows test the network of another run."""
    again, messages = run_of(metalearn, "again", {**TRAINED, "start": "base"}, **UNTRAINED)
    assert all(torch.equal(value, base[name]) for name, value in named_meta(again).items())
    assert "initial values" not in messages
    zero = {**TRAINED, "adapt_slots": "zero", "start": "base"}
    run_of(metalearn, "zero", zero, **UNTRAINED)
    base_loss, again_loss, zero_loss = (
        json.loads((metalearn.folder / name / "result.json").read_text())["test"]["loss"]
        for name in ("base", "again", "zero")
    )
    assert base_loss == again_loss
    assert zero_loss[0] == pytest.approx(base_loss[0]) and zero_loss[1:] != base_loss[1:]


def test_other_methods_start_from_the_network_alone(
    metalearn: Commands, base: dict[str, Tensor]
) -> None:
    params = {n.removeprefix("params."): x for n, x in base.items() if n.startswith("params.")}
    for method in (
        {"name": "maml"},
        {"name": "anil"},
        {"name": "learned_optimizer", "init": "meta"},
    ):
        name = f"from-{method['name']}"
        found, _ = run_of(metalearn, name, {**method, "start": "base"}, **UNTRAINED)
        meta = {n.removeprefix("params."): x for n, x in named_meta(found).items()}
        assert all(torch.equal(meta[n], x) for n, x in params.items())
        assert not any(n.startswith(SLOTS) for n in meta)


def test_a_start_without_slots_begins_at_zero_and_says_so(metalearn: Commands) -> None:
    run_of(metalearn, "plain", {"name": "maml"})
    method = {**TRAINED, "start": "plain"}
    found, messages = run_of(metalearn, "tested", method, **UNTRAINED)
    assert "has no stats.slots: new tasks are learned from its initial values" in messages
    assert not any(x.any() for n, x in named_meta(found).items() if n.startswith(SLOTS))
    found, messages = run_of(metalearn, "goes-on", method)
    assert "initial values" not in messages and named_meta(found)[f"{SLOTS}.count"] > 0


def test_an_interrupted_run_goes_on_with_its_slots(metalearn: Commands) -> None:
    """Bit for bit, from the checkpoint in the middle."""
    run_of(metalearn, "whole", TRAINED)
    folder = Path(metalearn.folder)
    data = {**sinusoid(method=None, experiment="whole"), "method": TRAINED}
    done = metalearn("train", write(folder, "whole", data), "--out", "cut")
    assert done.code == 0, done.err
    checkpoints = folder / "cut" / "checkpoints"
    for step in checkpoint.steps_in(checkpoints):
        if step > 10:
            for path in checkpoints.glob(f"{checkpoint.path_of(checkpoints, step).name}*"):
                path.unlink()
    (folder / "cut" / "result.json").unlink()
    done = metalearn("resume", "cut")
    assert done.code == 0, done.err
    found, expected = (
        checkpoint.read(checkpoint.path_of(folder / name / "checkpoints", 20))
        for name in ("cut", "whole")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
