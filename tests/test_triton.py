"""The Triton kernels in Triton's interpreter, in a process of its own.

Triton is no dependency: it is large, and on a CPU nothing runs through it. Where it is installed,
in the environment or in the folder `triton` beside it (`pip install --target .venv/triton triton`),
the kernels are held against torch's operators."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BESIDE = Path(sys.prefix) / "triton"


@pytest.mark.slow
def test_triton_kernels_in_the_interpreter() -> None:
    if importlib.util.find_spec("triton") is None and not BESIDE.is_dir():
        pytest.skip("Triton is not installed (pip install --target .venv/triton triton)")
    paths = os.pathsep.join(map(str, (ROOT, BESIDE, os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "1"}
    environment |= {"OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command.append("tests/test_triton_kernels.py")
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]
    assert re.search(r"\d+ passed", ended.stdout) and "skipped" not in ended.stdout, ended.stdout
