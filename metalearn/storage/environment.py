"""The environment of a run: versions, machine, code, command."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch

from metalearn.machine import clock_mhz, cpu_name, cuda_facts, load_average


def checkout() -> Path:
    """Return the folder that contains the package: the root of the repository in a checkout."""
    return Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def git_commit() -> str:
    """Return the commit, with `+dirty` if files differ from it; empty outside a checkout."""
    root = checkout()
    if not (root / ".git").exists():
        return ""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+dirty" if status.stdout.strip() else "")


def version() -> str:
    try:
        return metadata.version("metalearn-lab")
    except metadata.PackageNotFoundError:
        return "not installed"


def describe(device: str) -> dict[str, Any]:
    """Return the content of environment.json."""
    cuda = device.startswith("cuda")
    return {
        "metalearn": version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": load_average(),
        "clock_mhz": clock_mhz(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        **({"cuda": cuda_facts(device)} if cuda else {}),
        "git": git_commit(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
