"""Time in turns, memory and quartiles of engines that have passed the check."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.bench.engines.engine import Engine
from metalearn.executors import auto, trace

# seconds that one turn lasts at least, so that the clock and the first call's caches do not count
BLOCK = 0.05
LEAST = 3  # rounds that are run regardless of the budget
PROC = Path("/proc/self")


@dataclass(frozen=True)
class Turns:
    """How long to measure: `repeats` rounds, fewer when `seconds` are used up.

    At least three rounds are run, if `repeats` allows."""

    repeats: int = 15
    seconds: float = 60.0


def in_turns(engines: Mapping[str, Engine], turns: Turns) -> dict[str, list[float]]:
    """Return the seconds per step of each engine, one number per round.

    Within a round each engine has its turn; the first one changes.

    A turn has as many steps as last BLOCK seconds; temporary load affects all engines equally."""
    names = list(engines)
    counts = {name: _steps_a_turn(engine) for name, engine in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    with _frozen_objects():
        for round_index in range(turns.repeats):
            if round_index >= LEAST and time.perf_counter() - start > turns.seconds:
                break
            for offset in range(len(names)):
                name = names[(offset + round_index) % len(names)]
                seconds[name].append(_turn(engines[name], counts[name]))
    return seconds


def _turn(engine: Engine, steps: int) -> float:
    gc.collect()  # no engine collects another's garbage
    start = time.perf_counter()
    for _ in range(steps):
        engine.step()
    engine.wait()
    return (time.perf_counter() - start) / steps / engine.per


def _steps_a_turn(engine: Engine) -> int:
    seconds = _turn(engine, 1) * engine.per
    return max(1, min(1000, math.ceil(BLOCK / max(seconds, 1e-6))))


@contextlib.contextmanager
def _frozen_objects() -> Iterator[None]:
    """Exclude existing objects from garbage collection."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def fresh_cache(cold: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which, if `cold`, compiled code is neither read from nor kept on disk."""
    return _empty_cache() if cold else contextlib.nullcontext()


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
    from torch._inductor.utils import fresh_cache as inductor_cache

    previous = trace.COMPILER_CACHE
    with inductor_cache():
        trace.COMPILER_CACHE = auto.COMPILER_CACHE = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        try:
            yield
        finally:
            trace.COMPILER_CACHE = auto.COMPILER_CACHE = previous


def first_step(engine: Engine) -> float:
    """Return the seconds of the first step, compiling and warm-up included."""
    start = time.perf_counter()
    engine.step()
    engine.wait()
    return time.perf_counter() - start


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile."""
    low, middle, high = np.quantile(np.asarray(seconds), (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def peak_bytes(engine: Engine, steps: int = 2) -> int | None:
    """Return peak memory of `steps` steps on the CPU beyond that before; None if unknown.

    It is the peak of the resident set, reset after freed memory was returned to the system:
    compiled code, parameters and episodes sampled before do not count, activations and gradients
    do. Linux only."""
    gc.collect()
    _trim_heap()
    before = _reset_peak()
    if before is None:
        return None
    _steps(engine, steps)
    after = _status("VmHWM")
    return None if after is None else max(0, after - before)


@contextlib.contextmanager
def peak_on_cuda(device: str, engine: str, row: dict[str, Any]) -> Iterator[None]:
    """Set `peak_bytes` of the row: peak memory of torch's allocator beyond that before.

    Around the first step, not a later one: a captured graph allocates then and never again. JAX
    allocates elsewhere."""
    if not device.startswith("cuda") or engine == "jax":
        yield
        return
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield
    row["peak_bytes"] = max(0, torch.cuda.max_memory_allocated(device) - before)


def _steps(engine: Engine, steps: int) -> None:
    for _ in range(steps):
        engine.step()
    engine.wait()


def _trim_heap() -> None:
    """Ask the C library to return freed memory to the system, if it has such a call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> int | None:
    """Reset the peak of the resident set to what is resident now, and return that, in bytes."""
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmHWM")


def _status(name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB", (PROC / "status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else None
