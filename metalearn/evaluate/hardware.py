"""Hardware measurements: peak memory, and energy if a GPU reports it."""

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
    """Return peak memory since the last call, and reset it; None if it is not reported.

    CUDA: torch's allocations on the device. CPU: the whole process's resident size, torch's own
    libraries included."""
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return int(peak)
    resident = None
    with contextlib.suppress(OSError, ValueError):  # not Linux, or not permitted
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                resident = 1024 * int(line.split()[1])
        _RESET.write_text(PEAK_OF_RESIDENT)
        return resident
    return None


def energy_joules(device: str) -> float | None:
    """Return the energy used by the GPU since its driver was loaded; None if it is unknown.

    The counter is updated every few tens of milliseconds: differences over seconds are meaningful,
    those of single calls are not."""
    if not device.startswith("cuda"):
        return None
    read = _counter(device)
    return None if read is None else read()


@functools.cache
def _counter(device: str) -> Callable[[], float | None] | None:
    """Return a function that reads the energy counter of a GPU through NVML, by the GPU's UUID;
    None without NVML."""
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
