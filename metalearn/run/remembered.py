"""What trials and runs found about speed, kept beside the compiler's code: the next run of a kind chooses at once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metalearn.run.config import Experiment
from metalearn.run.environment import cpu_name
from metalearn.run.files import write_json
from metalearn.run.traced import COMPILER_CACHE
from metalearn.types import EpisodeSpec

INPUT = ("maml", "anil", "boil")  # methods whose inner rate is an input of the compiled step: inner/rules.any_rate
WARM = 0.15  # share of the first call's time that is left when the compiler finds its code on disk; seen: 0.1 to 0.2


class Way(NamedTuple):
    """An executor and its number of tasks at once."""

    executor: str
    chunk: int | None = None

    def __str__(self) -> str:
        return self.executor if self.chunk is None else f"{self.executor} of {self.chunk}"


class Seen(NamedTuple):
    """Seconds of a way: its first call, compilation included, and each later one."""

    first: float
    step: float

    def total(self, steps: int) -> float:
        return self.first + max(0, steps - 1) * self.step


def signature(experiment: Experiment, spec: EpisodeSpec, device: str) -> str:
    """A hash of all that speed depends on: method, model, shapes, machine, threads, versions, our own code."""
    run = experiment.run
    free = {"outer"}
    if experiment.learns.name in INPUT and not device.startswith("cuda"):
        free.add("inner_lr")
    facts = {
        "method": {key: value for key, value in experiment.learns.model_dump(mode="json").items() if key not in free},
        "outer": str(getattr(getattr(experiment.learns, "outer", None), "name", "")),
        "model": experiment.model.model_dump(mode="json"),
        "found": [str(experiment.method), str(experiment.found)] if experiment.found else [],
        "task": [str(getattr(experiment.task, "source", "")), repr(spec)],
        "size": [run.tasks_per_step, run.examples_per_step],
        "precision": [run.dtype, run.precision, run.checkpoint_inner],
        "machine": [device, torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()],
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, _code()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@functools.cache
def _code() -> str:
    """A hash of the rooms that a step runs through."""
    home, found = Path(__file__).resolve().parents[1], hashlib.sha256()
    rooms = ("models", "inner", "algorithms", "transfer", "nas", "learned_optimizers")
    files = [path for room in rooms for path in (home / room).rglob("*") if path.suffix in (".py", ".cpp")]
    executors = (home / "run" / name for name in ("executor.py", "traced.py", "slim.py"))
    for path in sorted([*files, *home.glob("*.py"), *executors]):
        found.update(path.read_bytes())
    return found.hexdigest()


def recall(name: str) -> dict[Way, Seen]:
    """What is known under a signature; nothing where the file is missing or damaged."""
    found: dict[Way, Seen] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for row in json.loads(_file(name).read_text(encoding="utf-8"))["ways"]:
            found[Way(row["executor"], row["chunk"])] = Seen(float(row["first"]), float(row["step"]))
    return found


def expected(seen: Seen) -> Seen:
    """The next run's: what was compiled lies on disk by now."""
    return Seen(min(seen.first, max(seen.step, 2.0 + WARM * seen.first)), seen.step)


def remember(name: str, ways: dict[Way, Seen]) -> None:
    """Add to what is known; a folder that cannot be written to is no reason to stop a run."""
    if os.environ.get("METALEARN_REMEMBER", "1") == "0":
        return
    known = {**recall(name), **ways}
    rows: list[dict[str, Any]] = [{**way._asdict(), **seen._asdict()} for way, seen in known.items()]
    with contextlib.suppress(OSError):
        path = _file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema": 1, "ways": rows})


def _file(name: str) -> Path:
    return COMPILER_CACHE / "speed" / f"{name}.json"
