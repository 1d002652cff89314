"""Memory: predicted, bounded, saved by computing again; and what fewer bits cost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import sinusoid
from messages import collect_messages
from small import SOURCE, conv_task, gap, tiny

from metalearn.algorithms import ANIL, BOIL, MAML, MetaSGD, Reptile
from metalearn.config.build import build
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.executors import executor, memory, timings, trace
from metalearn.executors.precision import FAR, gradient, gradient_error, with_precision
from metalearn.executors.timings import ExecutorChoice
from metalearn.inner.adapt import adapt
from metalearn.inner.method import (
    broadcast_task_state,
    init_state,
    make_step_over_tasks,
    make_task_grad,
    make_update,
)
from metalearn.inner.recompute import checkpointing
from metalearn.inner.rules import sgd
from metalearn.models import MLP
from metalearn.rng import fold_in
from metalearn.run import plan
from metalearn.run.run import run_one
from metalearn.tasks import Sinusoid
from metalearn.types import Batch, MetaState


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(timings, "COMPILER_CACHE", tmp_path / "cache")
    return tmp_path


def test_memory_is_predicted_from_two_tasks_and_four() -> None:
    """Within 5 percent of the tensors that are counted as they live and die; of one task alone,
    never too little."""
    mlp = Sinusoid(shots=10).build()
    small_one = MAML(inner_steps=2).build(MLP(sizes=(40, 40)).build(mlp.spec), mlp.spec)
    for source, method in ((mlp, small_one), conv_task(1, torch.float32)):
        state, episodes = method.init(fold_in(0)), source.sample(fold_in(1), 12)
        found = memory.predict(method, state, episodes)
        assert found is not None
        for chunk in (1, 4, 12):
            step = executor.make_step(method, "chunk", chunk)
            counted = (
                memory.peak_of(step, state, episodes)
                + memory.nbytes(episodes)
                + memory.nbytes(state)
            )
            assert 0.95 * counted < found.peak(chunk) < (1.05 if chunk > 1 else 1.1) * counted, (
                chunk
            )


def test_memory_grows_with_the_chunk_not_with_the_tasks() -> None:
    source = Sinusoid(shots=5, queries=5).build()
    method = MAML(inner_steps=2).build(MLP(sizes=(24, 24)).build(source.spec), source.spec)
    state = method.init(fold_in(0))

    def peak(tasks: int, chunk: int) -> int:
        def step() -> Any:  # sampling included
            return executor.make_step(method, "chunk", chunk)(
                state, source.sample(fold_in(1), tasks)
            )

        return memory.peak_of(step)

    few = peak(32, 32)
    assert peak(512, 32) < 1.2 * few
    assert peak(512, 512) > 10 * few


def test_the_chunk_is_chosen_to_fit() -> None:
    found = memory.Memory(held=100, fixed=200, each=50)
    room = int((100 + 200 + 8 * 50) / memory.SHARE) + 1
    assert found.fits(64, room) == 8 and found.peak(8) <= memory.SHARE * room
    assert found.fits(64, None) == 64 and found.fits(4, room) == 4 and found.fits(64, 0) == 1


def test_a_run_takes_the_chunk_that_fits(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto and `compiled` alike; and one that was asked for and does not fit is reported."""
    experiment = parse(
        sinusoid(run={"executor": "auto", "meta_steps": 20, "tasks_per_step": 12})
    ).experiments[0]
    parts = build(experiment)
    state = broadcast_task_state(parts.method.init(fold_in(0)), 12)
    found = memory.predict(parts.method, state, parts.train.sample(fold_in(0), 12))
    assert found is not None
    monkeypatch.setattr(memory, "room", lambda device: int((found.peak(5) + 1) / memory.SHARE) + 1)
    assert plan.decide(experiment, parts, state).choice == ExecutorChoice("chunk", 5)
    monkeypatch.setattr(memory, "room", lambda device: found.peak(5))
    with_vmap = experiment.replace(run=experiment.run.model_copy(update={"executor": "vmap"}))
    planned = plan.decide(with_vmap, parts, state)
    assert planned.choice == ExecutorChoice("vmap") and "run.chunk" in "".join(planned.messages)


def test_room_is_what_the_machine_and_its_control_group_leave(tmp_path: Path) -> None:
    assert memory._group_room(tmp_path) is None
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._group_room(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._group_room(tmp_path) == 700
    room = memory.room("cpu")
    assert room is None or room > 0


#
# checkpointed inner steps

STEPPING = [
    MAML(inner_steps=4, inner_lr=0.1),
    MAML(inner_steps=4, inner_lr=0.1, first_order=True),
    ANIL(inner_steps=4),
    BOIL(inner_steps=4),
    MetaSGD(inner_steps=4),
    Reptile(inner_steps=4, inner_batch=3),
]


@pytest.mark.parametrize("component", STEPPING, ids=lambda component: f"{component.name}")
def test_checkpointed_inner_steps_have_the_same_gradient(component: Any) -> None:
    """To 1e-10 in float64; under vmap, in a loop, and traced."""
    method = component.build(MLP(sizes=(9, 8), activation="tanh").build(SOURCE.spec), SOURCE.spec)
    state, episodes = broadcast_task_state(method.init(fold_in(0)), 3), SOURCE.sample(fold_in(1), 3)
    expected = gradient(method, state, episodes)
    run = parse(sinusoid(run={"checkpoint_inner": True})).experiments[0].run
    other = with_precision(method, run.precision, run.checkpoint_inner, "cpu")
    assert gap(gradient(other, state, episodes), expected) < 1e-10
    caught = other._replace(update=lambda state, grads: state._replace(meta=grads))
    step = make_step_over_tasks(caught.task_grad, caught.update, caught.spec)
    assert gap(step(state, episodes)[0].meta, expected) < 1e-10
    assert (
        gap(
            trace.specialize_by_shape(step, trace.interpret_unchanged)(state, episodes)[0].meta,
            expected,
        )
        < 1e-10
    )


def test_checkpointed_inner_steps_take_less_memory() -> None:
    """Eight steps of a convolutional network: less than half, and hardly more than a quarter as
    many steps take."""
    peaks = {}
    for steps in (2, 8):
        source, method = conv_task(steps)
        state, episodes = method.init(fold_in(0)), source.sample(fold_in(1), 2)
        for on in (False, True):
            with checkpointing(on):
                peaks[steps, on] = memory.peak_of(
                    executor.make_step(method, "vmap"), state, episodes
                )
    assert peaks[8, True] < 0.5 * peaks[8, False]
    assert peaks[8, True] < 1.5 * peaks[2, True] and peaks[8, False] > 2.5 * peaks[2, False]


def test_a_gradient_that_flows_past_adapt_is_noticed() -> None:
    """A loss that closes over meta parameters would lose their gradient: the run is refused, not
    trained wrongly."""
    learner = MLP(sizes=(6,)).build(SOURCE.spec)

    def task_loss(meta: Any, episode: Any) -> Any:
        def loss(params: Any, batch: Batch, step: int) -> torch.Tensor:
            penalty = sum(((params[name] - meta[name] - 1) ** 2).sum() for name in meta)
            return ((learner.apply(params, batch.x) - batch.y) ** 2).mean() + 0.1 * penalty

        end = adapt(loss, meta, sgd(0.1), episode.support, 2).points[-1]
        return ((learner.apply(end, episode.query.x) - episode.query.y) ** 2).mean(), {}

    update = make_update(sgd(0.1))
    method = tiny()._replace(task_grad=make_task_grad(task_loss, learner), update=update)
    state: MetaState = init_state(learner.init(fold_in(0)), sgd(0.1))
    run = parse(sinusoid(run={"checkpoint_inner": True})).experiments[0].run
    error = gradient_error(
        method,
        with_precision(method, run.precision, run.checkpoint_inner, "cpu"),
        state,
        SOURCE.sample(fold_in(1), 2),
        "float32",
    )
    assert error is not None and error > 10 * FAR
    data = sinusoid(run={"checkpoint_inner": True, "dtype": "float64"}, model={"sizes": [6]})
    experiment = parse(data).experiments[0]
    parts = build(experiment)
    plan.decide(experiment, parts, parts.method.init(fold_in(0)))
    with pytest.raises(ConfigError, match="checkpoint_inner"):
        plan.decide(experiment, replace(parts, method=method, train=SOURCE), state)


# precision


def test_the_error_of_a_precision_is_measured_and_written_down(own_cache: Path) -> None:
    experiment = parse(sinusoid(run={"precision": "bf16", "meta_steps": 4})).experiments[0]
    messages = collect_messages()
    run_one(experiment, own_cache / "bf16")
    facts = json.loads((own_cache / "bf16" / "environment.json").read_text())["precision"]
    # eight bits: 4e-3 a rounding
    assert facts["precision"] == "bf16" and 1e-4 < facts["gradient_error"] < 0.1
    assert any("bf16 differs" in line for line in messages)
    plain = parse(sinusoid()).experiments[0]
    assert plain.hash() != experiment.hash()  # another precision is another result
    chunked = parse(
        sinusoid(run={"chunk": 2, "checkpoint_inner": True, "executor": "chunk"})
    ).experiments[0]
    assert plain.hash() == chunked.hash()


FAULTS = """
import resource
from metalearn.executors.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        bytearray(b"x") * (40 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), int(keep_freed_memory()), faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    before, allowed, after = map(int, done.stdout.split())
    if not allowed:
        pytest.skip("no glibc")
    assert after < before / 4  # one array's pages instead of eight times those
