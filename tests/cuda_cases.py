"""Small problems for a CUDA device: every kind of task source, model, method, learned rule and
searcher."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metalearn import nas
from metalearn.algorithms import ANIL, BOIL, MAML, MetaSGD, ProtoNet, Reptile
from metalearn.evaluate.curves import learn_keys, learner_inputs
from metalearn.inner.method import broadcast_task_state
from metalearn.inner.rules import SGD, Momentum
from metalearn.learned_optimizers import (
    ES,
    LEARNED_RULES,
    LSTM,
    NRES,
    PES,
    TBPTT,
    Constant,
    LearnOptimizer,
    LearnToOptimize,
    LogUniform,
    TunedAdam,
)
from metalearn.models import MLP, Conv4, Own, SizedMLP
from metalearn.rng import fold_in
from metalearn.tasks import (
    Digits,
    Glyphs,
    Harmonics,
    Landscapes,
    Logistic,
    Quadratics,
    Sinusoid,
    SinusoidLine,
)
from metalearn.transfer import BaselinePlusPlus, FineTune, LinearProbe, NearestCentroid, Scratch
from metalearn.types import Method, NullLedger

F64 = torch.float64
TASKS = 3
SINUSOID, DIGITS = Sinusoid(shots=5, queries=4, noise=0.1), Digits(ways=3, shots=2, queries=2)
GLYPHS = Glyphs(ways=3, shots=1, queries=2)
SMALL, CONV = MLP(sizes=(6,)), Conv4(filters=4)


_sources: dict[tuple[str, str, torch.dtype], Any] = {}


def source_of(task: Any, device: str, dtype: torch.dtype) -> Any:
    """A source, built once for all tests of a process."""
    key = (repr(task), device, dtype)
    if key not in _sources:
        _sources[key] = task.build(split="train", seed=0, device=device, dtype=dtype)
    return _sources[key]


class Problem(NamedTuple):
    """Components of one problem, to be built on any device."""

    task: Any
    model: Any
    method: Any

    def built(self, device: str, dtype: torch.dtype = F64) -> tuple[Any, Method]:
        """(source, method) on a device; a method that searches first has searched."""
        source = source_of(self.task, device, dtype)
        learner = self.model.build(source.spec)
        if self.method.contains_by_default is None:
            return source, self.method.build(learner, source.spec)
        waiting = self.method.build(learner, source.spec, contained=MAML())
        with tempfile.TemporaryDirectory() as folder:
            key = fold_in(0, "search")
            return source, waiting.prepare(source, key, NullLedger(), Path(folder))


def draw_of(source: Any, method: Method) -> Callable[..., Any]:
    """(key, count, first) -> what a step learns from."""
    if method.traits.consumes == "examples":
        return lambda key, count, first: source.examples(key, 8)
    return source.sample  # type: ignore[no-any-return]


def start_of(method: Method) -> Any:
    return broadcast_task_state(method.init(fold_in(0, "init")), TASKS)


def outcome(source: Any, method: Method) -> Any:
    """State and metrics after two steps, and what three new tasks learn."""
    state, found, draw = start_of(method), [], draw_of(source, method)
    for number in range(2):
        if method.step is not None:
            state, metrics = method.step(state, draw(fold_in(0, "train", number), TASKS, 0))
            found.append(metrics)
    batch = source.sample(fold_in(1, "episodes"), TASKS, 2)
    keys = learn_keys(batch.info["key"])
    learned = method.learn(state.meta, *learner_inputs(batch), (0, 1, 2), key=keys)
    return state, found, learned.predictions


SOURCES: dict[str, Problem] = {
    "sinusoid": Problem(SINUSOID, SMALL, MAML()),
    "harmonics": Problem(Harmonics(shots=5, queries=4, noise=0.1), SMALL, MAML()),
    "sinusoid_line": Problem(SinusoidLine(shots=5, queries=4), SMALL, MAML()),
    "rotate": Problem(
        Digits(ways=3, shots=2, queries=2, augment=("crop", "rotate")), SMALL, MAML()
    ),
    "glyphs": Problem(GLYPHS, SMALL, MAML()),
    "logistic": Problem(Logistic(shots=5, queries=4, dims=3), MLP(sizes=()), MAML()),
    "quadratics": Problem(Quadratics(dims=6, dims_min=3, draws="normal"), Own(), MAML()),
    "conditioned": Problem(Quadratics(dims=4, draws="conditioned"), Own(), MAML()),
    "rosenbrock": Problem(Landscapes(dims=4), Own(), MAML(inner_lr=1e-4)),
    "rotated": Problem(Landscapes(dims=4, rotated=True, scales=3.0), Own(), MAML(inner_lr=1e-4)),
    "broyden": Problem(Landscapes(function="broyden", dims=4), Own(), MAML(inner_lr=1e-4)),
}
POLICIES = ("query_batch", "support", "support_plus_one", "running", "none")
MODELS: dict[str, Problem] = {
    "sized_mlp": Problem(DIGITS, SizedMLP(sizes=(16,), least=4), MAML()),
    "conv4-strided": Problem(GLYPHS, CONV, MAML()),
    **{
        f"conv4-{policy}": Problem(
            GLYPHS,
            Conv4(
                filters=4, downsample="pool" if policy == "query_batch" else "stride", norm=policy
            ),
            # The gradient of a bias that the next norm takes out again is rounding noise, which
            # Adam would turn into steps: only query_batch leaves such a bias out.
            MAML(**({} if policy == "query_batch" else {"outer": SGD(lr=1e-3)})),
        )
        for policy in POLICIES
    },
    "nb201": Problem(GLYPHS, nas.Architecture(space=nas.NB201Conv4(filters=4)), MAML()),
}
LSTM4 = LSTM(hidden=4)


def waves(method: Any) -> Problem:
    return Problem(SINUSOID, SMALL, method)


def digits(method: Any) -> Problem:
    return Problem(DIGITS, SMALL, method)


METHODS: dict[str, Problem] = {
    "maml": waves(MAML(inner_steps=2, inner_lr=0.1)),
    "maml-momentum": waves(MAML(outer=Momentum(schedule="cosine"))),
    "maml-first_order": waves(MAML(first_order=True, outer=SGD(schedule="linear"))),
    "anil": digits(ANIL(inner_steps=2)),
    "boil": digits(BOIL()),
    "reptile": digits(Reptile(inner_steps=2, inner_batch=2, adapt_batch=2)),
    "reptile-trained_slots": digits(
        Reptile(inner_steps=2, inner_batch=2, adapt_batch=2, adapt_slots="trained")
    ),
    "meta_sgd": waves(MetaSGD()),
    "proto_net": digits(ProtoNet()),
    "scratch": digits(Scratch()),
    "fine_tune": digits(FineTune()),
    "linear_probe": digits(LinearProbe()),
    "nearest_centroid": digits(NearestCentroid()),
    "baseline_plus_plus": digits(BaselinePlusPlus()),
    "tuned_adam": digits(TunedAdam()),
    "learned-meta": waves(LearnToOptimize(rule=LSTM4, inner_steps=2, init="meta")),
    "learned-pretrained": digits(LearnToOptimize(rule=LSTM4, inner_steps=2, init="pretrained")),
}
RULES: dict[str, Problem] = {
    **{
        f"learned-{name}": waves(LearnToOptimize(rule=rule(), inner_steps=2))
        for name, rule in LEARNED_RULES.items()
    },
    **{
        f"learn-{name}": waves(LearnOptimizer(rule=rule(), unroll=3, horizon=Constant(steps=6)))
        for name, rule in LEARNED_RULES.items()
        if not rule.fixed_shapes
    },
    **{
        f"learn-{kind.__name__}": Problem(
            Quadratics(dims=4),
            Own(),
            LearnOptimizer(
                rule=LSTM4,
                estimator=kind(),
                unroll=3,
                horizon=LogUniform(low=3, high=9),
                stagger=True,
            ),
        )
        for kind in (ES, PES, NRES, TBPTT)
    },
}
SHORT: dict[str, Any] = {"candidates": 2, "search_steps": 1}
SEARCHES: dict[str, Problem] = {
    **{
        f"per_task-{name}": waves(nas.PerTaskNAS(space=nas.MLPReg(), searcher=searcher, **SHORT))
        for name, searcher in {
            "random": nas.RandomSearch(),
            "evolution": nas.Evolution(),
            "tpe": nas.TPE(),
            "halving": nas.Halving(rungs=2),
            "darts": nas.DARTS(steps=2),
            "one_shot": nas.OneShot(steps=2, pool=3),
            "snip": nas.Proxy(measure="snip", pool=3),
        }.items()
    },
    "per_task-masks": waves(nas.PerTaskNAS(space=nas.MLPReg(), batching="masks", **SHORT)),
    "per_task-conv4": Problem(
        GLYPHS, SMALL, nas.PerTaskNAS(space=nas.Conv4Micro(filters=4), **SHORT)
    ),
    "shared": waves(nas.SharedNAS(space=nas.MLPReg(), search_tasks=2, score_tasks=3, **SHORT)),
    "meta_nas": waves(nas.MetaNAS(space=nas.MLPReg(), inner_steps=2, split="shared")),
}
EVERY = {**SOURCES, **MODELS, **METHODS, **RULES, **SEARCHES}
LEARNING = {**SOURCES, **MODELS, **METHODS, **RULES}
