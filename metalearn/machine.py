"""The machine that a run uses: device, CPU cores and threads."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import NamedTuple

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


def load_average() -> list[float] | None:
    """Processes that ran or waited, mean over 1, 5 and 15 minutes.

    None where the system does not report it.
    """
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def clock_mhz() -> float | None:
    """The processor's clock now, mean over its cores; None where the system does not report it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return round(sum(found) / len(found), 1) if found else None


class Activity(NamedTuple):
    """Seconds until now: of the clock, of this process, and of all that ran on its cores."""

    clock: float
    process: float
    cores: float | None  # None where the system does not report it

    @classmethod
    def now(cls) -> Activity:
        return cls(time.perf_counter(), time.process_time(), _busy_seconds())

    def others_since(self, before: Activity) -> float | None:
        """The share of the cores' time that other processes took since `before`."""
        if self.cores is None or before.cores is None or self.clock <= before.clock:
            return None
        others = self.cores - before.cores - (self.process - before.process)
        return max(0.0, others) / ((self.clock - before.clock) * cores())


def _busy_seconds() -> float | None:
    """Seconds that the cores of this process were at work since the system started (Linux,
    proc_stat(5)).
    """
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    ours, ticks = os.sched_getaffinity(0), 0
    for line in lines:
        name, *counts = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in ours:
            user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None
