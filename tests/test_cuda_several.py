"""Several steps in one captured graph: the bits of so many single replays.

Run on a real card, or on an emulated one (test_cuda_emulated.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_cases import METHODS, TASKS, draw_of, start_of
from test_cuda import no_waits
from test_cuda_runs import experiment

from metalearn.executors import cuda_graphs
from metalearn.executors.step import build_train_step
from metalearn.rng import fold_in
from metalearn.run import loop
from metalearn.run.run import run_one
from metalearn.storage import checkpoint
from metalearn.tree import leaves, named_leaves

pytestmark = pytest.mark.gpu
COUNT = 3


def check_same_bits(found: Any, expected: Any) -> None:
    ours, theirs = named_leaves(found), named_leaves(expected)
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        assert torch.equal(ours[name], leaf), name


@pytest.mark.parametrize("name", ["maml", "reptile", "proto_net", "learned-meta"])
def test_several_steps_of_one_graph_are_single_replays(name: str) -> None:
    source, method = METHODS[name].built("cuda")
    key, draw = fold_in(0, "train"), draw_of(source, method)
    made = build_train_step(method, draw, key, tasks=TASKS, device="cuda", executor="graph")
    state, metrics = start_of(method), []
    for number in range(1 + 2 * COUNT):
        state, found = made.step(state, made.step_input(number))
        metrics.append(found)
    assert made.multi_step is not None
    at_once, first = made.step(start_of(method), made.step_input(0))
    at_once, rest = made.multi_step(at_once, 1, COUNT)
    before, copies = at_once, [leaf.clone() for leaf in leaves(at_once)]
    with no_waits():
        at_once, last = made.multi_step(at_once, 1 + COUNT, COUNT)
    check_same_bits((at_once, [first, *rest, *last]), (state, metrics))
    assert all(torch.equal(a, b) for a, b in zip(leaves(before), copies, strict=True))


@pytest.mark.parametrize("why", ["no memory", "too large"])
def test_several_steps_that_cannot_be_captured_are_single_replays(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, method = METHODS["maml"].built("cuda")
    key, draw = fold_in(0, "train"), draw_of(source, method)
    made = build_train_step(method, draw, key, tasks=TASKS, device="cuda", executor="graph")
    state, metrics = made.step(start_of(method), made.step_input(0))[0], []
    expected = state
    for number in range(1, 1 + COUNT):
        expected, found = made.step(expected, made.step_input(number))
        metrics.append(found)

    def fail(*args: Any) -> Any:
        assert why == "no memory"
        raise RuntimeError

    monkeypatch.setattr(cuda_graphs, "_captured_flat", fail)
    monkeypatch.setattr(cuda_graphs, "LARGEST", 0 if why == "too large" else 1 << 30)
    assert made.multi_step is not None
    for _ in range(2):
        check_same_bits(made.multi_step(state, 1, COUNT), (expected, metrics))


def test_a_run_replays_several_steps_up_to_the_next_log_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are those of single steps."""
    sizes: list[int] = []
    run_steps = loop._run_steps
    options = {"log_every": 4, "checkpoint_every": 8, "meta_steps": 14}
    chosen = experiment(device="cuda", executor="graph", validate={"every": None}, **options)

    def counted(execution: Any, state: Any, step_index: int, count: int) -> Any:
        sizes.append(count)
        return run_steps(execution, state, step_index, count)

    monkeypatch.setattr(loop, "MIN_REPLAYS", 0)
    monkeypatch.setattr(loop, "_run_steps", counted)
    for name, longest in (("single", 1), ("several", 50)):
        sizes.clear()
        monkeypatch.setattr(loop, "MAX_REPLAY_STEPS", longest)
        run_one(chosen, tmp_path / name)
    assert sizes == [1, 1, 1, 1, 4, 4, 1, 1]  # steps 0 to 3, 4 to 7, 8 to 11, 12 and 13
    single, together = (
        checkpoint.read(sorted((tmp_path / name).rglob("step-*.pt"))[-1])
        for name in ("single", "several")
    )
    check_same_bits(together, single)
    files = [next((tmp_path / name).rglob("metrics.jsonl")) for name in ("single", "several")]
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    losses = [[(line["step"], line.get("query_loss")) for line in each] for each in lines]
    assert losses[0] == losses[1]
    assert [line["step"] for line in lines[1] if line["kind"] == "train"] == [4, 8, 12, 14]


@pytest.mark.parametrize(
    ("log", "save", "validate", "size"),
    [(50, 500, 1000, 50), (100, 500, None, 50), (7, 21, None, 7), (10, 25, 40, 5), (3, 7, None, 1)],
)
def test_the_size_divides_all_distances(
    log: int, save: int, validate: int | None, size: int
) -> None:
    run = experiment(log_every=log, checkpoint_every=save, validate={"every": validate}).run
    assert loop._max_steps_per_call(run) == size
