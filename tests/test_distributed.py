"""Several processes at one run: the same numbers as one, signals and deaths on the way, one that
writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import TASKS, Case, case, close
from commandline import Commands, refused, sinusoid, write

from metalearn.config.registry import METHODS
from metalearn.distributed.ranks import Ranks
from metalearn.distributed.world import World
from metalearn.executors import trace
from metalearn.executors.step import Packing, build_train_step, rank_slice
from metalearn.rng import fold_in
from metalearn.storage import checkpoint
from metalearn.tree import tree_map

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64: the same sums in another order
EPISODIC = ["maml", "anil", "meta_sgd", "reptile", "proto_net"]
EAGER = [("loop", None), ("vmap", None), ("chunk", 2)]
CHOICES = [*EAGER, ("traced", None), ("compiled", None), ("compiled", 2), ("compiled_loop", None)]
# tasks that neither two nor three processes share evenly
FIVE = {"tasks_per_step": 5, "dtype": "float64"}
LONG = {**FIVE, "meta_steps": 1_000_000, "checkpoint_every": 20, "validate": {"every": None}}


# the numbers


@pytest.mark.parametrize(("count", "size"), [(5, 2), (5, 3), (7, 7), (2, 3), (0, 2)])
def test_things_are_shared_out_in_order_and_all_of_them(count: int, size: int) -> None:
    shares = [rank_slice(count, rank, size) for rank in range(size)]
    assert [n for first, many in shares for n in range(first, first + many)] == list(range(count))
    assert max(many for _, many in shares) - min(many for _, many in shares) <= 1


def test_a_tree_is_packed_into_one_vector_and_back() -> None:
    tree = (
        {"a": torch.ones(2, 3), "b": torch.tensor(2.0)},
        {"loss": torch.tensor(0.1, dtype=torch.float64)},
    )
    packing = Packing()
    vector = packing.pack(tree)
    assert vector.shape == (8,) and vector.dtype == torch.float64
    close(packing.unpack(2 * vector), tree_map(lambda x: 2 * x, tree), **EXACT)


class Meeting(Exception):
    """A rank has come to where it would meet the others."""


class Rank:
    """One of several ranks in this process. Steps are pure: each is made twice, up to the meeting
    and through it."""

    def __init__(self, given: Case, choice: tuple[str, int | None], rank: int, size: int) -> None:
        self.state = Ranks(World(rank, size, rank, size)).own_state(given.state(), TASKS)
        self.sum: torch.Tensor | None = None
        self.made = build_train_step(
            given.method,
            given.source.sample,
            fold_in(0, "train"),
            tasks=TASKS,
            device="cpu",
            executor=choice[0],
            chunk=choice[1],
            task_slice=rank_slice(TASKS, rank, size),
            sum_over_ranks=self.total,
        )

    def total(self, vector: torch.Tensor) -> torch.Tensor:
        if self.sum is None:
            self.brought = vector
            raise Meeting
        return self.sum.clone()

    def up_to_the_meeting(self, number: int) -> torch.Tensor:
        self.sum = None
        with pytest.raises(Meeting):
            self.made.step(self.state, self.made.step_input(number))
        return self.brought

    def through_it(self, number: int, total: torch.Tensor) -> Any:
        self.sum = total
        self.state, metrics = self.made.step(self.state, self.made.step_input(number))
        return metrics


def side_by_side(given: Case, choice: tuple[str, int | None], size: int, steps: int = 2) -> Any:
    """(state with all lanes, metrics) after some steps of so many ranks."""
    ranks, metrics = [Rank(given, choice, rank, size) for rank in range(size)], []
    for number in range(steps):
        total = torch.stack([rank.up_to_the_meeting(number) for rank in ranks]).sum(0)
        found = [rank.through_it(number, total) for rank in ranks]
        for other, other_metrics in zip(ranks, found):  # every rank makes the same update
            close(
                (other.state.meta, other.state.opt, other_metrics),
                (ranks[0].state.meta, ranks[0].state.opt, found[0]),
            )
        metrics.append(found[0])
    state = ranks[0].state
    if state.lanes is not None:
        lanes = tree_map(lambda *parts: torch.cat(parts), *(rank.state.lanes for rank in ranks))
        state = state._replace(lanes=lanes)
    return state, metrics


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", EPISODIC)
def test_split_steps_equal_whole_ones_under_every_executor(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of five tasks, lanes and the outer rule's state included; traces run operation by
    operation."""
    monkeypatch.setattr(trace, "compile_flat", trace.interpret_unchanged)
    given = case(name, METHODS[name])
    assert given.method.step is not None
    state, metrics = given.state(), []
    for number in range(2):
        state, found = given.method.step(state, given.data(number))
        metrics.append(found)
    traced_too = size == 2 and name in ("maml", "reptile")
    for choice in CHOICES if traced_too else EAGER:
        close(side_by_side(given, choice, size), (state, metrics), **EXACT)


#
# processes of one run


def last(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.path_of(folder / "checkpoints", newest(folder)))


def newest(folder: Path) -> int:
    return max(checkpoint.steps_in(folder / "checkpoints"), default=0)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def agree(a: Path, b: Path) -> None:
    """Two finished float64 runs learned and measured the same, and say that they computed the
    same."""
    torch.testing.assert_close(last(a), last(b), **EXACT)
    for mine, other in zip(rows(a, "metrics.jsonl"), rows(b, "metrics.jsonl"), strict=True):
        assert mine.keys() == other.keys()
        assert all(
            mine[k] == pytest.approx(other[k], rel=1e-10)
            for k in mine
            if k not in ("kind", "split")
        )
    results = [json.loads((folder / "result.json").read_text()) for folder in (a, b)]
    for key in ("loss", "loss_ci95", "diverged"):
        assert results[0]["test"][key] == pytest.approx(results[1]["test"][key], rel=1e-9)
    assert results[0]["episodes"] == results[1]["episodes"]
    for phase in ("meta_train", "tune", "adapt", "predict"):
        for count in ("flops", "gradient_steps", "examples", "labels", "tasks"):
            assert results[0]["cost"][phase][count] == results[1]["cost"][phase][count], (
                phase,
                count,
            )
    scores = [np.load(folder / "scores.npz")["loss"] for folder in (a, b)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)


@pytest.mark.parametrize(("name", "sizes"), [("maml", (2, 3)), ("reptile", (2,))])
def test_a_run_does_not_depend_on_the_number_of_processes(
    metalearn: Commands, name: str, sizes: tuple[int, ...]
) -> None:
    """Training, Reptile's slots, validation, tuning on new tasks, 21 test episodes: five tasks, two
    or three ranks."""
    tune = {"inner_lr": {"values": [0.005, 0.02]}} if name == "maml" else {}
    data = sinusoid(
        method=None, run=FIVE, evaluate={"episodes": 21}, budget={"trials": 2 if tune else 0}
    )
    file = write(
        metalearn.folder, name, {**data, "method": {"name": name, "inner_steps": 2, "tune": tune}}
    )
    for size in (1, *sizes):
        done = metalearn("train", file, "--devices", size, "--out", f"{name}-{size}")
        assert done.code == 0, done
        assert done.out.count("run directory:") == 1  # rank 0 alone speaks and writes
        folder = metalearn.folder / f"{name}-{size}"
        assert json.loads((folder / "environment.json").read_text())["devices"] == size
        agree(folder, metalearn.folder / f"{name}-1")


def test_what_learns_from_examples_is_trained_by_one_and_tested_by_all(metalearn: Commands) -> None:
    file = write(
        metalearn.folder, "examples", sinusoid(run=FIVE, method=None, experiment="examples")
    )
    for size in (1, 2):
        done = metalearn(
            "train", file, "method.name=fine_tune", "--devices", size, "--out", f"examples-{size}"
        )
        assert done.code == 0, done
    agree(metalearn.folder / "examples-1", metalearn.folder / "examples-2")


def test_a_comparison_and_an_evaluation_on_two(metalearn: Commands) -> None:
    data = {
        **sinusoid(method=None, run={**FIVE, "meta_steps": 6}),
        "methods": [{"name": "maml"}, {"name": "scratch"}],
    }
    file = write(metalearn.folder, "pair", data)
    for size in (1, 2):
        assert metalearn("compare", file, "--devices", size, "--out", f"pair-{size}").code == 0
    one, two = (
        json.loads((metalearn.folder / f"pair-{n}" / "comparison.json").read_text()) for n in (1, 2)
    )
    for mine, other in zip(one["summary"], two["summary"], strict=True):
        assert mine["label"] == other["label"]
        assert mine["value"] == pytest.approx(other["value"], rel=1e-9)
    run = metalearn.folder / "pair-1" / "methods" / "maml" / "seed-0"
    assert metalearn("evaluate", run, "evaluate.episodes=7", "--devices", 2).code == 0
    assert metalearn("evaluate", run, "evaluate.episodes=7").code == 0
    values = [
        json.loads((run / "evaluations" / f"{n}.json").read_text())["headline"]["value"]
        for n in (1, 2)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_bad_input_is_told_once_and_nothing_is_written(metalearn: Commands) -> None:
    file = write(metalearn.folder, "few", sinusoid(run={"tasks_per_step": 1}))
    ended = metalearn("train", file, "--devices", 2, "--out", "few")
    refused(ended, "run.tasks_per_step", "fewer than the 2 processes")
    assert ended.err.count("error:") == 1 and not (metalearn.folder / "few").exists()
    refusal = metalearn(
        "train",
        file,
        "--devices",
        2,
        "--out",
        "few",
        env={"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"},
    )
    refused(refusal, "the launcher started 3")
