"""The tests of a CUDA device on an emulated one, in processes of their own.

The emulator is a CUDA device of host memory: it computes real numbers, refuses mixed devices,
counts waits, and records and replays graphs. torch must not have been imported before it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
EMULATOR = ROOT.parent / "shared" / "tools" / "fake_cuda"
PARTS = {
    "methods": ("tests/test_cuda.py", "not never_wait"),
    "executors": ("tests/test_cuda.py", "never_wait"),
    "kernels": ("tests/test_cuda_kernels.py", ""),
    "triton": ("tests/test_cuda_triton.py", ""),
    "replays": (
        "tests/test_cuda_several.py tests/test_cuda_learning.py tests/test_cuda_shared_search.py",
        "",
    ),
    "waits": ("tests/test_cuda_waits.py", ""),
    "runs": ("tests/test_cuda_runs.py", ""),
    "sources": ("tests/test_tasks.py", ""),
    "float64": ("tests/test_executors.py", "vmap or chunk or graph and not compiled"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_an_emulated_device_passes_the_tests_of_a_device(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("a real device runs these tests")
    if not EMULATOR.is_dir():
        pytest.skip("the emulator ../shared/tools/fake_cuda is not there")
    if shutil.which("g++") is None:
        pytest.skip("the emulator needs g++")
    files, chosen = PARTS[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "fakecuda", "-p", "no:cacheprovider"]
    command += ["-p", "no:xdist", "-m", "gpu", *(["-k", chosen] if chosen else [])]
    command += files.split()
    paths = f"{EMULATOR}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    environment = {
        key: value for key, value in environment.items() if not key.startswith("PYTEST_")
    }
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
    assert re.search(r"\d+ passed", ended.stdout), ended.stdout
