"""The machine that a run uses: device, CPU cores and threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from metalearn.errors import ConfigError


def device_of(name: str) -> str:
    """`auto` is CUDA where there is one; ConfigError for a device that is not there."""
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.startswith("cuda") and not available:
        raise ConfigError(
            ("run.device", f"{name} was asked for, but torch finds no CUDA device: use cpu or auto")
        )
    return name


def set_threads(count: int) -> int:
    """Set torch's CPU threads, if they differ, and return how many there are."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()
