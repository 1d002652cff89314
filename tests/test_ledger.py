"""FLOPs against counts by hand, and a ledger that counts nothing twice and loses nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import case
from clusters import Clusters
from hand_counts import Net, maml, proto_net
from messages import collect_messages
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metalearn import rng
from metalearn.algorithms import MAML, ProtoNet, Reptile
from metalearn.config.registry import TABLES
from metalearn.evaluate import fingerprint as keys
from metalearn.evaluate import flops
from metalearn.evaluate.fingerprint import fingerprint
from metalearn.evaluate.flops import Flops, UnknownFlops, cached_count, count
from metalearn.evaluate.ledger import CostLedger
from metalearn.executors.executor import make_step
from metalearn.inner.method import broadcast_task_state
from metalearn.kernels import native
from metalearn.models import MLP, Conv4, from_module
from metalearn.transfer import FineTune
from metalearn.types import Batch, Episode, EpisodeSpec, Method

WAYS, SHOTS, QUERIES, FILTERS = 5, 1, 3, 6
SUPPORT, QUERY = WAYS * SHOTS, WAYS * QUERIES
SPEC = EpisodeSpec("classification", WAYS, SHOTS, QUERIES, (1, 28, 28), WAYS, 20)
NET = Net(FILTERS, WAYS)
CLOSE = 1e-3  # the tenth of a percent that is promised

native_kernel = pytest.mark.skipif(
    native.kernel() is None, reason=f"no native convolution: {native.why_not()}"
)


def conv4(**options: Any) -> Any:
    return Conv4(filters=FILTERS, **options).build(SPEC)


def episodes(tasks: int) -> Episode:
    def batch(each: int) -> Batch:
        y = (torch.arange(WAYS * each) % WAYS).expand(tasks, -1)
        return Batch(torch.zeros(tasks, WAYS * each, 1, 28, 28), y)

    keys = rng.fold_in(rng.fold_in(0, "tasks"), torch.arange(tasks))
    return Episode(batch(SHOTS), batch(QUERIES), {"key": keys})


def meta_step(method: Method, tasks: int, executor: str = "vmap") -> Flops:
    """FLOPs of one meta-step over T tasks."""
    state = broadcast_task_state(method.init(rng.fold_in(0, "init")), tasks)
    return count(make_step(method, executor, chunk=3), state, episodes(tasks))


#
# FLOPs against counts by hand

BY_HAND: dict[str, tuple[Any, int]] = {
    "maml": (MAML(inner_steps=1), maml(NET, SUPPORT, QUERY, 1, first_order=False)),
    "maml, 3 steps": (MAML(inner_steps=3), maml(NET, SUPPORT, QUERY, 3, first_order=False)),
    "maml, first order": (
        MAML(inner_steps=2, first_order=True),
        maml(NET, SUPPORT, QUERY, 2, first_order=True),
    ),
    "reptile": (Reptile(inner_steps=4, inner_batch=2), 4 * NET.gradient(2)),
    "proto_net": (ProtoNet(), proto_net(NET, WAYS, SUPPORT, QUERY)),
}


@native_kernel
@pytest.mark.parametrize("tasks", [1, 32])
@pytest.mark.parametrize("name", BY_HAND)
def test_a_meta_step_is_counted_as_by_hand(name: str, tasks: int) -> None:
    component, by_hand = BY_HAND[name]
    found = meta_step(component.build(conv4(), SPEC), tasks)
    assert found.matrix == pytest.approx(tasks * by_hand, rel=CLOSE)
    assert found.elementwise > 0


@native_kernel
@pytest.mark.parametrize("executor", ["loop", "chunk"])
@pytest.mark.parametrize("name", BY_HAND)
def test_and_the_same_in_a_loop(name: str, executor: str) -> None:
    component, by_hand = BY_HAND[name]
    assert meta_step(component.build(conv4(), SPEC), 4, executor).matrix == pytest.approx(
        4 * by_hand, rel=CLOSE
    )


@pytest.mark.parametrize("tasks", [1, 32])
def test_pretraining_and_fine_tuning_are_counted_as_by_hand(tasks: int) -> None:
    """Pretraining: a gradient with a head over 20 classes. Adapting: a gradient a step; answering:
    a pass a point."""
    method = FineTune(inner_lr=0.1).build(conv4(), SPEC)
    state, batch = (
        method.init(rng.fold_in(0, "init")),
        Batch(torch.zeros(64, 1, 28, 28), torch.arange(64) % 20),
    )
    assert method.step is not None
    assert count(method.step, state, batch).matrix == pytest.approx(
        Net(FILTERS, 20).gradient(64), rel=CLOSE
    )
    ledger, episode = CostLedger(), episodes(tasks)
    method.learn(state.meta, episode.support, episode.query.x, (0, 2, 5), ledger=ledger)
    cost = ledger.cost()
    assert cost["adapt"]["flops"] == pytest.approx(tasks * 5 * NET.gradient(SUPPORT), rel=CLOSE)
    assert cost["predict"]["flops"] == pytest.approx(tasks * 3 * NET.forward(QUERY), rel=CLOSE)
    assert cost["adapt"]["flops_architecture"] == cost["adapt"]["flops"]


def test_a_small_cell_is_counted_as_by_hand() -> None:
    """conv 1 x 1 on the edge into the first node, conv 3 x 3 on the second, the sum of both, a mean
    and a head."""
    side, width, batch = 14, 4, 3

    def cell(weights: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
        small, large, head = weights
        convolve = torch.nn.functional.conv2d
        z = convolve(x, small).relu() + convolve(x, large, padding=1).relu()
        return (z.mean((2, 3)) @ head).square().sum()

    places = batch * side * side
    convs = 2 * places * width * width * (1 + 9)
    head = 2 * batch * width * WAYS
    for tasks in (1, 32):
        weights = tuple(
            torch.zeros(tasks, *s)
            for s in ((width, width, 1, 1), (width, width, 3, 3), (width, WAYS))
        )
        x = torch.zeros(tasks, batch, width, side, side)
        assert count(torch.func.vmap(cell), weights, x).matrix == tasks * (convs + head)
        trained = count(torch.func.vmap(torch.func.grad(cell)), weights, x).matrix
        assert trained == tasks * (2 * convs + 3 * head)  # x is data: no gradient for it


def test_elementwise_work_is_counted_one_by_one() -> None:
    """Descent on P numbers: a product and a sum each; a squared error of B x C: a difference, a
    square, a mean."""
    assert count(lambda p, g: p + (-0.1 * g), torch.zeros(7, 3), torch.zeros(7, 3)) == (0, 42)
    assert count(lambda a, b: (a - b).square().mean(), torch.zeros(5, 2), torch.zeros(5, 2)) == (
        0,
        30,
    )
    # the minus
    assert count(lambda a: torch.where(a > 0, a, -a).clone()[:, :1], torch.zeros(5, 2)) == (0, 10)
    assert count(lambda y: (y + 1).sum(), torch.arange(9)) == (0, 0)  # whole numbers are no FLOPs
    batch, width = 4, 6
    learner = MLP(sizes=(width,), activation="relu").build(
        EpisodeSpec("regression", 1, 4, 4, (2,), 3, 0)
    )
    params = learner.init(rng.fold_in(0, "init"))
    expected = (2 * batch * (2 * width + width * 3), 0)
    assert count(learner.apply, params, torch.zeros(batch, 2)) == expected


def test_the_planted_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own rule forgets the groups that vmap makes of tasks; ours does not."""

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, w, padding=1).square().sum()

    def of(tasks: int) -> float:
        work = torch.func.vmap(torch.func.grad(loss))
        return (
            count(work, torch.zeros(tasks, 4, 4, 3, 3), torch.zeros(tasks, 2, 4, 8, 8)).matrix
            / tasks
        )

    assert of(1) == of(32) == 2 * 2 * 2 * 64 * 4 * 4 * 9
    monkeypatch.delitem(flops.RULES, "aten::convolution_backward")
    assert of(32) > 10 * of(1)


def test_matrix_products_are_those_of_torchs_counter() -> None:
    def work(a: Tensor, b: Tensor) -> Tensor:
        return (
            torch.func.grad(lambda w: torch.nn.functional.linear(a, w, b[0]).square().sum())(b)
            @ a.T
        )

    a, b = torch.zeros(7, 5), torch.zeros(5, 5)
    with FlopCounterMode(display=False) as counter:
        work(a, b)
    assert count(work, a, b).matrix == counter.get_total_flops() > 0


def test_solving_is_counted_as_products_are() -> None:
    n, m = 12, 3
    found = count(torch.linalg.solve, torch.zeros(4, n, n), torch.zeros(4, n, m)).matrix
    assert found == pytest.approx(4 * (2 * n**3 / 3 + 2 * n**2 * m), abs=4)
    assert count(torch.mv, torch.zeros(n, m), torch.zeros(m)).matrix == 2 * n * m


def test_what_does_not_follow_from_shapes_is_not_a_zero() -> None:
    with pytest.raises(UnknownFlops, match=r"svd.*not in the tables"):
        count(torch.linalg.svd, torch.zeros(3, 3))
    with pytest.raises(UnknownFlops, match="do not follow from shapes"):
        count(lambda x: x[: int(x.sum())], torch.zeros(3))
    ledger = CostLedger()
    ledger.run("adapt", torch.linalg.svd, torch.zeros(3, 3))
    ledger.run("adapt", torch.add, torch.zeros(3), torch.zeros(3))
    assert ledger.cost()["adapt"]["flops"] is None and "svd" in ledger.uncounted["adapt"]


@torch.library.custom_op("metalearn_tests::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return x / 2


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_unknown_operator_counts_one_an_element_and_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flops, "_assumed", set())
    messages = collect_messages()
    assert count(halve, torch.zeros(3, 4)) == (0, 12)
    assert count(halve, torch.zeros(3, 4)) == (0, 12)
    assert messages == [
        "warning: FLOPs: the operator metalearn_tests::halve is not in the tables of "
        "evaluate/flops.py and counts 1 per element of its result"
    ]


def test_what_names_its_parts_is_counted_by_them() -> None:
    class Twice:
        def __call__(self, x: Tensor) -> Tensor:
            return x + x + x

        def parts(self, x: Tensor) -> list[tuple[int, Callable[..., Any], tuple[Any, ...]]]:
            return [(2, torch.neg, (x,)), (0, torch.linalg.svd, (x,))]

    assert isinstance(Twice(), flops.Countable) and not isinstance(torch.neg, flops.Countable)
    assert cached_count(Twice(), torch.zeros(3, 4)) == (0, 24)


UNCOUNTED = {"gradient_boosting"}  # scikit-learn's trees compare numbers and multiply none


@pytest.mark.parametrize("name", TABLES["methods"])
def test_every_method_is_counted_and_its_steps_and_tasks_add_up(name: str) -> None:
    """S steps of T tasks from one task in 0 and 1 step: the same matrix products as those of the
    whole call."""
    given = case(name, TABLES["methods"][name])
    state, tests = given.state(), Clusters("test", 12)
    episode, ledger = tests.sample(rng.fold_in(0, "e"), 4), CostLedger()
    given.method.learn(state.meta, episode.support, episode.query.x, (0, 3), ledger=ledger)
    assert not ledger.uncounted
    cost = ledger.cost()
    if name in UNCOUNTED:
        assert {cost[phase]["flops"] for phase in given.method.traits.phases} == {None}
        return
    spent = sum(cost[phase]["flops"] for phase in given.method.traits.phases)
    if (
        given.method.traits.host_side
    ):  # which network is trained depends on values: tests/test_nas_methods.py counts it
        assert spent > 0
        return
    whole = count(
        lambda *args: given.method.learn(*args, (0, 3)),
        state.meta,
        episode.support,
        episode.query.x,
    )
    # A supernet's mixture before the first step is one for all tasks, and worked out once, and so
    # is the shift by CAVIA's zero context, and T W of a T-net at the start, of which the ledger
    # writes half to each. A part of a FLOP of prior_fitted's solve is rounded up. Held-out shots (3
    # step sizes, 2 folds, 6 examples, 4 tasks) are predicted at each of 2 points; one of them is
    # what learning in 3 steps costs.
    products = 2 * (8 * 8 * 6 + 7 * 7 * 8 + 3 * 3 * 7)
    shared = {"meta_nas": 3 * 2048, "cavia": 160, "t_net": 2 * products, "prior_fitted": 1}
    # P>M>F's class means at the first of the two points: features and sums of 6 examples.
    shared["pmf"] = -4 * 2 * (6 * (8 * 6 + 7 * 8) + 3 * 6 * 7)
    shared["fine_tune_cross_validated"] = -3 * 2 * 6 * 4 * 2 * (8 * 6 + 7 * 8 + 3 * 7)
    assert spent - shared.get(name, 0) == whole.matrix > 0
    if given.method.step is not None:
        assert count(given.method.step, state, given.data(0)).matrix > 0


# the keys


CALLS: list[int] = []  # no closure: what a function closes over is part of its key


def test_a_function_is_counted_once_for_its_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "_counted", {})
    CALLS.clear()

    def made(width: int, rate: float) -> Callable[[Tensor], Tensor]:
        def work(x: Tensor) -> Tensor:
            CALLS.append(width)
            return x @ torch.ones(x.shape[-1], width) * rate

        return work

    first = cached_count(made(3, 0.1), torch.zeros(2, 4))
    # another closure, rate, and values
    assert cached_count(made(3, 0.2), torch.ones(2, 4)) == first and CALLS == [3]
    # closes over another width
    assert cached_count(made(5, 0.1), torch.zeros(2, 4)).matrix == 2 * 2 * 4 * 5
    assert cached_count(made(3, 0.1), torch.zeros(6, 4)).matrix == 3 * first.matrix  # other shapes
    cached_count(made(3, 0.0), torch.zeros(2, 4))  # a rate of zero may leave a term out
    assert CALLS == [3, 5, 3, 3]


def test_the_module_of_a_learner_is_visited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch of a test asks for two or three keys."""
    net = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(20)))
    spec = EpisodeSpec("classification", 6, 1, 1, (6,), 6, 20)
    learner = from_module(net, spec)
    visited, visit = [0], keys._mapping

    def counted(*args: Any) -> Any:
        visited[0] += 1
        return visit(*args)

    monkeypatch.setattr(keys, "_mapping", counted)
    numbers = list[int]()
    for _ in range(3):
        visited[0] = 0
        fingerprint(MAML().build(learner, spec).learn)
        numbers.append(visited[0])
    assert numbers[0] > 60 and numbers[1] == numbers[2] < 10, numbers
    assert fingerprint(learner) == fingerprint(from_module(copy.deepcopy(net), spec))
    assert fingerprint(learner) != fingerprint(learner._replace(features=lambda params, x: x))
    assert fingerprint(learner) != fingerprint(learner._replace(frozen="another"))


def test_a_network_of_many_parameters_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameters, and those of each task, are in a new mapping for every batch of tasks."""
    spec = EpisodeSpec("classification", 2, 1, 1, (2,), 2, 20)
    net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(keys.LONG // 2 + 2)))
    method, made, counting = MAML().build(from_module(net, spec), spec), list[Any](), flops.count

    def counted(function: Any, *args: Any) -> Flops:
        made.append(function.indices)
        return counting(function, *args)

    monkeypatch.setattr(flops, "count", counted)
    monkeypatch.setattr(flops, "_counted", {})
    meta, ledger, y = method.init(rng.fold_in(0)).meta, CostLedger(), torch.tensor([[0, 1]])
    for _ in range(3):
        x = torch.rand(1, 2, 2)
        method.learn(dict(meta), Batch(x, y), x, (0, 1), ledger=ledger)
    assert len(meta) > keys.LONG and made == [(1,), (0,)] and ledger.uncounted == {}


def test_keys_tell_apart_what_differs_in_cost() -> None:
    def step(**options: Any) -> Any:
        filters = options.pop("filters", 4)
        norm = options.pop("norm", "none")
        return MAML(**options).build(Conv4(filters=filters, norm=norm).build(SPEC), SPEC).step

    plain = fingerprint(step())
    assert fingerprint(step()) == plain and fingerprint(step(inner_lr=0.7)) == plain
    for other in (
        step(filters=5),
        step(norm="query_batch"),
        step(inner_steps=2),
        step(first_order=True),
    ):
        assert fingerprint(other) != plain
    learned = [FineTune(adapts=what).build(conv4(), SPEC).learn for what in ("all", "head")]
    assert fingerprint(learned[0]) != fingerprint(learned[1])
    assert fingerprint([1, (2, "a")], {"b": None}) != fingerprint([1, (3, "a")], {"b": None})
    points = [{"w": torch.zeros(2)} for _ in range(keys.LONG + 1)]  # of a long learning curve
    assert fingerprint(points) == fingerprint(points.copy()) != fingerprint(points[1:])
    odd = object()
    assert fingerprint(odd) == fingerprint(odd) != fingerprint(object())
    loop: list[Any] = [1]
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(loop)
