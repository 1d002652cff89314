"""Reptile against its published algorithm, written out by hand with torch's own Adam; float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from by_hand import SHOTS, SPEC, WAYS, classifier, cross_entropy, episode_of, forward, stacked
from torch import Tensor

from metalearn import rng
from metalearn.algorithms import Reptile
from metalearn.algorithms.reptile import ORDER, minibatches
from metalearn.types import Batch, Episode, Params

CLOSE = {"rtol": 1e-10, "atol": 1e-13}


def published_minibatches(key: Tensor, count: int, size: int, steps: int) -> Iterator[list[int]]:
    """Shuffle, walk through, shuffle again; a batch is full when it has `size` examples, wherever
    the walk stands."""
    piece: list[int] = []
    made = 0
    for shuffled in rng.bits(key, (100, count)).argsort(-1).tolist():
        for example in shuffled:
            piece.append(example)
            if len(piece) == size:
                yield piece
                piece, made = [], made + 1
                if made == steps:
                    return


@pytest.mark.parametrize(("size", "steps"), [(5, 7), (12, 2), (1, 13), (30, 3)])
def test_minibatches_are_cut_from_fresh_permutations(size: int, steps: int) -> None:
    """The published order, without replacement inside a permutation; the first batches do not
    depend on the count."""
    support, key = episode_of("a").support, rng.fold_in(5, "order")
    count = support.x.shape[0]
    numbered = Batch(torch.arange(count), support.y)
    cut, longer = (
        minibatches(key, numbered, size, steps),
        minibatches(key, numbered, size, steps + 40),
    )
    assert callable(cut) and callable(longer)
    drawn = [cut(step).x.tolist() for step in range(steps)]
    assert (
        drawn
        == list(published_minibatches(key, count, size, steps))
        == [longer(s).x.tolist() for s in range(steps)]
    )
    examples = [example for piece in drawn for example in piece]
    rounds = [
        examples[start : start + count] for start in range(0, len(examples) - count + 1, count)
    ]
    assert all(sorted(r) == list(range(count)) for r in rounds)
    assert len(rounds) < 2 or rounds[0] != rounds[1]
    torch.testing.assert_close(cut(1).y, support.y[drawn[1]])
    assert minibatches(key, support, None, steps) is support


def reptile_by_hand(theta: Params, episodes: list[Episode], meta_steps: int) -> Iterator[Params]:
    """One task a step: one torch Adam for the whole run, whose parameters alone are reset; yields
    theta."""
    live = {name: value.clone().requires_grad_() for name, value in theta.items()}
    adam = torch.optim.Adam(live.values(), lr=0.02, betas=(0.0, 0.999), eps=1e-8)
    for number, episode in enumerate(episodes):
        key = rng.fold_in(episode.info["key"], ORDER)
        for piece in published_minibatches(key, WAYS * SHOTS, 5, 4):
            adam.zero_grad()
            cross_entropy(
                live, Batch(episode.support.x[piece], episode.support.y[piece])
            ).backward()
            adam.step()
        eps = 1 - number / meta_steps
        theta = {name: value + eps * (live[name].detach() - value) for name, value in theta.items()}
        with torch.no_grad():
            for name, value in live.items():
                value.copy_(theta[name])
        yield theta


REPTILE = Reptile(inner_steps=4, inner_lr=0.02, inner_batch=5, adapt_batch=5)


def test_reptile_with_one_task_a_step_is_the_published_algorithm() -> None:
    """Five steps of ten: slots and their count live on from task to task, the outer step falls
    linearly."""
    method = REPTILE.build(classifier(), SPEC, meta_steps=10)
    state = method.init(rng.fold_in(0, "init"))
    episodes = [episode_of(name) for name in "abcde"]
    assert method.step is not None
    for number, expected in enumerate(reptile_by_hand(state.meta, episodes, 10)):
        before = state
        state, metrics = method.step(state, stacked([episodes[number]]))
        torch.testing.assert_close(state.meta, expected, rtol=1e-9, atol=1e-12)
        assert state.lanes is not None and (state.lanes["count"] == 4 * (number + 1)).all()
        assert set(metrics) == {"support_loss"}
        moved = max((state.meta[n] - before.meta[n]).abs().max() for n in state.meta)
        assert moved > 1e-3


def one_lane(lanes: Any) -> Any:
    """The first lane of [T, ...] slots."""
    return {"count": lanes["count"][0]} | {
        s: {n: x[0] for n, x in lanes[s].items()} for s in ("first", "second")
    }


def test_reptile_gives_theta_minus_phi() -> None:
    """One step on the whole set from empty slots: Adam is then lr times each gradient's sign, g /
    (|g| + eps)."""
    method = Reptile(inner_steps=1, inner_lr=0.02, inner_batch=None).build(classifier(), SPEC)
    state, episode = method.init(rng.fold_in(0, "init")), episode_of("a")
    assert method.task_grad is not None
    found, metrics, after = method.task_grad(state.meta, episode, one_lane(state.lanes))
    leaves = {name: value.clone().requires_grad_() for name, value in state.meta.items()}
    loss = cross_entropy(leaves, episode.support)
    loss.backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(
            found[name], 0.02 * leaf.grad / (leaf.grad.abs() + 1e-8), **CLOSE
        )
        torch.testing.assert_close(
            after["second"][name], 0.001 * leaf.grad.square(), rtol=1e-9, atol=1e-15
        )
    torch.testing.assert_close(metrics["support_loss"], loss.detach(), **CLOSE)


def test_reptile_keeps_one_set_of_slots_a_lane() -> None:
    """Two tasks a step: each lane goes on as if it were alone with the same theta; the update takes
    the mean."""
    method = REPTILE.build(classifier(), SPEC)
    state = method.init(rng.fold_in(0, "init"))
    assert method.step is not None and method.task_grad is not None and method.lanes is not None
    assert state.lanes is not None and state.lanes["count"].shape == (1,)
    lanes = [one_lane(state.lanes)] * 2
    for pair in ("ab", "cd"):
        episodes = [episode_of(name) for name in pair]
        alone = [method.task_grad(state.meta, e, lane) for e, lane in zip(episodes, lanes)]
        lanes = [lane for _, _, lane in alone]
        expected = {n: v - (alone[0][0][n] + alone[1][0][n]) / 2 for n, v in state.meta.items()}
        state, _ = method.step(state, stacked(episodes))
        torch.testing.assert_close(state.meta, expected, **CLOSE)
        for place, lane in enumerate(lanes):
            torch.testing.assert_close(
                {n: v[place] for n, v in state.lanes["second"].items()}, lane["second"], **CLOSE
            )
    assert all(
        not leaf.any() for leaf in method.lanes(rng.fold_in(0, "init"), 3)["second"].values()
    )
    assert method.lanes(rng.fold_in(0, "init"), 3)["second"]["head.bias"].shape == (3, WAYS)


def test_reptile_learns_a_new_task_from_fresh_slots() -> None:
    """`learn` is torch's Adam from nothing on minibatches of `adapt_batch`, in the order that the
    task's key gives."""
    method = Reptile(inner_lr=0.02, inner_batch=3, adapt_batch=5).build(classifier(), SPEC)
    meta, episode = method.init(rng.fold_in(0, "init")).meta, episode_of("new")
    live = {name: value.clone().requires_grad_() for name, value in meta.items()}
    adam = torch.optim.Adam(live.values(), lr=0.02, betas=(0.0, 0.999), eps=1e-8)
    keys, expected = rng.fold_in(8, torch.arange(1)), [forward(meta, episode.query.x)]
    for piece in published_minibatches(keys[0], WAYS * SHOTS, 5, 6):
        adam.zero_grad()
        cross_entropy(live, Batch(episode.support.x[piece], episode.support.y[piece])).backward()
        adam.step()
        expected.append(forward(live, episode.query.x).detach())
    for points in ((0, 2, 6), (0, 2)):
        predictions = method.learn(
            meta, stacked([episode]).support, episode.query.x[None], points, key=keys
        ).predictions[0]
        torch.testing.assert_close(
            predictions, torch.stack([expected[p] for p in points]), rtol=1e-9, atol=1e-12
        )


def test_reptile_compiles_whole() -> None:
    """The step is one graph for the compiler (here traced and run eagerly), with
    the same result."""
    torch.compiler.reset()  # earlier compilations in this process count towards a limit
    method = Reptile(inner_steps=2, inner_batch=5).build(classifier(), SPEC)
    state = method.init(rng.fold_in(0, "init"))
    episodes = stacked([episode_of("a")])
    assert method.step is not None
    traced = torch.compile(method.step, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        traced(state, episodes)[0].meta, method.step(state, episodes)[0].meta, **CLOSE
    )
