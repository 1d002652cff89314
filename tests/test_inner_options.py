"""The inner rule and the parameters that a new task moves, as options of methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clusters import Clusters
from pydantic import ValidationError
from torch import Tensor, nn

from metalearn.algorithms import ANIL, BOIL, MAML, MetaSGD, Reptile
from metalearn.component import MethodComponent
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.executors import executor
from metalearn.inner import SGD, Adam, Momentum
from metalearn.inner.options import adapted_filter
from metalearn.losses import cross_entropy
from metalearn.models import MLP, from_module
from metalearn.rng import fold_in
from metalearn.transfer import BaselinePlusPlus, FineTune, LinearProbe, Scratch
from metalearn.tree import leaves, named_leaves, take
from metalearn.types import Episode, MetaState, Method

KEY = fold_in(5, "options")


def source() -> Any:
    return Clusters("train", 24)


def built(component: MethodComponent) -> tuple[Method, Episode]:
    tasks = source()
    learner = MLP(sizes=(8, 7), activation="tanh").build(tasks.spec)
    return component.build(learner, tasks.spec), tasks.sample(KEY, 3)


def start(method: Method) -> MetaState:
    return method.init(fold_in(0, "init"))


# rules


@pytest.mark.parametrize("name", ["adam", "momentum", "sgd"])
def test_the_meta_gradient_through_a_rule_is_torchs(name: str) -> None:
    """By torch.autograd over a loop in which the rule is written out."""
    rule: Any = {"adam": Adam, "momentum": Momentum, "sgd": SGD}[name](lr=0.05)
    method, episodes = built(MAML(inner_steps=3, inner=rule))
    meta, one = start(method).meta, take(episodes, 0)
    assert method.task_grad is not None
    found = method.task_grad(meta, one)[0]
    params = {leaf: value.clone().requires_grad_() for leaf, value in meta.items()}
    now, first, second = dict(params), dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
    learner = MLP(sizes=(8, 7), activation="tanh").build(method.spec)
    for step in range(1, 4):
        loss = cross_entropy(learner.apply(now, one.support.x), one.support.y)
        grads = torch.autograd.grad(loss, list(now.values()), create_graph=True)
        for leaf, g in zip(now, grads, strict=True):
            if name == "adam":
                first[leaf] = 0.9 * first[leaf] + 0.1 * g
                second[leaf] = 0.999 * second[leaf] + 0.001 * g * g
                root = (second[leaf] / (1 - 0.999**step)).sqrt() + 1e-8
                g = first[leaf] / (1 - 0.9**step) / root
            elif name == "momentum":
                first[leaf] = g = 0.9 * first[leaf] + g
            now[leaf] = now[leaf] - 0.05 * g
    cross_entropy(learner.apply(now, one.query.x), one.query.y).backward()
    expected = {leaf: value.grad for leaf, value in params.items()}
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("executor_name", ["vmap", "chunk", "loop", "traced"])
def test_maml_with_adam_inside_is_finite_by_every_executor(executor_name: str) -> None:
    """With rectified units, some of which have no gradient."""
    tasks = source()
    learner = MLP(sizes=(40, 40)).build(tasks.spec)
    method = MAML(inner_steps=3, inner=Adam(lr=0.01)).build(learner, tasks.spec)
    episodes, plain = tasks.sample(KEY, 4), executor.make_step(method, "vmap", None)
    step = executor.make_step(method, executor_name, 2 if executor_name == "chunk" else None)
    found, expected = step(start(method), episodes)[0], plain(start(method), episodes)[0]
    assert all(leaf.isfinite().all() for leaf in leaves(found))
    torch.testing.assert_close(named_leaves(found), named_leaves(expected), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    "component",
    [
        ANIL(inner=Adam(lr=0.05)),
        BOIL(inner=Momentum(lr=0.05)),
        Reptile(inner=SGD(lr=0.05), inner_batch=None),
        Reptile(inner=Momentum(lr=0.05)),
        FineTune(inner=Adam(lr=0.05)),
        FineTune(inner=Adam(lr=0.05), adapts="head"),
        LinearProbe(inner=Adam(lr=0.05)),
        BaselinePlusPlus(inner=Momentum(lr=0.05, decay=0.5)),
        Scratch(inner=Adam(lr=0.05, weight_decay=0.1)),
    ],
    ids=lambda component: f"{component.name}-{component.inner.name}",
)
def test_the_rule_moves_new_tasks(component: Any) -> None:
    """One step by the rule is another one than the usual, and follows its rate."""
    method, episodes = built(component)
    usual = built(type(component)())[0]
    meta = start(method).meta
    support, x = episodes.support, episodes.query.x
    found = method.learn(meta, support, x, (0, 1)).predictions
    other = usual.learn(meta, support, x, (0, 1)).predictions
    assert torch.equal(found[:, 0], other[:, 0]) and not torch.equal(found[:, 1], other[:, 1])
    faster = component.model_copy(update={"inner": component.inner.model_copy(update={"lr": 0.1})})
    again = built(faster)[0].learn(meta, support, x, (0, 1)).predictions
    assert not torch.equal(found[:, 1], again[:, 1])
    if method.task_grad is not None:
        episode = episodes._replace(info={**episodes.info})
        state, _ = method.step(start(method), episode)  # type: ignore[misc]
        assert all(leaf.isfinite().all() for leaf in leaves(state))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (MAML, {"inner": {"name": "adam"}, "inner_lr": 0.5}, "omit inner_lr"),
        (FineTune, {"inner": {"name": "sgd"}, "inner_momentum": 0.5}, "omit inner_momentum"),
        (LinearProbe, {"inner": {"name": "sgd"}, "inner_lr": 0.5}, "omit inner_lr"),
        (BaselinePlusPlus, {"inner": {"name": "sgd", "schedule": "linear"}}, "use constant"),
        (Scratch, {"inner": {"name": "sgd", "schedule": "linear"}}, "use constant"),
        (Reptile, {"inner": {"name": "sgd", "schedule": "cosine"}}, "use constant"),
        (MAML, {"inner": {"name": "adamm"}}, "adamm"),
    ],
)
def test_two_rules_at_once_are_refused(kind: Any, options: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        kind(**options)


def test_a_file_sets_the_rule_and_keeps_its_hash_without_it() -> None:
    data: dict[str, Any] = {"task": {"source": "sinusoid"}, "method": {"name": "maml"}}
    plain = parse(data).experiments[0]
    later = {"inner", "adapts"}
    data_of_hash = plain.method.without_later(plain.resolved()["method"])
    assert later & set(plain.resolved()["method"]) == later and not later & set(data_of_hash)
    assert not {"clip", "clip_value", "weight_decay", "l2", "eps_root"} & set(data_of_hash["outer"])
    rule = {"name": "adam", "lr": 0.02, "clip": 1.0}
    other = parse({**data, "method": {"name": "maml", "inner": rule}}).experiments[0]
    assert other.method.inner == Adam(lr=0.02, clip=1.0) and other.hash() != plain.hash()
    assert parse(other.resolved()).experiments[0].hash() == other.hash()


# parameters


def moved(method: Method, meta: Any, episodes: Episode) -> set[str]:
    """The parameters that two steps on the first task move."""
    assert method.adapt is not None
    support = take(episodes.support, 0)
    ends = [method.adapt(meta, support, steps, KEY) for steps in (0, 2)]
    return {leaf for leaf in ends[0] if not torch.equal(ends[0][leaf], ends[1][leaf])}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (None, "all"),
        ("head", {"head.weight", "head.bias"}),
        (["layers.1", "head"], {"layers.1.weight", "layers.1.bias", "head.weight", "head.bias"}),
        (["*.bias"], {"layers.0.bias", "layers.1.bias", "head.bias"}),
        (["layers.[0]*.weight"], {"layers.0.weight"}),
    ],
)
@pytest.mark.parametrize("kind", [MAML, MetaSGD, FineTune])
def test_patterns_choose_what_a_new_task_moves(kind: Any, patterns: Any, expected: Any) -> None:
    given = {} if patterns is None else {"adapts": patterns}
    method, episodes = built(kind(**given))
    meta = start(method).meta
    params = set(MLP(sizes=(8, 7)).build(method.spec).init(KEY))
    expected = params if expected == "all" else expected
    assert moved(method, meta, episodes) == expected


def test_patterns_may_be_names_of_the_module() -> None:
    """Of its last layer, and of a layer whose weight is tied to another's."""
    net = nn.Sequential()
    net.add_module("a", nn.Linear(6, 6, bias=False))
    net.add_module("b", nn.Linear(6, 6))
    net.add_module("fc", nn.Linear(6, source().spec.outputs))
    net.b.weight = net.a.weight
    learner = from_module(net, source().spec)
    for pattern, moves in (("b", {"a.weight", "b.bias"}), ("fc", {"head.weight", "head.bias"})):
        chosen = adapted_filter((pattern,), learner)
        assert {name for name in learner.init(KEY) if chosen(name)} == moves


def test_the_outer_gradient_reaches_what_the_inner_loop_leaves_alone() -> None:
    """Patterns of the head are ANIL, patterns of the body BOIL."""
    for kind, patterns in ((ANIL, ("head",)), (BOIL, ("layers",))):
        theirs, episodes = built(kind(inner_steps=2, inner_lr=0.1))
        ours, _ = built(MAML(inner_steps=2, inner_lr=0.1, adapts=patterns))
        meta = start(ours).meta
        assert ours.task_grad is not None and theirs.task_grad is not None
        one = take(episodes, 0)
        torch.testing.assert_close(
            ours.task_grad(meta, one)[0], theirs.task_grad(meta, one)[0], rtol=1e-10, atol=1e-13
        )


def test_a_pattern_of_nothing_is_refused_with_the_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.body(x).tanh())

    spec = source().spec
    learner = from_module(Net, spec)
    with pytest.raises(
        ConfigError, match=r"'layer4.\*' is not a trainable parameter.*body.weight.*is head"
    ):
        MAML(adapts=("layer4.*", "head")).build(learner, spec)
    with pytest.raises(ConfigError, match="nothing is not a trainable parameter"):
        MAML(adapts=()).build(learner, spec)
    method = MAML(adapts=("body.*",)).build(learner, spec)
    expected = {"body.weight", "body.bias"}
    assert moved(method, start(method).meta, source().sample(KEY, 1)) == expected


def test_scratch_on_the_weights_of_a_module_is_refused() -> None:
    """Its start would be these weights for every task, which is no start from scratch."""
    spec = source().spec

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    for learner in (from_module(net(), spec), from_module(net, spec, keep=True)):
        with pytest.raises(
            ConfigError, match="scratch needs random initialization: pass a class or function"
        ):
            Scratch().build(learner, spec)
    for learner in (from_module(net, spec), from_module(net(), spec, init="uniform")):
        method = Scratch().build(learner, spec)
        assert method.adapt is not None
        support = take(source().sample(KEY, 1).support, 0)
        ends = [method.adapt({}, support, 0, fold_in(KEY, n)) for n in (0, 1)]
        assert not torch.equal(ends[0]["head.weight"], ends[1]["head.weight"])
