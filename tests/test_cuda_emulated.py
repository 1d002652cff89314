"""The tests of a CUDA device on an emulated one, in processes of their own.

The emulator is a CUDA device of host memory: it computes real numbers, refuses mixed devices,
counts waits, and records and replays graphs. torch must not have been imported before it, so a
process of its own imports both and forks the others."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from commandline import IMPORTS, Server

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
    "bench": ("tests/test_cuda_bench.py", ""),
    "waits": ("tests/test_cuda_waits.py", ""),
    "runs": ("tests/test_cuda_runs.py", ""),
    "sources": ("tests/test_tasks.py", ""),
    "float64": ("tests/test_executors.py", "vmap or chunk or graph and not compiled"),
}


PATHS = {"PYTHONPATH": f"{EMULATOR}{os.pathsep}{ROOT}"}
# The emulator keeps its library by torch's version, with the path of the torch that it was built
# for. In a cache of this environment that torch is the one here, and not one that has been removed.
CACHE = {"XDG_CACHE_HOME": str(Path(sys.prefix) / "cache")}
PYTEST = """
import pytest

def main():
    sys.exit(pytest.main(sys.argv[1:]))
"""
SERVER = Server(f"import fakecuda\n{IMPORTS}{PYTEST}", PATHS | CACHE)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_an_emulated_device_passes_the_tests_of_a_device(name: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a real device runs these tests")
    if not EMULATOR.is_dir():
        pytest.skip("the emulator ../shared/tools/fake_cuda is not there")
    if shutil.which("g++") is None:
        pytest.skip("the emulator needs g++")
    files, chosen = PARTS[name]
    words = ["-q", "-p", "no:cacheprovider", "-m", "gpu", *(["-k", chosen] if chosen else [])]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    # its plugins are of no use here, and importing metalearn may have imported them already
    environment |= PATHS | CACHE
    environment |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    order = {"cwd": str(ROOT), "env": environment, "before": ""}
    ended = SERVER.start([*words, *files.split()], tmp_path, "tests", **order).wait()
    assert ended.code == 0, ended.out[-5000:] + ended.err[-2000:]
    assert re.search(r"\d+ passed", ended.out), ended.out
