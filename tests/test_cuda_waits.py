"""When the host waits for a CUDA device in a run: at log lines, checkpoints, spans and captures,
and never in a step. Two processes may share a card.

Run on an emulated device, which names the line of each wait (test_cuda_emulated.py)."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import IMPORTS, Server, sinusoid
from test_cuda_runs import experiment

from metalearn.run import loop
from metalearn.run.run import run_one
from metalearn.storage import checkpoint

pytestmark = pytest.mark.gpu
# where a run may wait: files of the innermost lines of metalearn
ALLOWED = {
    "evaluate/ledger.py": "the ends of a span",
    "executors/nonfinite.py": "a log line",
    "run/loop.py": "a look, and the check before a checkpoint",
    "storage/checkpoint.py": "a checkpoint",
    "executors/cuda_graphs.py": "a capture",
    "tasks/generated.py": "the task on which FLOPs are counted, once",
    "tasks/sinusoid.py": "the same",
}


@pytest.fixture
def emulator() -> Any:
    found = sys.modules.get("fakecuda")
    if found is None:
        pytest.skip("a card does not tell which line waits")
    return found


def waits(emulator: Any, folder: Path, steps: int, executor: str) -> Counter[str]:
    """Waits inside the training loop by their line."""
    options = {"log_every": steps, "checkpoint_every": steps, "validate": {"every": None}}
    with emulator.watching():
        run_one(experiment(device="cuda", executor=executor, meta_steps=steps, **options), folder)
        sites = emulator.SITES.copy()
    found: Counter[str] = Counter()
    for (kind, _, where), count in sites.items():
        if kind != "0-d":
            found[where] += count
    return found


@pytest.mark.parametrize("executor", ["vmap", "chunk", "loop", "traced", "graph"])
def test_a_run_waits_as_often_for_many_steps_as_for_few(
    executor: str, emulator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replays of two steps at once, too."""
    monkeypatch.setattr(loop, "MAX_REPLAY_STEPS", 2)
    monkeypatch.setattr(loop, "MIN_REPLAYS", 0)
    few = waits(emulator, tmp_path / "few", 4, executor)
    many = waits(emulator, tmp_path / "many", 12, executor)
    assert few == many
    training = [where for where in few if "run/loop.py" in where]
    assert training
    assert [w for w in training if w.partition(":")[0] not in ALLOWED] == []


# one process imports the emulator and all else, and forks the processes of a training
SERVER = Server(f"import fakecuda\n{IMPORTS}")


def test_two_processes_share_a_card(emulator: Any, tmp_path: Path) -> None:
    """The numbers of one process, with sums between CPUs; without the variable a sentence."""
    config = tmp_path / "two.yaml"
    run = {"meta_steps": 3, "dtype": "float64", "device": "cuda", "executor": "graph"}
    config.write_text(json.dumps(sinusoid(run=run)))
    ended = {}
    for share in ("0", "1"):
        running = []
        for rank in (0, 1):
            environment = {**os.environ, "METALEARN_SHARE_CARD": share, "RANK": str(rank)}
            environment |= {"WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
            environment |= {"METALEARN_MEETING": str(tmp_path / f"meeting-{share}")}
            words = ["train", str(config), "--out", str(tmp_path / share)]
            order = {"cwd": os.getcwd(), "env": environment, "before": ""}
            running.append(SERVER.start(words, tmp_path, f"{share}-{rank}", **order))
        ended[share] = [process.wait() for process in running]
    assert [end.code for end in ended["0"]] == [2, 2], ended
    assert "2 processes on a machine with 1 CUDA devices" in ended["0"][0].err
    assert "Traceback" not in ended["0"][0].err
    assert [end.code for end in ended["1"]] == [0, 0], ended
    whole = experiment(**{**run, "checkpoint_every": 3})
    run_one(whole, tmp_path / "one")
    one, two = (
        checkpoint.read(sorted((tmp_path / name).rglob("step-*.pt"))[-1]) for name in ("one", "1")
    )
    for name, value in one.items():
        if name.startswith(("meta", "opt")):
            torch.testing.assert_close(two[name].cpu(), value.cpu(), rtol=1e-7, atol=1e-9)
