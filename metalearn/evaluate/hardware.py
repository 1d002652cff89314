"""Readings of a machine: peak memory, and energy where a card reports it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK_OF_RESIDENT = "5"  # resets the peak resident size (Linux, proc_pid_clear_refs(5))


def peak_bytes(device: str) -> int | None:
    """Peak memory since the last call, and reset it; None where the machine does not report it.

    CUDA: torch's allocations on the device. CPU: the whole process's resident size, torch's own
    libraries included."""
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return int(peak)
    found = None
    with contextlib.suppress(OSError, ValueError):  # not Linux, or not permitted
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                found = 1024 * int(line.split()[1])
        _RESET.write_text(PEAK_OF_RESIDENT)
        return found
    return None


def energy_joules(device: str) -> float | None:
    """Energy used by the card since its driver was loaded; None where it is unknown.

    The counter moves every few tens of milliseconds: differences over seconds are meaningful, those
    of single calls are not."""
    if not device.startswith("cuda"):
        return None
    read = _counter(device)
    return None if read is None else read()


@functools.cache
def _counter(device: str) -> Callable[[], float | None] | None:
    """The counter of one card through NVIDIA's management library, found by the card's own name;
    None without it."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            return None
        card = ctypes.c_void_p()
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        if library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(card)) != 0:
            return None
    except (OSError, AttributeError):
        return None

    def read() -> float | None:
        millijoules = ctypes.c_ulonglong()
        if library.nvmlDeviceGetTotalEnergyConsumption(card, ctypes.byref(millijoules)) != 0:
            return None
        return millijoules.value / 1000

    return read if read() is not None else None
