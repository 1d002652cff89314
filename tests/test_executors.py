"""Executors: equal numbers, whoever runs the steps, compiled by tracing or captured; none where it
cannot run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from checks import Case, case, close
from commandline import sinusoid
from small import SOURCE, gap, pictures, tiny

from metalearn.algorithms import ANIL, BOIL, MAML, Reptile
from metalearn.config.build import build
from metalearn.config.experiment import parse
from metalearn.config.registry import METHODS
from metalearn.config.signature import signature
from metalearn.errors import ConfigError
from metalearn.executors import chunks, executor, trace
from metalearn.executors.precision import gradient
from metalearn.executors.step import TrainStep, build_train_step
from metalearn.inner.method import broadcast_task_state, make_step_over_tasks
from metalearn.models import MLP, from_module
from metalearn.rng import fold_in, uniform
from metalearn.tasks import Sinusoid
from metalearn.tree import add, leaves, tree_map

F64 = torch.float64
EPISODIC = ["maml", "anil", "meta_sgd", "reptile", "proto_net"]
CHOICES = [
    ("loop", None),
    ("traced", None),
    ("chunk", 2),
    ("compiled", None),
    ("compiled", 2),
    ("compiled_loop", None),
]
needs_compiler = pytest.mark.skipif(
    not executor.compiler_found(), reason="no C++ compiler was found"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces are run operation by operation: all of `compiled` but the C++."""
    monkeypatch.setattr(trace, "compile_flat", trace.interpret_unchanged)


def after_two(given: Case, step: Callable[..., Any]) -> Any:
    state, found = given.state(), []
    for number in range(2):
        state, metrics = step(state, given.data(number))
        found.append(metrics)
    return state, found


# the numbers


@pytest.mark.parametrize(
    ("name", "choice"), [(name, choice) for name in EPISODIC for choice in CHOICES]
)
def test_executors_are_equal_in_float64(
    name: str, choice: tuple[str, int | None], uncompiled: None
) -> None:
    """Two steps of five tasks (a chunk of 2 leaves a chunk of 1), lanes and the outer rule's state
    included."""
    given = case(name, METHODS[name])
    assert given.method.step is not None
    close(
        after_two(given, executor.make_step(given.method, *choice)),
        after_two(given, given.method.step),
    )


@pytest.mark.parametrize("name", EPISODIC)
def test_executors_stay_within_rounding_in_float32(name: str, uncompiled: None) -> None:
    """Relative distance of the meta-gradient to the loop's in float64: 1e-5, a hundred times the
    unit of rounding."""
    exact, rough = case(name, METHODS[name]), case(name, METHODS[name], dtype=torch.float32)
    state, data = exact.state(), exact.data(0)
    truth = leaves(gradient(exact.method, state, data))
    single = tree_map(
        lambda x: x.float() if x is not None and x.is_floating_point() else x, (state, data)
    )
    caught = rough.method._replace(update=lambda state, grads: state._replace(meta=grads))
    assert caught.task_grad is not None and caught.update is not None
    caught = caught._replace(
        step=make_step_over_tasks(caught.task_grad, caught.update, caught.spec)
    )
    for choice in [*CHOICES, ("vmap", None)]:
        found = leaves(executor.make_step(caught, *choice)(*single)[0].meta)
        assert found[0].dtype == torch.float32
        assert 0 < gap([leaf.double() for leaf in found], truth) < 1e-5, choice


def steps_of(method: Any, source: Any, tasks: int, choice: tuple[str, int | None]) -> TrainStep:
    key, device = fold_in(0, "train"), source.spec.device
    options = {"tasks": tasks, "device": device, "executor": choice[0], "chunk": choice[1]}
    return build_train_step(method, source.sample, key, **options)


def advanced(
    method: Any, source: Any, choice: tuple[str, int | None], steps: int = 3, tasks: int = 5
) -> Any:
    """State and metrics after some steps, from step 7 on."""
    made = steps_of(method, source, tasks, choice)
    state, found = broadcast_task_state(method.init(fold_in(0, "init")), tasks), []
    for number in range(7, 7 + steps):
        state, metrics = made.step(state, made.step_input(number))
        found.append(metrics)
    return state, found


@needs_compiler
def test_the_compiler_makes_the_same_steps_sampling_included() -> None:
    """The real compiler: the whole step with its sampling, and chunks of 2 of 5 tasks; odd numbers
    of everything."""
    method = tiny()
    expected = advanced(method, SOURCE, ("vmap", None))
    close(advanced(method, SOURCE, ("compiled", None)), expected)
    close(advanced(method, SOURCE, ("compiled", 2)), expected)
    state, key = method.init(fold_in(0, "init")), fold_in(0, "train")
    for number in range(
        7, 10
    ):  # step n of a run learns from fold_in(seed, "train", n), whoever draws it
        state, _ = method.step(state, SOURCE.sample(fold_in(0, "train", number), 5))
    close(state, expected[0])
    assert int(key) == int(fold_in(0, "train"))


@needs_compiler
@pytest.mark.parametrize("size", [23, 1028])
def test_compiled_random_numbers_are_right_at_odd_sizes(size: int) -> None:
    """Counters come from outside: torch 2.13's CPU compiler goes wrong on large numbers times
    `arange` (see rng.py)."""

    def draw(key: torch.Tensor) -> torch.Tensor:
        return uniform(fold_in(key, torch.arange(size)), (3,), dtype=F64)

    key = fold_in(3, "odd")
    found = trace.trace(draw, key)
    assert [tuple(value.shape) for value in found.constants if value.numel() == size]
    assert not any("arange" in str(node.target) for node in found.graph.graph.nodes)
    assert torch.equal(trace.compile_function(draw)(key), draw(key))


def test_constants_become_inputs_and_fills_stay() -> None:
    table = torch.arange(6.0, dtype=F64)

    def function(x: torch.Tensor, pair: Any) -> Any:
        return {"sum": x + table[2:5] + torch.zeros(3, dtype=F64), "rest": (pair[0], None)}

    found = trace.trace(function, torch.ones(3, dtype=F64), (torch.ones(()), None))
    assert [value.tolist() for value in found.constants] == [[2.0, 3.0, 4.0]]
    run = trace.specialize_by_shape(function, trace.interpret_unchanged)
    for x in (torch.ones(3, dtype=F64), torch.full((3,), 2.0, dtype=F64)):
        result = run(x, (torch.ones(()), None))
        assert result["sum"].tolist() == (x + table[2:5]).tolist() and result["rest"][1] is None


def test_what_changes_in_place_is_no_constant() -> None:
    def counting(x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(3.0)
        places += x
        return places

    run = trace.specialize_by_shape(counting, trace.interpret_unchanged)
    assert [run(torch.ones(3)).tolist() for _ in range(2)] == [[1.0, 2.0, 3.0]] * 2


def test_what_is_written_through_a_view_is_no_constant() -> None:
    """As a gather of images writes its blocks: the concatenation would be of what lay in memory."""

    def gathered(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(4)
        torch.mul(x, 2.0, out=out[:4])
        return torch.cat([out.reshape(2, 2), out.reshape(2, 2)])

    run = trace.specialize_by_shape(gathered, trace.interpret_unchanged)
    x = torch.arange(4.0)
    assert [run(x + n).tolist() for n in range(2)] == [gathered(x + n).tolist() for n in range(2)]


def test_sampling_is_compiled_where_data_are_computed_not_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = fold_in(0, "train")
    assert trace.has_small_constants(lambda key: SOURCE.sample(key, 3), key)
    images = pictures()
    assert trace.traceable(lambda key: images.sample(key, 3), key) is not None
    monkeypatch.setattr(trace, "LIGHT", 1000)
    assert not trace.has_small_constants(lambda key: images.sample(key, 3), key)
    on_host = trace.has_small_constants(lambda key: torch.full((2,), float(int(key))), key)
    assert not on_host
    # a draw that no key decides would be frozen
    assert not trace.has_small_constants(lambda key: torch.ones(2), key)


@pytest.mark.parametrize(
    ("name", "device", "chunk", "words"),
    [
        ("graph", "cpu", None, "CUDA"),
        ("compiled_graph", "cpu", None, "CUDA"),
        ("graph", "cuda:0", 4, "run.chunk"),
        ("vmap", "cpu", None, None),
        ("compiled_graph", "cuda", None, None),
    ],
)
def test_executors_say_where_they_cannot_run(
    name: str, device: str, chunk: int | None, words: str | None
) -> None:
    why = executor.why_not(name, device, chunk)
    assert why is None if words is None else why is not None and words in why


def test_a_run_refuses_what_its_device_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sentences at once; and only to train: a finished run is opened anywhere."""
    bad = parse(
        sinusoid(run={"executor": "graph", "precision": "tf32", "dtype": "float64"})
    ).experiments[0]
    with pytest.raises(ConfigError) as found:
        build(bad, to_train=True)
    expected = ["run.executor", "run.precision", "run.precision"]
    assert [place for place, _ in found.value.problems] == expected
    build(bad)
    monkeypatch.setattr(executor, "compiler_found", lambda: False)
    with pytest.raises(ConfigError, match="C\\+\\+ compiler"):
        build(parse(sinusoid(run={"executor": "compiled"})).experiments[0], to_train=True)


@pytest.mark.parametrize("kind", [MAML, ANIL, BOIL, Reptile])
def test_a_step_of_another_inner_rate_is_the_same_code_or_another_signature(kind: Any) -> None:
    """The rate is an input of the step: a sweep over it compiles once. Where it is not, what is
    known is not shared."""
    data = SOURCE.sample(fold_in(1), 3)
    found = []
    for rate in (0.01, 0.1):
        method = kind(inner_lr=rate).build(MLP(sizes=(6,)).build(SOURCE.spec), SOURCE.spec)
        state = method.init(fold_in(0))
        found.append((trace.trace(method.step, state, data), method.step(state, data)))  # type: ignore[misc, arg-type]
    (one, first), (two, second) = found
    names = []
    for rate in (0.01, 0.1):
        experiment = parse(sinusoid(method={"name": kind().name, "inner_lr": rate})).experiments[0]
        names.append(signature(experiment, SOURCE.spec, "cpu"))
    assert (one.graph.code == two.graph.code) == (names[0] == names[1]) == (kind is not Reptile)
    assert any(not torch.equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


# threads


@pytest.mark.parametrize("name", ["maml", "reptile"])
@pytest.mark.parametrize("choice", [("loop", None), ("chunk", 2), ("compiled", 2)])
def test_the_bits_do_not_depend_on_the_number_of_workers(
    name: str, choice: tuple[str, int | None], uncompiled: None
) -> None:
    given = case(name, METHODS[name], dtype=torch.float32)
    before = torch.get_num_threads()
    found = []
    for threads, workers in ((1, 1), (2, 1), (2, 2), (1, 3)):
        torch.set_num_threads(threads)
        try:
            found.append(after_two(given, executor.make_step(given.method, *choice, workers)))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(leaves(found[0]), leaves(other), strict=True))


def test_chunks_run_in_threads_of_one_processor_each() -> None:
    given, seen = case("maml", METHODS["maml"]), set[tuple[str, int]]()
    assert given.method.task_grad is not None

    def task_grad(*args: Any) -> Any:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return given.method.task_grad(*args)  # type: ignore[misc]

    before = torch.get_num_threads()
    watched = given.method._replace(task_grad=task_grad)
    executor.make_step(watched, "loop", workers=3)(given.state(), given.data(0))
    assert seen and {count for _, count in seen} == {1}
    assert all(name.startswith("metalearn-chunk") for name, _ in seen)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_sums_do_not_wait_for_cores_of_the_chunks(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    """A parallel sum waits for a thread that has no core: a step took 1.5 times as long."""
    given, seen, before = case("maml", METHODS["maml"]), [], torch.get_num_threads()

    def watched(a: Any, b: Any) -> Any:
        seen.append(torch.get_num_threads())
        if error:
            raise error
        return add(a, b)

    monkeypatch.setattr(chunks, "add", watched)
    torch.set_num_threads(2)
    try:
        with pytest.raises(error) if error else nullcontext():
            executor.make_step(given.method, "loop", workers=2)(given.state(), given.data(0))
        assert seen and set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_share_no_module() -> None:
    """Modules from outside, with dropout: parameters and noise of a chunk are its own."""
    net = torch.nn.Sequential(
        torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
    )
    source = Sinusoid(shots=5, queries=4).build()
    learner = from_module(net, source.spec)
    method = MAML(inner_steps=2).build(learner, source.spec)
    state, data = method.init(fold_in(0)), source.sample(fold_in(1), 12)
    found = [executor.make_step(method, "loop", workers=count)(state, data) for count in (1, 3, 3)]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(leaves(found[0]), leaves(other), strict=True))


def test_threads_do_not_write_the_code_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written under the lock of the trace: written by two threads at once it is wrong."""
    run = trace.specialize_by_shape(torch.sin, trace.interpret_unchanged)
    value = torch.ones(3)
    call = run.at(value)

    def python_code(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("code is written in a call")

    monkeypatch.setattr(torch.fx.Graph, "python_code", python_code)
    assert torch.equal(*call(value), value.sin())


def test_an_error_in_a_chunk_is_the_error_of_the_step() -> None:
    given = case("maml", METHODS["maml"])

    def task_grad(*args: Any) -> Any:
        raise ZeroDivisionError("in a chunk")

    broken = given.method._replace(task_grad=task_grad)
    with pytest.raises(ZeroDivisionError, match="in a chunk"):
        executor.make_step(broken, "chunk", 2, workers=2)(given.state(), given.data(0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    given = case("maml", METHODS["maml"])
    step = executor.make_step(given.method, "loop", workers=2)
    step(given.state(), given.data(0))
    child = os.fork()
    if child == 0:
        step(given.state(), given.data(0))
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# CUDA


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vmap", "chunk", "compiled", "graph", "compiled_graph"])
def test_cuda_executors_are_equal_and_never_wait(name: str) -> None:
    source = Sinusoid(shots=5, queries=4).build(device="cuda", dtype=F64)
    method = MAML(inner_lr=0.1).build(MLP(sizes=(6,)).build(source.spec), source.spec)
    expected = advanced(method, source, ("loop", None))
    close(advanced(method, source, (name, None)), expected)
    made = steps_of(method, source, 5, (name, None))
    state, _ = made.step(method.init(fold_in(0, "init")), made.step_input(0))
    before = tree_map(torch.clone, state)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in (1, 2, 3):
            after, _ = made.step(state, made.step_input(number))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    close(state, before)  # what was returned is not written to again
    assert not torch.equal(leaves(after.meta)[0], leaves(state.meta)[0])
