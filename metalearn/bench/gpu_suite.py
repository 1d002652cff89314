"""`metalearn bench --gpu-suite`: tests and measurements of a GPU, in pieces that can be continued.

A piece is a command in a process of its own that ends within LIMIT seconds. Repeating the suite
skips the pieces that are done and continues the others; nothing needs a network. The outputs of
the commands are stored in the folder, the results in one section of a Markdown file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.bench.workloads import WORKLOADS
from metalearn.errors import ConfigError
from metalearn.logger import log
from metalearn.storage.files import read_json, write_json

LIMIT = (
    540.0  # seconds of a piece: batch systems and services often end a command after ten minutes
)
GRACE = 45.0  # seconds that a piece has to save after that
STOPPED = 75  # exit code of a run that was stopped by a signal and has saved
SLICES = 20  # pieces of the long run in one call
CHECKOUT = Path(__file__).resolve().parents[2]
TESTS = (
    *("test_cuda.py", "test_cuda_kernels.py", "test_cuda_runs.py", "test_cuda_triton.py"),
    *("test_cuda_several.py", "test_cuda_learning.py", "test_cuda_shared_search.py"),
    "test_cuda_bench.py",
    *("test_executors.py", "test_tasks.py"),
)
EXECUTORS = ("vmap", "chunk:8", "traced", "compiled", "graph", "compiled_graph")
COMPARED = ("sinusoid_1step", "conv4_stride_5w1s_q1", "conv4_pool_5w1s_q1")
# name, words before and options of a command; `torch`: without the operators of kernels/,
# `no-triton`: with them, and none of them in Triton
KINDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("float32", (), ()),
    ("tf32", (), ("--tf32",)),
    ("no-triton", ("env", "METALEARN_TRITON=0"), ()),
    ("torch", ("env", "METALEARN_CUDA_KERNELS=0"), ()),
)
# what the shipped experiment fixes for a CPU
ON_CARD = (
    *("run.device=cuda", "run.executor=compiled_graph", "run.chunk=null"),
    *("run.threads=null", "run.workers=null"),
)
SHORT = ("run.meta_steps=500", "run.executor=graph", "evaluate.episodes=100")
OMNIGLOT = "maml_omniglot_5w1s"


class Piece(NamedTuple):
    """A command, and the one that continues it after it was stopped."""

    name: str
    command: tuple[str, ...]
    again: tuple[str, ...] = ()


def pieces(out: Path) -> list[Piece]:
    """Return tests, executors in each precision, the peers, training precisions, the long run."""
    ours = (sys.executable, "-m", "metalearn")
    test = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
    result = [Piece(f"tests-{name[:-3]}", (*test, f"tests/{name}")) for name in TESTS]
    executors = [word for name in EXECUTORS for word in ("--executor", name)]
    for kind, prefix, flags in KINDS:
        for name in COMPARED:
            file = str(out / f"executors-{kind}.json")
            arguments = ("--engine", "native", *executors, *flags, "--seconds", "20", "--out", file)
            words = (*prefix, *ours, "bench", name, "--device", "cuda", "--merge", *arguments)
            result.append(Piece(f"executors-{kind}-{name}", words))
    for name in WORKLOADS:
        arguments = (
            "--device",
            "cuda",
            "--merge",
            "--seconds",
            "30",
            "--out",
            str(out / "bench.json"),
        )
        result.append(Piece(f"bench-{name}", (*ours, "bench", name, *arguments)))
    for precision in ("float32", "tf32", "bf16"):
        name, folder = f"precision-{precision}", str(out / f"precision-{precision}")
        options = (*ON_CARD, *SHORT, f"run.precision={precision}", "--out", folder)
        result.append(Piece(name, (*ours, "train", OMNIGLOT, *options), (*ours, "resume", folder)))
    folder = str(out / "omniglot")
    command = (*ours, "train", OMNIGLOT, *ON_CARD, "--out", folder)
    return [*result, Piece("omniglot", command, (*ours, "resume", folder))]


def suite(out: Path, markdown: Path | None, seconds: float | None = None) -> dict[str, Any]:
    """Run the pieces, for at most `seconds`; return the state of each.

    It is stored in `pieces.json` in `out`. Raises ConfigError without a CUDA device."""
    _check_device()
    out.mkdir(parents=True, exist_ok=True)
    deadline = None if seconds is None else time.monotonic() + seconds
    state = work_through(pieces(out), out, deadline)
    from metalearn.bench.gpu_section import write_section

    target = markdown or out / "results.md"
    write_section(target, out, state)
    unfinished = [name for name, entry in state.items() if entry["status"] != "done"]
    log.info(f"written: {target}" + (f"; not done: {', '.join(unfinished)}" if unfinished else ""))
    return state


def _check_device() -> None:
    from metalearn.machine import device_of

    try:
        device_of("cuda")
    except ConfigError:
        text = "torch finds no CUDA device: the suite needs a machine with a GPU"
        raise ConfigError(("--gpu-suite", text)) from None


def work_through(
    queue: Sequence[Piece], out: Path, deadline: float | None = None
) -> dict[str, dict[str, Any]]:
    """Run what is not done yet, and store the state after each piece."""
    file = out / "pieces.json"
    state: dict[str, dict[str, Any]] = read_json(file) if file.exists() else {}
    state = {piece.name: state.get(piece.name, {"status": "open"}) for piece in queue}
    for piece in queue:
        for _ in range(SLICES if piece.again else 1):
            limit = LIMIT if deadline is None else min(LIMIT, deadline - time.monotonic() - GRACE)
            if state[piece.name]["status"] == "done" or limit <= 0:
                break
            log.info(f"{piece.name}: {' '.join(map(_shorten, _command(piece, state)))}")
            state[piece.name] = _run(piece, state, out, limit)
            write_json(file, state)
            log.info(f"  {state[piece.name]['status']}: {state[piece.name]['last']}")
            if state[piece.name]["status"] != "stopped":
                break
    return state


def _command(piece: Piece, state: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    stopped = state[piece.name]["status"] == "stopped"
    return piece.again if piece.again and stopped else piece.command


def _shorten(word: str) -> str:
    return Path(word).name if word.startswith("/") else word


def _run(piece: Piece, state: dict[str, dict[str, Any]], out: Path, limit: float) -> dict[str, Any]:
    """Run one piece; return its status, exit code, seconds so far and last line."""
    path, command, start = out / f"{piece.name}.log", _command(piece, state), time.monotonic()
    earlier_seconds = state[piece.name].get("seconds", 0.0) if command is not piece.command else 0.0
    environment = {**os.environ, "PYTHONPATH": _python_path()}
    with path.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=_working_directory(command), env=environment, stdout=output, stderr=output
        )
        code, in_time = _wait(process, limit)
    status = "done" if code == 0 else "stopped" if code == STOPPED else "failed"
    status = status if in_time or code in (0, STOPPED) else "cut off"
    seconds = round(earlier_seconds + time.monotonic() - start, 1)
    return {"status": status, "code": code, "seconds": seconds, "last": _last_line(path)}


def _python_path() -> str:
    inherited = os.environ.get("PYTHONPATH")
    return str(CHECKOUT) + (os.pathsep + inherited if inherited else "")


def _working_directory(command: Sequence[str]) -> Path:
    """Return the checkout for tests, whose paths are relative to it, else the current folder."""
    return CHECKOUT if "pytest" in command else Path.cwd()


def _wait(process: subprocess.Popen[bytes], limit: float) -> tuple[int, bool]:
    """Return (exit code, whether it ended by itself); after the limit, ask it to save and stop."""
    try:
        return process.wait(limit), True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)
    try:
        return process.wait(GRACE), False
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(), False


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    return re.sub(r"\x1b\[[0-9;]*m", "", lines[-1])[-200:].strip("= ")
