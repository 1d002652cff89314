"""Signals, deaths and resumption of runs in several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import Commands, Ended, refused, sinusoid, write
from test_distributed import FIVE, LONG, agree, last, newest

from metalearn.distributed import launch
from metalearn.distributed.ranks import Ranks, check_cards
from metalearn.distributed.world import World
from metalearn.errors import ConfigError
from metalearn.storage import checkpoint

#
# signals, deaths, and resume


def children(pid: int) -> list[int]:
    """The processes that a process has forked, in their order: the ranks."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def run_and_strike(
    metalearn: Commands, name: str, strike: Callable[[int, list[int]], None]
) -> tuple[Ended, Path, Any]:
    """A long run of reptile on two ranks that is struck after its first checkpoint."""
    data = sinusoid(run=LONG, method=None, experiment="long")
    file = write(
        metalearn.folder, "long", {**data, "method": {"name": "reptile", "inner_steps": 1}}
    )
    folder = metalearn.folder / name
    started = metalearn.start("train", file, "--devices", 2, "--out", name)
    assert started.wait_for(lambda: newest(folder) > 0), started.wait()
    ranks = children(started.pid)
    strike(started.pid, ranks)
    return started.wait(), folder, ranks


def have_ended(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def send(number: int, chosen: slice) -> Callable[[int, list[int]], None]:
    """Send a signal to some of the processes: the launcher, then the ranks."""

    def act(launcher: int, ranks: list[int]) -> None:
        for pid in [launcher, *ranks][chosen]:
            os.kill(pid, number)

    return act


STRIKES: dict[str, tuple[Callable[[int, list[int]], None], int, str]] = {
    "launcher signalled": (send(signal.SIGTERM, slice(1)), 75, "metalearn resume"),
    "rank 1 signalled": (send(signal.SIGUSR1, slice(2, 3)), 75, "metalearn resume"),
    "all signalled": (send(signal.SIGTERM, slice(None)), 75, "metalearn resume"),
    "rank 1 killed": (send(signal.SIGKILL, slice(2, 3)), 1, "rank 1 was killed by SIGKILL"),
    "rank 0 killed": (send(signal.SIGKILL, slice(1, 2)), 1, "rank 0 was killed by SIGKILL"),
}


@pytest.mark.parametrize("what", STRIKES)
def test_signals_reach_all_and_a_death_ends_the_run_in_a_sentence(
    metalearn: Commands, what: str
) -> None:
    strike, code, sentence = STRIKES[what]
    ended, folder, ranks = run_and_strike(metalearn, what.replace(" ", "-"), strike)
    assert ended.code == code and sentence in ended.err and "Traceback" not in ended.err, ended
    assert have_ended(ranks)
    step, messages = newest(folder), list[str]()
    state = checkpoint.load(checkpoint.path_of(folder / "checkpoints", step), _like(folder))
    # the slots of all ranks' tasks
    assert state.lanes is not None and len(state.lanes["count"]) == 5 and not messages
    if what == "launcher signalled":
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["run"]["meta_steps"] = step + 7
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        resumed(metalearn, folder, step)


def _like(folder: Path) -> Any:
    import metalearn as ml

    source = ml.tasks.Sinusoid(shots=5, queries=5).build(dtype=torch.float64)
    learner = ml.models.MLP(sizes=(8,)).build(source.spec)
    return (
        ml.algorithms.Reptile(inner_steps=1)
        .build(learner, source.spec, meta_steps=9)
        .init(ml.fold_in(0, "init"))
    )


def resumed(metalearn: Commands, folder: Path, step: int) -> None:
    """Resuming takes as many processes as the run began with, and is exact: twice the same bits."""
    ends = []
    for name in ("once", "twice"):
        copy = folder.with_name(f"{folder.name}-{name}")
        shutil.copytree(folder, copy)
        done = metalearn("resume", copy, "--allow-change")
        assert done.code == 0 and f"resuming from step {step}" in done.err, done
        assert json.loads((copy / "result.json").read_text())["devices"] == 2
        ends.append(last(copy))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_torchrun_starts_it_too(metalearn: Commands) -> None:
    file = write(metalearn.folder, "outside", sinusoid(run={**FIVE, "meta_steps": 4}))
    assert metalearn("train", file, "--out", "outside-1").code == 0
    words = ["--standalone", "--nproc-per-node", "2", "-m", "metalearn", "train", str(file)]
    command = [sys.executable, "-m", "torch.distributed.run", *words, "--out", "outside-2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=metalearn.folder, capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    agree(metalearn.folder / "outside-1", metalearn.folder / "outside-2")


def test_fewer_cards_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes on a machine with 1 CUDA devices"):
        check_cards(Ranks(World(0, 2, 0, 2)), "cuda")


def test_a_run_directory_cannot_ask_for_any_number_of_processes(tmp_path: Path) -> None:
    for devices, found in (
        (3, 3),
        (launch.MOST, launch.MOST),
        (1, None),
        ("9", None),
        (True, None),
    ):
        (tmp_path / "environment.json").write_text(json.dumps({"devices": devices}))
        assert launch.recorded_devices(tmp_path) == found
    (tmp_path / "environment.json").write_text(json.dumps({"devices": launch.MOST + 1}))
    with pytest.raises(ConfigError, match="--devices N"):
        launch.recorded_devices(tmp_path)


def test_the_bench_of_ranks_makes_the_same_steps_by_turns(metalearn: Commands) -> None:
    small = "from metalearn.bench import ranks; ranks.TURN = 0.01; "
    small += "ranks.SIZES = {'parameters': (ranks.perceptron(8, 5),)}"
    words = (
        "bench",
        "parameters",
        "--ranks",
        2,
        "--repeats",
        2,
        "--seconds",
        0,
        "--out",
        "ranks.json",
    )
    done = metalearn(*words, before=small)
    assert done.code == 0 and "| maml_sinusoid | 5 | 97 | 2 |" in done.out, done
    (row,) = json.loads((metalearn.folder / "ranks.json").read_text())["rows"]
    for kind in ("median_seconds", "cpu_seconds"):
        assert set(row[kind]) == {"one", "alone", "together"} and min(row[kind].values()) > 0
    refused(metalearn("bench", "nothing", "--ranks", 2), "unknown name", "parameters")
