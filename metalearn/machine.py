"""The machine that a run uses: device, CPU cores and threads."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metalearn.errors import ConfigError

PAUSE = 1e-4  # seconds between two queries of a busy device


def device_of(name: str) -> str:
    """Resolve `auto` to CUDA if available; raises ConfigError for a device that does not exist."""
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.startswith("cuda") and not available:
        why = f"{name} is set, but torch finds no CUDA device: use cpu or auto"
        raise ConfigError(("run.device", why))
    number, count = name.removeprefix("cuda:"), torch.cuda.device_count() if available else 0
    if name.startswith("cuda:") and number.isdigit() and int(number) >= count:
        text = f"{name} is set, but the last of {count} CUDA devices is cuda:{count - 1}"
        raise ConfigError(("run.device", f"{text}: use that, or cuda"))
    return name


def prepare_device(device: str, deterministic: bool = False) -> None:
    """Make a CUDA device the current one, and its float32 products those of IEEE 754.

    By default torch rounds those of convolutions to TF32. Does nothing for a CPU.

    cuDNN always uses deterministic kernels; `deterministic` requires them of every operator, which
    raises RuntimeError if it has none."""
    if not device.startswith("cuda"):
        return
    if ":" in device:
        torch.cuda.set_device(device)
    backends: Any = torch.backends
    # The older flags too: torch.export reads them, and torch refuses where the two disagree.
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False
    for part in (backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn):
        part.fp32_precision = "none"  # else the setting of other code would remain
    backends.fp32_precision = "ieee"
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # cuBLAS reads it when it is loaded, at the first product
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def cuda_facts(device: str) -> dict[str, Any]:
    """Return the GPU of a CUDA device, software versions, and the flags that affect results."""
    card = torch.cuda.get_device_properties(device)
    return {
        "card": card.name,
        "memory_bytes": card.total_memory,
        "capability": f"{card.major}.{card.minor}",
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "float32_products": torch.backends.cuda.matmul.fp32_precision,
        "float32_convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "own_kernels": own_kernels(),
        "triton": has_triton(),
    }


def has_triton() -> bool:
    """Return whether Triton can be imported, for kernels/ on CUDA; not with METALEARN_TRITON=0."""
    if os.environ.get("METALEARN_TRITON") == "0":
        return False
    return importlib.util.find_spec("triton") is not None


def own_kernels() -> bool:
    """Return whether CUDA uses the convolutions and normalisations of kernels/, not torch's."""
    return os.environ.get("METALEARN_CUDA_KERNELS") != "0"


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None without its management library."""
    text = ctypes.create_string_buffer(96)
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, len(text)):
            return None
    except (OSError, AttributeError):
        return None
    return text.value.decode()


def finishes(device: str, seconds: Callable[[], float]) -> bool:
    """Return whether a device ends its work within `seconds()`; always true of a CPU.

    The value of `seconds()` may decrease in the meantime."""
    if not device.startswith("cuda"):
        return True
    event, begin = torch.cuda.Event(), time.monotonic()
    event.record()
    while not event.query():
        if time.monotonic() - begin > seconds():
            return False
        time.sleep(PAUSE)
    return True


def set_threads(count: int) -> int:
    """Set torch's CPU threads, if they differ, and return how many there are."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Return the processor's name, if the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()


def load_average() -> list[float] | None:
    """Return the running or waiting processes, mean over 1, 5 and 15 minutes.

    None if the system does not report it."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def clock_mhz() -> float | None:
    """Return the processor's current clock, mean over cores; None if it is not reported."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    frequencies = [
        float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)
    ]
    return round(sum(frequencies) / len(frequencies), 1) if frequencies else None


def waiting_seconds() -> float | None:
    """Return the seconds until now in which threads of this process waited for a core.

    A thread waits if it could run while another one has the core (Linux, proc_pid_schedstat(5)):
    the sum over the threads, divided by the number of torch's. None if it is not reported."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return None
    waited = [seconds for name in threads if (seconds := _thread_waited(name)) is not None]
    return sum(waited) / torch.get_num_threads() if waited else None


def _thread_waited(name: str) -> float | None:
    """Return the seconds that a thread waited; None if it has ended, or if it is not reported."""
    try:
        with open(f"/proc/self/task/{name}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


class Activity(NamedTuple):
    """Seconds until now: of the clock, of this process, and of all processes on its cores."""

    clock: float
    process: float
    cores: float | None  # None where the system does not report it

    @classmethod
    def now(cls) -> Activity:
        return cls(time.perf_counter(), time.process_time(), _busy_seconds())

    def others_since(self, before: Activity) -> float | None:
        """Return the fraction of the cores' time that other processes used since `before`."""
        if self.cores is None or before.cores is None or self.clock <= before.clock:
            return None
        others = self.cores - before.cores - (self.process - before.process)
        return max(0.0, others) / ((self.clock - before.clock) * cores())


def _busy_seconds() -> float | None:
    """Return the busy seconds of the cores of this process since boot (Linux, proc_stat(5))."""
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
