"""`metalearn bench`: the file, the compared gradients, what is not timed, and what is logged."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import commands_in, refused
from messages import collect_messages

from metalearn import interop
from metalearn.bench import bench as core
from metalearn.bench import contenders, measure, scaling
from metalearn.bench.bench import BOUND, Settings, measure_workload
from metalearn.bench.command import NAMES, BenchOptions
from metalearn.bench.command import measure as bench
from metalearn.bench.engines import by_jax, by_torchopt, sampling, torch_packages
from metalearn.bench.engines import native as ours
from metalearn.bench.engines.engine import Engine, LeftOut
from metalearn.bench.engines.plain import reference
from metalearn.bench.measure import Turns, in_turns
from metalearn.bench.problem import Problem, gap
from metalearn.bench.table import best, speedup
from metalearn.bench.workloads import IN_CHUNKS, SCALING, WORKLOADS, Workload, select_workloads
from metalearn.errors import ConfigError
from metalearn.executors import auto, trace
from metalearn.executors.timings import ExecutorChoice

ROW = {
    *("workload", "engine", "tasks", "median_seconds", "iqr_seconds"),
    *("compile_seconds", "peak_bytes", "gradient_error"),
}
ALL = [
    *("sinusoid_1step", "sinusoid_5steps"),
    *(f"conv4_{kind}_5w1s_q{queries}" for kind in ("pool", "stride") for queries in (1, 5, 15)),
    *("conv4_pool_20w1s", "conv4_84_5w5s", "conv4_cifar_5w1s", "resnet12_84_5w1s", "anil_5w1s"),
    *("first_order_5w1s", "imaml_5w1s", "proto_net_5w1s", "r2d2_5w1s"),
    *("in_context_sinusoid", "in_context_omniglot", "sampling_5w1s"),
    *("validation_5w1s", "l2o_quadratics", "l2o_mlp"),
]
PEERS = {
    "learn2learn": lambda problem: [torch_packages.engine("learn2learn", problem)],
    "higher": lambda problem: [torch_packages.engine("higher", problem)],
    "torchopt": by_torchopt.engines,
    "jax": lambda problem: [by_jax.engine(problem)],
}
SMALL = Workload(
    "small",
    2,
    ways=3,
    shots=2,
    queries=2,
    x_shape=(1, 16, 16),
    filters=4,
    inner_steps=2,
    inner_lr=0.1,
)
QUICK = Settings(
    engines=("native", "learn2learn"), executors=("vmap",), threads=1, tasks=2, turns=Turns(2, 0)
)
CLOSE = 1e-3  # of float32 to float64 on SMALL; seen: up to 3e-6
FAR = 0.05  # what first order and second order must differ by there; seen: 0.3 and more


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, list[str]]:
    """One tiny run of the command: result, folder, messages."""
    folder, messages = tmp_path_factory.mktemp("bench"), collect_messages()
    options = BenchOptions(
        ("sinusoid_1step",),
        folder / "b.json",
        None,
        folder / "R.md",
        repeats=2,
        threads=1,
        tasks=3,
        executors=("loop", "vmap"),
    )
    return bench(options), folder, messages


def test_the_workloads_are_the_contracts() -> None:
    assert list(WORKLOADS) == ALL
    assert [work.name for work in select_workloads([])] == ALL
    assert [
        work.name
        for work in select_workloads(["proto_net_5w1s", "sinusoid_1step", "proto_net_5w1s"])
    ] == ["proto_net_5w1s", "sinusoid_1step"]
    tasks = {name: WORKLOADS[name].tasks for name in ALL}
    names = ("sinusoid_1step", "conv4_pool_5w1s_q5", "conv4_84_5w5s")
    assert [tasks[name] for name in names] == [25, 16, 4]
    assert all(name in WORKLOADS for name in (*SCALING, *IN_CHUNKS))


def test_the_file_follows_the_schema(run: tuple[dict[str, Any], Path, list[str]]) -> None:
    data, folder, _ = run
    stored = json.loads((folder / "b.json").read_text())
    assert stored["schema"] == 1 and stored["rows"] == data["rows"]
    assert {"torch", "cpu", "cores", "device", "learn2learn"} <= set(stored["environment"])
    rows = {(row["engine"], row.get("executor")): row for row in stored["rows"]}
    assert {("native", "loop"), ("native", "vmap")} <= set(rows)
    assert {row["engine"] for row in stored["rows"]} | {
        row["engine"] for row in stored["skipped"]
    } == set(NAMES)
    for row in stored["rows"]:
        assert set(row) >= ROW and row["tasks"] == 3 and "error" not in row
        assert row["median_seconds"] > 0 and row["iqr_seconds"] >= 0 and row["compile_seconds"] > 0
        assert row["rounds"] == 2 and row["gradient_error"] < 1e-5
        assert row["peak_bytes"] is None or row["peak_bytes"] >= 0
        assert ("executor" in row) == (row["engine"] == "native")


def test_names_and_options_are_checked_at_once(tmp_path: Path) -> None:
    with commands_in(tmp_path) as metalearn:
        words = ("--engine", "numpy", "--executor", "vmapp", "--out", tmp_path)
        refusal = metalearn("bench", "sinusoid_1stp", "sampling_5w1s", *words)
        refused(
            refusal,
            "did you mean 'sinusoid_1step'",
            "conv4_84_5w5s",
            "'numpy'",
            "did you mean 'vmap'",
            "is a directory",
        )
        refused(metalearn("bench", "--merge"), "--out")
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".output-")]


def conv_problem(**changes: Any) -> Problem:
    return Problem(dataclasses.replace(SMALL, **changes), "cpu")


def engines(problem: Problem) -> dict[str, Engine]:
    """Every engine that is there and knows the workload, ours under two executors."""
    found = {
        f"native {executor}": ours.engine(problem, ExecutorChoice(executor))
        for executor in ("loop", "vmap")
    }
    for name, build in PEERS.items():
        try:
            found |= {f"{name} {engine.form}": engine for engine in build(problem)}
        except LeftOut as why:
            assert name in str(why), why
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"downsample": "pool"},
        {"downsample": "stride", "flatten": True, "x_shape": (3, 16, 16)},
        {"first_order": True},
        {"family": "proto_net", "inner_steps": 0},
        {"family": "anil", "inner_steps": 2},
    ],
    ids=["pool", "stride", "first_order", "proto_net", "anil"],
)
def test_all_engines_compute_the_same_meta_gradient(changes: dict[str, Any]) -> None:
    problem = conv_problem(**changes)
    expected = reference(problem, problem.check)
    found = {
        name: gap(engine.gradient(problem.check), expected)
        for name, engine in engines(problem).items()
    }
    assert max(found.values()) < CLOSE, found
    if not changes.get("first_order") and problem.workload.family == "maml":
        other = conv_problem(**changes, first_order=True)
        assert gap(reference(other, problem.check), expected) > FAR


def test_an_engine_keeps_its_gradient_after_steps() -> None:
    """The check may come after steps were made: it is taken at the problem's start all the same."""
    problem = Problem(WORKLOADS["sinusoid_5steps"].with_tasks(2), "cpu")
    expected = reference(problem, problem.check)
    for name, engine in engines(problem).items():
        engine.step()
        engine.step()
        engine.wait()
        assert gap(engine.gradient(problem.check), expected) < CLOSE, name


def test_the_gap_sees_what_is_wrong() -> None:
    right = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1e-9])}
    assert gap(right, right) == 0
    assert gap({**right, "a": 1.01 * right["a"]}, right) == pytest.approx(0.01, rel=1e-4)
    # against 1 % of the largest
    assert gap({**right, "b": right["b"] + 0.005}, right) == pytest.approx(0.1, rel=1e-4)
    assert gap({**right, "a": right["a"] * math.nan}, right) == math.inf
    assert gap({"a": right["a"]}, right) == math.inf
    assert gap({**right, "a": torch.ones(3)}, right) == math.inf


def plant(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """learn2learn's engine, spoilt."""
    build = torch_packages.engine

    def spoilt(name: str, problem: Problem) -> Engine:
        if kind == "first order":
            work = dataclasses.replace(problem.workload, first_order=True)
            return build(name, Problem(work, "cpu"))
        engine = build(name, problem)
        assert engine.gradient is not None
        gradient = engine.gradient
        if kind == "crash":
            return dataclasses.replace(engine, step=lambda: 1 // 0)
        return dataclasses.replace(
            engine, gradient=lambda x: {n: (1 + 2 * BOUND) * g for n, g in gradient(x).items()}
        )

    monkeypatch.setattr(torch_packages, "engine", spoilt)


@pytest.mark.parametrize("kind", ["first order", "scaled", "crash"])
def test_a_wrong_engine_is_an_error_row_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plant(monkeypatch, kind)
    messages = collect_messages()
    outcome = measure_workload(WORKLOADS["sinusoid_5steps"], QUICK)
    rows = {row["engine"]: row for row in outcome.rows}
    assert rows["native"]["median_seconds"] > 0
    wrong = rows["learn2learn"]
    assert wrong["median_seconds"] is None and wrong["error"] in " ".join(messages)
    assert ("ZeroDivisionError" if kind == "crash" else "meta-gradient") in wrong["error"]
    assert kind == "crash" or wrong["gradient_error"] > BOUND
    assert best(outcome.rows, ("learn2learn",)) is None and speedup(outcome.rows) is None


def test_absent_peers_are_skipped_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec

    def not_installed() -> None:
        raise ConfigError(("", "higher is not installed: run `make setup`"))

    monkeypatch.setattr(interop, "higher", not_installed)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("torchopt", "jax") else there(name, *rest),
    )
    messages = collect_messages()
    outcome = measure_workload(
        WORKLOADS["sinusoid_1step"], dataclasses.replace(QUICK, engines=NAMES)
    )
    # torch: of l2o alone
    assert {row["engine"] for row in outcome.left_out} == {"higher", "torchopt", "jax", "torch"}
    for name in ("higher", "torchopt", "jax"):
        assert any(f"skipped: {name}: {name} is not installed" in line for line in messages), (
            messages
        )
    assert any("pip install -e '.[peers]'" in line for line in messages)
    assert {row["engine"] for row in outcome.rows} == {"native", "learn2learn"}


def counting(calls: list[str], name: str) -> Engine:
    return Engine(lambda: calls.append(name), None)


def test_turns_are_taken_in_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_steps_a_turn", lambda engine: 2)
    calls: list[str] = []
    found = in_turns(
        {name: counting(calls, name) for name in "abc"}, Turns(repeats=4, seconds=math.inf)
    )
    assert {name: len(times) for name, times in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert "".join(calls[::2]) == "abc" + "bca" + "cab" + "abc"
    few = in_turns({"a": counting(calls, "a")}, Turns(repeats=9, seconds=0))
    assert len(few["a"]) == 3  # the budget is used up, and three rounds are made all the same
    assert len(in_turns({"a": counting(calls, "a")}, Turns(repeats=1, seconds=0))["a"]) == 1


PEAK = """
import torch
from metalearn.bench.engines.engine import Engine
from metalearn.bench.measure import peak_bytes

size = 64 * 2**20
peak = peak_bytes(Engine(lambda: torch.ones(size // 4), None))
kept = torch.ones(size // 4)
print(peak, peak_bytes(Engine(lambda: None, None)), len(kept))
"""


def test_peak_memory_is_that_of_the_step() -> None:
    """In a process of its own: where freed memory is kept, an aligned array may not fit the place
    of the last one."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    if done.stdout.startswith("None"):
        pytest.skip("this system does not tell the peak of the resident set")
    size, (peak, small, _) = 64 * 2**20, map(int, done.stdout.split())
    assert 0.95 * size < peak < 1.25 * size  # the system counts pages in batches
    assert small < size / 8


def test_the_check_of_memory_and_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "CHUNK", 2)
    messages = collect_messages()
    found = scaling.memory(QUICK, "sinusoid_1step", few=2, many=4)
    assert found["tasks"] == [2, 4]
    assert len(found["peak_bytes"]) == 2
    assert "4 tasks in chunks of 2" in messages[-1]
    few, many = found["live_bytes"]
    assert few <= many < 1.5 * few and found["live_ratio"] == many / few
    monkeypatch.setattr(scaling, "CHUNK", 8)  # all at once: what grows with the tasks is seen
    row = scaling.memory(QUICK, "sinusoid_1step", few=2, many=8)
    assert row["live_ratio"] > 2
    alone = dataclasses.replace(QUICK, engines=("native",))
    outcome = scaling.curve("sinusoid_1step", alone, tasks=(1, 2))
    assert [one["tasks"] for one in outcome.rows] == [1, 2]
    assert all(one["median_seconds"] for one in outcome.rows)


def test_sampling_is_timed_by_the_episode() -> None:
    outcome = measure_workload(WORKLOADS["sampling_5w1s"], QUICK)
    assert [one["executor"] for one in outcome.rows if one["engine"] == "native"] == [None]
    rows = {(one["engine"], one.get("form")): one for one in outcome.rows}
    assert ("native", None) in rows
    assert {form for engine, form in rows if engine == "learn2learn"} in (
        {"floats ready", "from bytes"},
        set(),
    )
    assert all(one["gradient_error"] is None and one["median_seconds"] > 0 for one in rows.values())
    problem = Problem(WORKLOADS["sampling_5w1s"].with_tasks(3), "cpu")
    assert sampling.ours(problem).per == 3
    image, label = sampling.Images(problem.workload, beforehand=False)[25]
    assert image.dtype == torch.float32
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1
    assert label == 1


def test_more_rows_join_a_file_of_the_same_machine(
    run: tuple[dict[str, Any], Path, list[str]], tmp_path: Path
) -> None:
    _data, folder, _ = run
    path = tmp_path / "b.json"
    path.write_text((folder / "b.json").read_text())
    more = BenchOptions(
        ("sinusoid_5steps",),
        path,
        repeats=1,
        threads=1,
        tasks=1,
        engines=("native",),
        executors=("vmap",),
        merge=True,
    )
    bench(more)
    joined = json.loads(path.read_text())
    assert joined["rows"][:-1] == json.loads((folder / "b.json").read_text())["rows"]
    assert joined["rows"][-1]["workload"] == "sinusoid_5steps"
    assert set(joined["workloads"]) == set(ALL[:2])
    other = json.loads(path.read_text())
    other["environment"]["cpu"] = "another"
    path.write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="another cpu"):
        bench(more)


def test_contenders_are_the_ones_asked_for() -> None:
    problem = conv_problem()
    found = contenders.contenders(problem, ("native", "jax"), ("loop", "vmap"))
    assert [one.label for one in found] == ["native (loop)", "native (vmap)", "jax"]
    assert (
        {one.engine for one in contenders.contenders(problem, NAMES)}
        == set(NAMES)
        == set(contenders.ENGINES)
    )
    assert core.BOUND < FAR


def test_a_cold_start_knows_nothing_of_what_the_usual_cache_holds() -> None:
    home = trace.COMPILER_CACHE
    with measure.fresh_cache(True):
        assert trace.COMPILER_CACHE == auto.COMPILER_CACHE != home
        assert not any(trace.COMPILER_CACHE.iterdir())
    with measure.fresh_cache(False):
        assert trace.COMPILER_CACHE == auto.COMPILER_CACHE == home
