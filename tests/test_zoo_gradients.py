"""MAML's meta-gradient on the zoo against a plain loop over tasks with create_graph, in float64, by
every executor."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from small import gap
from test_from_module import KEY, called, episodes, head_of, leaf_of, learner_of, moved, twin
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import Exhibit
from zoo_networks import ZOO

from metalearn.algorithms import MAML
from metalearn.executors import executor
from metalearn.inner.method import make_step_over_tasks
from metalearn.losses import criterion
from metalearn.models.external.checks import unfused_attention
from metalearn.types import Batch, Episode, Learner, Method, Params

F64 = torch.float64
TASKS, LR = 3, 0.05
EQUAL = 1e-6  # relative, over all leaves together
# Without a second derivative in torch itself, and metric learners.
FIRST_ORDER = {"bag_of_words", "embedding_network"}
SECOND_ORDER = [name for name in ZOO if name not in FIRST_ORDER]
TWENTY = [
    *("perceptron", "layer_norm", "rms_norm", "prelu", "Siren", "Highway", "Bilinear", "Tied"),
    *("weight_norm", "Frozen", "RandomFeatures", "Rotary", "own_norm", "group_norm", "lstm"),
    *("batch_norm_of_vectors", "Attention", "Graph", "deep_sets", "fully_convolutional"),
]
# A module takes the compiler a quarter of a minute to two: all twenty are compiled on request.
ALL = os.environ.get("METALEARN_COMPILE_ZOO") == "1"
COMPILED = TWENTY if ALL else ["batch_norm_of_vectors"]


def by_hand(
    exhibit: Exhibit, learner: Learner, meta: Params, batch: Episode, head: str, steps: int
) -> Params:
    """The mean gradient over tasks by torch.autograd on the module itself: {leaf: gradient}."""
    net, loss_of = twin(exhibit, F64), criterion(exhibit.spec)
    with torch.no_grad():
        called(exhibit, net, batch.support.x[0])  # lazy layers
    if exhibit.policy == "running":
        net.train()
    names = {n: leaf_of(n, head, meta) for n, v in net.named_parameters() if v.requires_grad}
    start = {name: meta[leaf].clone().requires_grad_() for name, leaf in names.items()}

    def loss(params: Params, data: Batch) -> Tensor:
        for name, layer in net.named_modules():
            if isinstance(layer, nn.RNNBase):  # torch keeps its weights twice
                prefix = f"{name}." if name else ""
                layer._flat_weights = [params[prefix + leaf] for leaf in layer._flat_weights_names]
        wrapped = Wrapped(exhibit, net)
        named = {f"net.{name}": value for name, value in params.items()}
        return loss_of(functional_call(wrapped, named, (data.x,)), data.y)

    total = {name: torch.zeros_like(value) for name, value in start.items()}
    math = sdpa_kernel(SDPBackend.MATH)
    with unfused_attention(), math, torch.backends.mkldnn.flags(enabled=False):
        for place in range(TASKS):
            support, query = (Batch(p.x[place], p.y[place]) for p in (batch.support, batch.query))
            params = start
            for _ in range(steps):
                grads = gradients(loss(params, support), params, create_graph=True)
                params = {n: v - LR * g for (n, v), g in zip(params.items(), grads, strict=True)}
            found = gradients(loss(params, query), start)
            total = {n: total[n] + g / TASKS for n, g in zip(total, found, strict=True)}
    return {names[name]: value for name, value in total.items()}


def gradients(loss: Tensor, params: Params, create_graph: bool = False) -> tuple[Tensor, ...]:
    values = list(params.values())
    return torch.autograd.grad(loss, values, create_graph=create_graph, materialize_grads=True)


class Wrapped(nn.Module):
    """The module with its inputs and outputs chosen."""

    def __init__(self, exhibit: Exhibit, net: nn.Module) -> None:
        super().__init__()
        self.exhibit, self.net = exhibit, net

    def forward(self, x: Tensor) -> Tensor:
        return called(self.exhibit, self.net, x)


def caught(method: Method) -> Method:
    """The method, whose step hands out the meta-gradient in the place of the new meta."""

    def catch(state: Any, grads: Any) -> Any:
        return state._replace(meta=grads)

    assert method.task_grad is not None
    return method._replace(
        update=catch, step=make_step_over_tasks(method.task_grad, catch, method.spec)
    )


def compare(name: str, ways: list[tuple[str, int | None]], steps: int = 2) -> None:
    exhibit = ZOO[name]
    net = twin(exhibit, F64)
    with torch.no_grad():
        called(exhibit, net, episodes(exhibit, 1, "lazy").support.x[0])
    net.train(exhibit.train)
    learner = learner_of(exhibit, net)
    start, batch = learner.init(KEY), episodes(exhibit, TASKS, "gradients")
    meta = moved(start)
    expected = by_hand(exhibit, learner, meta, batch, head_of(net, learner, start), steps)
    method = MAML(inner_steps=steps, inner_lr=LR).build(learner, exhibit.spec)
    state = method.init(KEY)._replace(meta=meta)
    for way in ways:
        found = executor.make_step(caught(method), *way)(state, batch)[0].meta
        moving = {leaf: found[leaf] for leaf in expected}
        assert gap(moving, expected) < EQUAL, way
        still = set(found) - set(moving)
        assert exhibit.policy == "running" or all((found[leaf] == 0).all() for leaf in still)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_meta_gradients_are_those_of_a_plain_loop(name: str) -> None:
    """Of twenty modules by a trace and one task at a time, too."""
    assert set(TWENTY) <= set(SECOND_ORDER)
    ways: list[tuple[str, int | None]] = [("vmap", None), ("chunk", 2)]
    compare(name, ways + ([("traced", None), ("loop", None)] if name in TWENTY else []))


@pytest.mark.skipif(not executor.compiler_found(), reason="no C++ compiler was found")
@pytest.mark.parametrize("name", COMPILED)
def test_meta_gradients_of_compiled_steps(name: str) -> None:
    """After one inner step: C++ is made of every step."""
    compare(name, [("compiled", None)], steps=1)
