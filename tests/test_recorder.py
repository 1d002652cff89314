"""A recording lists the operators that torch's make_fx lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from metalearn.algorithms import MAML
from metalearn.executors import recorder
from metalearn.executors.recorder import record
from metalearn.learned_optimizers import MLP as LearnedMLP
from metalearn.learned_optimizers import LearnedAdam, LearnToOptimize
from metalearn.models import MLP, Conv4
from metalearn.rng import fold_in
from metalearn.scopes.recording import is_recorded
from metalearn.tasks import Digits, Sinusoid
from metalearn.tree import flatten, unflatten

WEIGHT = torch.arange(3.0)
X = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
Function = Callable[..., Any]
NETWORKS: dict[str, tuple[Any, Any]] = {
    "sinusoid": (Sinusoid(shots=2), MLP(sizes=(3,))),
    "digits": (Digits(ways=2, shots=1, queries=1), Conv4(filters=2, downsample="stride")),
}
METHODS: dict[str, Any] = {
    "maml": MAML(inner_steps=1),
    "learned_adam": LearnToOptimize(rule=LearnedAdam(lr=0.01), inner_steps=1),
    "mlp": LearnToOptimize(rule=LearnedMLP(hidden=2), inner_steps=1),
}


def flat(function: Function, *args: Any) -> tuple[Function, list[Tensor]]:
    """The same function of tensors alone, and these tensors."""
    tensors, structure = flatten(args)
    return lambda *given: tuple(flatten(function(*unflatten(given, structure)))[0]), tensors


def listed(graph: GraphModule) -> list[Any]:
    """Operators, arguments, layouts and memory, whatever nodes are called; constants by values."""
    graph.graph.eliminate_dead_code()
    lines, known, memory = list[Any](), dict[Node, str](), dict[int, int]()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = f"constant {getattr(graph, str(node.target)).tolist()}"
            continue
        args = map_aggregate(
            (node.args, node.kwargs), lambda one: known[one] if isinstance(one, Node) else one
        )
        known[node] = f"line {len(lines)}"
        target = "" if node.op == "placeholder" else str(node.target)
        lines.append((target, repr(args), layout(node.meta.get("val"), memory)))
    return lines


def layout(value: Any, memory: dict[int, int]) -> Any:
    """What is known of a result, and the number of its memory, which views share."""
    if not isinstance(value, Tensor):
        return None
    number = memory.setdefault(value.untyped_storage()._cdata, len(memory))
    place = value.shape, value.stride(), value.storage_offset()
    return value.dtype, value.device, *place, number


def by_make_fx(function: Function, tensors: list[Tensor]) -> GraphModule:
    return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", NETWORKS)
def test_a_step_is_listed_as_by_make_fx(task: str, method: str, monkeypatch: Any) -> None:
    source, model = NETWORKS[task][0].build(), NETWORKS[task][1]
    made = METHODS[method].build(model.build(source.spec), source.spec)
    function, tensors = flat(made.step, made.init(fold_in(0)), source.sample(fold_in(1), 2))
    with torch.no_grad():
        expected = listed(by_make_fx(function, tensors))
        monkeypatch.delattr(recorder, "make_fx")  # which records nothing here
        assert listed(record(function, tensors)) == expected


def in_place(x: Tensor) -> Tensor:
    y = x * 2
    y[0].add_(WEIGHT)
    y.unsqueeze_(0)
    return y.relu_() + torch.tensor([1.0, 2.0, 3.0])


def without_autograd(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return F.linear(x, WEIGHT.expand(2, 3)).reshape(-1)


OPERATORS: dict[str, Function] = {
    "in place, through a view": in_place,
    "several results": lambda x: (*x.max(0), *x.split(1), *torch._foreach_mul([x, x], 2.0)),
    "composites": without_autograd,
    "constants": lambda x: x @ WEIGHT + torch.tensor(2.0) * torch.tensor(3).item() + WEIGHT[0],
    "counters and noise": lambda x: F.dropout(x) + torch.arange(3) + torch.zeros(3),
    "complex": lambda x: torch.view_as_real(torch.fft.rfft(x).conj() * 2).sum((0, 2)),
    "nothing": lambda x: (x, x),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_listed_as_by_make_fx(name: str) -> None:
    function, tensors = flat(OPERATORS[name], X)
    with torch.no_grad():
        assert listed(record(function, tensors)) == listed(by_make_fx(function, tensors))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x.sum() > 0 else -x,
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: x * float(x.data_ptr()),
        lambda x: x if WEIGHT.sum() > 0 else -x,
    ],
    ids=["branch", "numpy", "address", "branch on a constant"],
)
def test_a_course_that_depends_on_values_is_refused(function: Function) -> None:
    with pytest.raises(RuntimeError):
        record(*flat(function, X))


def test_a_size_that_depends_on_values_is_left_to_make_fx() -> None:
    function, tensors = flat(lambda x: x[x > 0] * 2, X)
    graph = record(function, tensors)
    assert graph(*tensors)[0].tolist() == [2.0, 6.0, 1.0, 8.0]
    assert graph(-X)[0].tolist() == [4.0, 2.0]


def test_a_function_knows_that_it_is_recorded() -> None:
    seen = []
    record(*flat(lambda x: seen.append(is_recorded()) or x, X))
    assert seen == [True] and not is_recorded()


def test_a_function_that_is_left_to_make_fx_knows_that_it_is_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = []
    with caplog.at_level("DEBUG", logger="metalearn"):
        record(*flat(lambda x: seen.append(is_recorded()) or x[x > 0], X))
    assert seen == [True, True] and not is_recorded()
    assert "recorded by make_fx" in caplog.text
