"""The cost ledger: what each phase of learning a task, or of learning to learn, has spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
PHASES = ("setup", "tune", "pretrain", "meta_train", "search", "retrain", "adapt", "predict")
COUNTS = ("gradient_steps", "examples", "labels", "candidates", "tasks")


class CostLedger:
    """Seconds and counts by phase; `run` is the one way to spend. FLOPs, memory and energy stay null."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._spent: dict[str, dict[str, float]] = {}

    def run(self, phase: str, function: Callable[..., Result], *args: Any, times: int = 1, **counts: int) -> Result:
        """Call, time and count; `times` says how many units of `counts` the call stands for."""
        with self.span(phase, **{name: count * times for name, count in counts.items()}):
            return function(*args)

    @contextmanager
    def span(self, phase: str, **counts: int) -> Iterator[None]:
        """Time a block of code as part of a phase; waits for the device at both ends."""
        self._wait()
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.add(phase, time.perf_counter() - begin, **counts)

    def add(self, phase: str, seconds: float, **counts: float) -> None:
        """Write seconds and counts that were measured elsewhere."""
        if phase not in PHASES:
            raise ValueError(f"no phase {phase!r}; phases: {', '.join(PHASES)}")
        entry = self._spent.setdefault(phase, {"seconds": 0.0})
        entry["seconds"] += seconds
        for name, count in counts.items():
            if name not in COUNTS:
                raise ValueError(f"no count {name!r}; counts: {', '.join(COUNTS)}")
            entry[name] = entry.get(name, 0) + count

    def under(self, phase: str) -> CostLedger:
        """A ledger that writes whatever it is given to one phase of this one: learning done for tuning is tuning."""
        return _Under(self, phase)

    def seconds(self, phase: str) -> float:
        return self._spent.get(phase, {}).get("seconds", 0.0)

    def totals(self) -> dict[str, dict[str, float]]:
        """A copy of what was spent, to be stored and given back to `restore`."""
        return {phase: dict(entry) for phase, entry in self._spent.items()}

    def restore(self, totals: dict[str, dict[str, float]]) -> None:
        self._spent = {phase: dict(entry) for phase, entry in totals.items()}

    def cost(self) -> dict[str, dict[str, Any]]:
        """The `cost` block of result.json: every phase, null for what is not measured, 0 for measured zero."""
        table: dict[str, dict[str, Any]] = {}
        for phase in PHASES:
            entry = self._spent.get(phase, {"seconds": 0.0})
            row: dict[str, Any] = {"flops": None, "flops_elementwise": None, "flops_architecture": None}
            row |= {"seconds": entry["seconds"], "device": self.device, "peak_bytes": None}
            row |= {name: int(entry.get(name, 0)) for name in ("gradient_steps", "examples", "labels")}
            row |= {"candidates": None, "energy_joules": None, "tasks": int(entry.get("tasks", 0))}
            table[phase] = row
        return table

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


class _Under(CostLedger):
    def __init__(self, ledger: CostLedger, phase: str) -> None:
        super().__init__(ledger.device)
        self._ledger, self._phase = ledger, phase

    def add(self, phase: str, seconds: float, **counts: float) -> None:
        if phase == "predict":
            counts.pop("tasks", None)  # counted when the task was adapted to
        self._ledger.add(self._phase, seconds, **counts)
