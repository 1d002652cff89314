"""Born-again generations: by hand, in torch's operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.errors import ConfigError
from metalearn.inner.heads import linear
from metalearn.inner.rules import SGD
from metalearn.models import MLP
from metalearn.rng import fold_in
from metalearn.testing.clusters import Clusters
from metalearn.transfer import RFS, RFSDistill
from metalearn.tree import named_leaves
from metalearn.types import Batch, Learner

LR = 0.2


def loss(network: Any, learner: Learner, batch: Batch, teacher: Any) -> Tensor:
    logits = linear(network["pretrain_head"], learner.features(network["params"], batch.x))
    labels = F.cross_entropy(logits, batch.y)
    if teacher is None:
        return labels
    target = linear(teacher["pretrain_head"], learner.features(teacher["params"], batch.x))
    both = ((logits / 2).log_softmax(-1), (target / 2).softmax(-1))
    return 0.3 * labels + 0.7 * 4 * F.kl_div(*both, reduction="batchmean")


def test_generations_are_those_by_hand() -> None:
    """Two generations of three steps: labels alone, then a fresh network beside its teacher."""
    source = Clusters("train", 9)
    learner = MLP(sizes=(8, 7), activation="tanh").build(source.spec)
    component = RFSDistill(generations=2, alpha=0.3, temperature=2.0, outer=SGD(lr=LR))
    method = component.build(learner, source.spec, 6)
    state = method.init(fold_in(0))
    start = {name: state.meta[name] for name in ("params", "pretrain_head")}
    ours = {name: dict(part) for name, part in start.items()}
    teacher = None
    for step in range(6):
        batch = source.examples(fold_in(1, step), 16)
        if step == 3:
            teacher, ours = ours, {name: dict(part) for name, part in start.items()}

        grads = torch.func.grad(loss)(ours, learner, batch, teacher)
        ours = {
            part: {name: x - LR * grads[part][name] for name, x in leaves.items()}
            for part, leaves in ours.items()
        }
        assert method.step is not None
        state, _ = method.step(state, batch)
    for name, value in named_leaves(ours).items():
        torch.testing.assert_close(named_leaves(state.meta)[name], value, rtol=1e-9, atol=1e-12)


def test_new_tasks_are_learned_as_by_rfs() -> None:
    source = Clusters("train", 9)
    learner = MLP(sizes=(8, 7), activation="tanh").build(source.spec)
    method, plain = (part().build(learner, source.spec) for part in (RFSDistill, RFS))
    meta, tasks = method.init(fold_in(0)).meta, source.sample(fold_in(1), 2)
    found, other = (
        one.learn(meta, tasks.support, tasks.query.x, (0,)).predictions for one in (method, plain)
    )
    assert torch.equal(found, other)


def test_a_training_step_needs_the_number_of_meta_steps() -> None:
    """Without it there is no length of a generation, and no step of a guessed schedule."""
    source = Clusters("train", 9)
    learner = MLP(sizes=(8, 7), activation="tanh").build(source.spec)
    method = RFSDistill().build(learner, source.spec)
    assert method.step is not None
    with pytest.raises(ConfigError, match="generations divide meta_steps"):
        method.step(method.init(fold_in(0)), source.examples(fold_in(1), 16))


def test_the_teacher_of_running_statistics_is_tested_and_not_moved() -> None:
    source = Clusters("train", 9)
    learner = MLP(sizes=(8, 7), activation="tanh", norm="running").build(source.spec)
    method = RFSDistill(outer=SGD(lr=LR)).build(learner, source.spec, 4)
    state = method.init(fold_in(0))
    metas = []
    for step in range(4):
        assert method.step is not None
        state, _ = method.step(state, source.examples(fold_in(1, step), 16))
        metas.append(state.meta)
    assert all(torch.equal(metas[2]["teacher"][n], x) for n, x in metas[3]["teacher"].items())
    last = named_leaves({name: metas[1][name] for name in ("params", "pretrain_head")})
    assert all(torch.equal(metas[2]["teacher"]["stats." + n], x) for n, x in last.items())
    mean = "stats.norms.0.mean"
    assert not torch.equal(metas[2]["params"][mean], metas[3]["params"][mean])
