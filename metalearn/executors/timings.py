"""Seconds of a step under each executor, stored beside the compiler's code.

The next run of the same signature (config/signature.py) chooses at once."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from metalearn.executors.trace import COMPILER_CACHE
from metalearn.storage.files import write_json

# share of the first call's time that is left when the compiler finds its code on disk; seen: 0.1 to
# 0.2
WARM = 0.15


class ExecutorChoice(NamedTuple):
    """An executor and the number of tasks in a chunk."""

    executor: str
    chunk: int | None = None

    def __str__(self) -> str:
        return self.executor if self.chunk is None else f"{self.executor} of {self.chunk}"


class Timing(NamedTuple):
    """Seconds under an executor: the first call, compilation included, and each later one."""

    first: float
    step: float


def load(signature: str) -> dict[ExecutorChoice, Timing]:
    """The stored timings of a signature; none where the file is missing or damaged."""
    timings: dict[ExecutorChoice, Timing] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for row in json.loads(_file(signature).read_text(encoding="utf-8"))["ways"]:
            timing = Timing(float(row["first"]), float(row["step"]))
            timings[ExecutorChoice(row["executor"], row["chunk"])] = timing
    return timings


def with_warm_cache(timing: Timing) -> Timing:
    """The timing that the next run is expected to see: compiled code lies on disk by now."""
    return timing._replace(first=min(timing.first, max(timing.step, 2.0 + WARM * timing.first)))


def save(signature: str, timings: dict[ExecutorChoice, Timing]) -> None:
    """Add to the stored timings; a folder that cannot be written to is no reason to stop a run."""
    if os.environ.get("METALEARN_REMEMBER", "1") == "0":
        return
    rows = [
        {**choice._asdict(), **timing._asdict()}
        for choice, timing in {**load(signature), **timings}.items()
    ]
    with contextlib.suppress(OSError):
        path = _file(signature)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema": 1, "ways": rows})


def _file(signature: str) -> Path:
    return COMPILER_CACHE / "speed" / f"{signature}.json"
