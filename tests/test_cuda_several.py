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
from metalearn.executors.step import make_step_fn
from metalearn.rng import fold_in
from metalearn.run import loop, plan
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
    made = make_step_fn(method, draw, key, tasks=TASKS, device="cuda", executor="graph")
    state, metrics = start_of(method), []
    for number in range(1 + 2 * COUNT):
        state, found = made.step(state, made.sample(number))
        metrics.append(found)
    assert made.several is not None
    at_once, first = made.step(start_of(method), made.sample(0))
    at_once, rest = made.several(at_once, 1, COUNT)
    before, copies = at_once, [leaf.clone() for leaf in leaves(at_once)]
    with no_waits():
        at_once, last = made.several(at_once, 1 + COUNT, COUNT)
    check_same_bits((at_once, [first, *rest, *last]), (state, metrics))
    assert all(torch.equal(a, b) for a, b in zip(leaves(before), copies, strict=True))


@pytest.mark.parametrize("why", ["no memory", "too large"])
def test_several_steps_that_cannot_be_captured_are_single_replays(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, method = METHODS["maml"].built("cuda")
    key, draw = fold_in(0, "train"), draw_of(source, method)
    made = make_step_fn(method, draw, key, tasks=TASKS, device="cuda", executor="graph")
    state, metrics = made.step(start_of(method), made.sample(0))[0], []
    expected = state
    for number in range(1, 1 + COUNT):
        expected, found = made.step(expected, made.sample(number))
        metrics.append(found)

    def fail(*args: Any) -> Any:
        assert why == "no memory"
        raise RuntimeError

    monkeypatch.setattr(cuda_graphs, "_captured_flat", fail)
    monkeypatch.setattr(cuda_graphs, "LARGEST", 0 if why == "too large" else 1 << 30)
    assert made.several is not None
    for _ in range(2):
        check_same_bits(made.several(state, 1, COUNT), (expected, metrics))


def test_a_run_replays_several_steps_up_to_the_next_log_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are those of single steps."""
    sizes: list[int] = []
    several = plan.TrainingSteps
    options = {"log_every": 4, "checkpoint_every": 8, "meta_steps": 14}
    chosen = experiment(device="cuda", executor="graph", validate={"every": None}, **options)
    for name, longest in (("single", 1), ("several", 50)):
        monkeypatch.setattr(plan, "LONGEST", longest)
        monkeypatch.setattr(loop, "WORTH", 0)

        def watched(*args: Any, **more: Any) -> Any:
            made = several(*args, **more)
            if made.several is None:
                return made
            inner = made.several

            def counted(state: Any, number: int, count: int) -> Any:
                sizes.append(count)
                return inner(state, number, count)

            return several(*args[:5], counted, *args[6:], **more)

        monkeypatch.setattr(plan, "TrainingSteps", watched)
        run_one(chosen, tmp_path / name)
        monkeypatch.setattr(plan, "TrainingSteps", several)
    assert sizes == [4, 4]  # steps 4 to 11; 1 to 3 and 12, 13 are single replays
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
    assert plan._steps_at_once(run) == size
