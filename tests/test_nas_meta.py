"""MetaNAS: Reptile over weights and architecture, with a bilevel split that is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import close
from nas_tasks import F64, Images, SameImages, image_spec

from metalearn.errors import ConfigError
from metalearn.evaluate.curves import learning_curve
from metalearn.models import MLP
from metalearn.nas import Conv4Micro, MetaNAS
from metalearn.rng import fold_in
from metalearn.tree import take
from metalearn.types import Batch, Episode, Method


def learned_by(method: Method, episode: Episode, steps: Any = (0, 1, 3), **more: Any) -> Any:
    return method.learn(
        method.init(fold_in(0)).meta, episode.support, episode.query.x, steps, **more
    )


def meta_nas(shots: int = 2, meta_steps: int | None = None, **options: Any) -> Method:
    spec = image_spec(shots)
    component = MetaNAS(space=Conv4Micro(filters=2), **options)
    return component.build(
        MLP(sizes=(4,), norm="query_batch").build(spec), spec, meta_steps=meta_steps
    )


def moved(method: Method, support: Batch) -> tuple[Any, Any]:
    """(how the weights, how the architecture go in one inner step)."""
    episode = Episode(support, support, {"key": fold_in(0), "step": torch.zeros((), dtype=F64)})
    assert method.task_grad is not None
    grads, _ = method.task_grad(method.init(fold_in(0)).meta, episode)
    return grads["params"], grads["arch"]


@pytest.mark.parametrize("split", ["disjoint", "shared"])
def test_the_bilevel_split_is_one_and_the_published_one_is_none(split: str) -> None:
    """Disjoint: labels of a half change what learns from that half alone. Shared: both."""
    method = meta_nas(inner_steps=1, split=split, warm_up=0.0)
    support = take(Images(image_spec()).sample(fold_in(1), 1).support, 0)
    order = support.y.argsort(stable=True).reshape(3, 2)
    weights, arch = moved(method, support)
    for half in range(2):
        y = support.y.clone()
        # Other pictures under the labels of one half: the labels of the classes stay as many as
        # they were.
        x = support.x.clone()
        x[order[:, half]] = x[order[:, half].roll(1)]
        other_weights, other_arch = moved(method, Batch(x, y))
        same_weights = all(torch.equal(weights[name], other_weights[name]) for name in weights)
        same_arch = all(torch.equal(arch[name], other_arch[name]) for name in arch)
        # The statistics of a batch pass through its own half alone, so the split is exact.
        assert same_weights == (split == "disjoint" and half == 1)
        assert not same_arch or split == "disjoint"
        if split == "shared":
            assert not same_weights and not same_arch


def test_the_architecture_waits_for_warm_up_and_stands_after_its_steps() -> None:
    method = meta_nas(meta_steps=10, warm_up=0.5)
    source = Images(image_spec())
    state = method.init(fold_in(0))
    assert method.step is not None
    start = state.meta["arch"]
    for step in range(6):
        before = state.meta["arch"]
        state, _ = method.step(state, source.sample(fold_in(step), 2))
        still = all(torch.equal(before[name], state.meta["arch"][name]) for name in start)
        assert still == (step < 5)
    episode = source.sample(fold_in(9), 2)
    for arch_steps, moves in ((0, False), (2, True)):
        learned = learned_by(meta_nas(arch_steps=arch_steps), episode, (0, 4))
        assert bool((learned.notes["arch_moved"] > 0).all()) == moves
        assert learned.notes["genotype"].shape == (2, 3)
    early, late = (
        learned_by(meta_nas(arch_steps=2), episode, (steps,)).notes["arch_moved"]
        for steps in (2, 6)
    )
    torch.testing.assert_close(early, late, rtol=0, atol=0)


def test_the_outer_step_is_reptiles() -> None:
    """theta - phi, of both; the architecture takes `arch_rate` of it."""
    support = take(Images(image_spec()).sample(fold_in(1), 1).support, 0)
    (w, a), (w2, a2) = (
        moved(meta_nas(inner_steps=2, warm_up=0.0, arch_rate=rate), support) for rate in (1.0, 0.25)
    )
    close(w, w2)
    close({name: 0.25 * value for name, value in a.items()}, a2)
    method = meta_nas(inner_steps=2, warm_up=0.0, arch_rate=1.0, temperature=0.05)
    meta = method.init(fold_in(0)).meta
    itself = Batch(support.x[None], support.y[None])
    learned = learned_by(meta_nas(inner_steps=2, arch_steps=2), Episode(itself, itself, {}), (2,))
    w, a = moved(method, support)
    space = Conv4Micro(filters=2).build(image_spec(), "query_batch")
    masks = {
        f"stats.mask.{name}": torch.softmax((meta["arch"][name] - a[name]) / 0.05, -1) for name in a
    }
    params = {name: meta["params"][name] - w[name] for name in w}
    wanted = space.supernet.apply({**params, **masks}, support.x)
    torch.testing.assert_close(learned.predictions[0, 0], wanted, rtol=1e-9, atol=1e-11)


def test_meta_nas_refuses_to_split_one_shot() -> None:
    with pytest.raises(ConfigError, match="use split: shared"):
        meta_nas(shots=1)
    meta_nas(shots=1, split="shared")


def test_meta_nas_learns_to_learn() -> None:
    """Where tasks are alike, the start alone comes to solve them: its loss falls from chance."""
    source = SameImages(image_spec(2))
    method = meta_nas(inner_steps=4, inner_lr=0.02, arch_lr=0.02, warm_up=0.0, last_temperature=0.5)
    state = method.init(fold_in(0))
    assert method.step is not None
    before = learning_curve(method, state.meta, source, (0,), episodes=20, seed=0)
    for step in range(12):
        state, _ = method.step(state, source.sample(fold_in(0, step), 3))
    after = learning_curve(method, state.meta, source, (0,), episodes=20, seed=0)
    assert after.loss.mean() < before.loss.mean() - 0.1 and after.mean > before.mean + 0.2
