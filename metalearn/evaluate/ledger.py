"""The cost ledger: seconds, FLOPs and counts of each phase of a run.

Every second belongs to one phase: if spans are nested, to that of the innermost. FLOPs are counted
from shapes, once per function and set of shapes, after the call and outside its time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from metalearn.errors import RankLost
from metalearn.evaluate.flops import Flops, UnknownFlops, cached_count
from metalearn.evaluate.hardware import energy_joules, peak_bytes
from metalearn.machine import waiting_seconds
from metalearn.types import Ledger

Result = TypeVar("Result")
Entry = dict[str, float]  # NaN: not measured, also in sums; null in files
PHASES = (
    *("setup", "compile", "tune", "pretrain", "meta_train"),
    *("search", "retrain", "adapt", "predict"),
)
UNKNOWN = math.nan
FLOPS = ("flops", "flops_elementwise", "flops_architecture")
COUNTS = ("gradient_steps", "examples", "labels", "candidates", "tasks")


class MissingPhase(ValueError):
    """Nothing was written to a phase that a method must write to."""


class CostLedger:
    """Seconds, FLOPs, memory, energy and counts by phase; functions are called through `run`.

    >>> ledger = ml.evaluate.CostLedger()
    >>> product = ledger.run("adapt", torch.matmul, torch.ones(2, 3), torch.ones(3, 4))
    >>> ledger.totals()["adapt"]["flops"]  # 2 x 3 x 4 products and sums
    48.0
    """

    def __init__(
        self, device: str = "cpu", *, counting: bool = True, waiting: bool = False
    ) -> None:
        self.device = device
        self.counting = counting  # whether FLOPs are counted; null otherwise
        self.waiting = waiting  # whether `seconds_waiting` is recorded: waiting for a core
        self.uncounted: dict[str, str] = {}  # phase -> why its FLOPs are null
        self._spent: dict[str, Entry] = {}
        self._open: list[str | None] = []  # nested spans; None: time that is not recorded here
        self._since = 0.0
        self._energy: float | None = None
        self._waited: float | None = None
        self._lost = False  # a process is lost, and the device may wait for it forever

    def run(
        self,
        phase: str,
        function: Callable[..., Result],
        *args: Any,
        times: int = 1,
        **counts: int | None,
    ) -> Result:
        """Call `function(*args)`, and record its time, FLOPs and counts for `phase`.

        `times` is the number of units of `counts` in the call. FLOPs follow from the shapes of
        `args`, which should hold every tensor that is worked on; pass `flops=` and
        `flops_elementwise=` if they do not."""
        amounts = {
            name: UNKNOWN if count is None else count * times for name, count in counts.items()
        }
        with self.span(phase, **amounts):
            result = function(*args)
        if "flops" not in amounts:
            with self._while_counting():
                flops = self.flops_of(
                    phase, function, *args, architecture="flops_architecture" not in amounts
                )
            self.add(phase, 0.0, **flops)
        return result

    @contextmanager
    def span(self, phase: str, **counts: float) -> Iterator[None]:
        """Record the time of a block for a phase, and not for spans around it.

        It waits for the device at both ends."""
        _check(phase, counts)
        with self._owner(phase):
            try:
                yield
            finally:
                self.add(phase, 0.0, **counts)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record no time of a block, because another ledger records it."""
        with self._owner(None):
            yield

    def add(self, phase: str, seconds: float | None, **counts: float | None) -> None:
        """Record what was measured elsewhere; None for a number that was not measured."""
        _check(phase, counts)
        if self.waiting and seconds:
            counts = {"seconds_waiting": None, **counts}
        entry = self._spent.setdefault(phase, {"seconds": 0.0})
        for name, count in {"seconds": seconds, **counts}.items():
            amount = UNKNOWN if count is None else count
            entry[name] = (
                max(entry.get(name, 0), amount)
                if name == "peak_bytes"
                else entry.get(name, 0) + amount
            )

    def flops_of(
        self,
        phase: str,
        function: Callable[..., Any],
        *args: Any,
        times: int = 1,
        architecture: bool = True,
    ) -> Entry:
        """Return the FLOPs of `times` calls, as keyword arguments of `add`.

        NaN, and a reason in `uncounted`, if they are not known.
        `architecture`: whether all work is that of the chosen architecture, which is true except
        in supernets."""
        names = FLOPS if architecture else FLOPS[:2]
        flops = self._count(phase, function, args) if self.counting else None
        if flops is None:
            return dict.fromkeys(names, UNKNOWN)
        return dict(zip(names, (*map(float, flops.times(times)), float(flops.matrix * times))))

    def under(self, phase: str) -> CostLedger:
        """Return a ledger that records everything for one phase of this one, such as `tune`."""

        return _Under(self, phase)

    def aside(self) -> CostLedger:
        """Return an empty ledger; time that is recorded in it is not recorded in this one."""
        return _Aside(self)

    def seconds(self, phase: str) -> float:
        self._tick()
        return self._spent.get(phase, {}).get("seconds", 0.0)

    def totals(self) -> dict[str, Entry]:
        """Return a copy of the costs so far, for `restore`."""
        self._tick()
        return {phase: dict(entry) for phase, entry in self._spent.items()}

    def restore(self, totals: Mapping[str, Mapping[str, float | None]]) -> None:
        self._tick()
        self._spent = {}
        for phase, entry in totals.items():
            self.add(phase, **{"seconds": 0.0, **entry})

    def require(self, phases: Collection[str]) -> None:
        """Raise MissingPhase unless something was written to every one of these phases."""
        require_phases(self, phases)

    def cost(self) -> dict[str, dict[str, Any]]:
        """Return the `cost` block of result.json: every phase, with null for not measured."""
        self._tick()
        return {phase: self._row(self._spent.get(phase)) for phase in PHASES}

    def _row(self, entry: Entry | None) -> dict[str, Any]:
        costs = dict(entry or {})
        idle = not any(costs.values())  # a phase without any cost has measured zeros
        row: dict[str, Any] = {name: _whole(costs.get(name, 0 if idle else None)) for name in FLOPS}
        row |= {"seconds": known(costs.get("seconds", 0.0)), "device": self.device}
        if self.waiting:
            waiting = costs.get("seconds_waiting", None if costs.get("seconds") else 0.0)
            row |= {"seconds_waiting": known(waiting)}
        row |= {"peak_bytes": _whole(costs.get("peak_bytes", 0 if idle else None))}
        row |= {name: _whole(costs.get(name, 0)) for name in COUNTS if name != "tasks"}
        has_energy_meter = energy_joules(self.device) is not None
        return row | {
            "energy_joules": known(
                costs.get("energy_joules", 0.0 if idle and has_energy_meter else None)
            ),
            "tasks": _whole(costs.get("tasks", 0)),
        }

    def _count(
        self, phase: str, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> Flops | None:
        try:
            return cached_count(function, *args)
        except UnknownFlops as error:
            self.uncounted.setdefault(phase, str(error))
            return None

    @contextmanager
    def _owner(self, phase: str | None) -> Iterator[None]:
        self._tick()
        self._open.append(phase)
        try:
            yield
        except RankLost:
            self._lost = True
            raise
        finally:
            self._tick()
            self._open.pop()

    @contextmanager
    def _while_counting(self) -> Iterator[None]:
        """Record the time of counting FLOPs as set-up, if such a span is open."""
        with (
            self._owner("setup" if "setup" in self._open else None) if self._open else nullcontext()
        ):
            yield

    def _tick(self) -> None:
        """Record the time since the last tick for the innermost open span."""
        if not self._open:
            self._start()
            return
        phase, since, energy, waited = self._open[-1], self._since, self._energy, self._waited
        self._start()
        if phase is None:
            return
        amounts: dict[str, float | None] = {"peak_bytes": self._peak}
        if self.waiting and waited is not None and self._waited is not None:
            amounts |= {"seconds_waiting": max(0.0, self._waited - waited)}
        self.add(phase, self._since - since, **amounts)
        if energy is not None and self._energy is not None:
            self.add(phase, 0.0, energy_joules=self._energy - energy)

    def _start(self) -> None:
        if self.device.startswith("cuda") and not self._lost:
            torch.cuda.synchronize(self.device)
        self._peak, self._energy = peak_bytes(self.device), energy_joules(self.device)
        self._waited = waiting_seconds() if self.waiting else None
        self._since = time.perf_counter()


def require_phases(ledger: Ledger, phases: Collection[str]) -> None:
    """Raise MissingPhase unless something was written to every one of these phases."""
    written = ledger.totals()
    missing = [phase for phase in phases if phase not in written]
    if missing:
        raise MissingPhase(
            f"nothing was recorded for {', '.join(missing)}: call functions with "
            f"ledger.run({missing[0]!r}, function, ...), and record a phase without cost as a "
            "measured zero, ledger.add(phase, 0.0, flops=0)"
        )


class _Under(CostLedger):
    """Another ledger, with one phase instead of all."""

    def __init__(self, ledger: CostLedger, phase: str) -> None:
        super().__init__(ledger.device, counting=ledger.counting)
        self._ledger, self._phase = ledger, phase
        self.uncounted = ledger.uncounted

    def add(self, phase: str, seconds: float | None, **counts: float | None) -> None:
        super().add(phase, seconds, **counts)  # `totals` are by the phases as they were named
        if phase == "predict":
            counts.pop("tasks", None)  # counted when the task was adapted to
        self._ledger.add(self._phase, seconds, **counts)

    @contextmanager
    def _owner(self, phase: str | None) -> Iterator[None]:
        with self._ledger._owner(None if phase is None else self._phase):
            yield

    @contextmanager
    def _while_counting(self) -> Iterator[None]:
        with self._ledger._while_counting():
            yield

    def _count(
        self, phase: str, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> Flops | None:
        return self._ledger._count(self._phase, function, args)


class _Aside(CostLedger):
    """A separate ledger, during whose spans the other ledger records no time."""

    def __init__(self, ledger: CostLedger) -> None:
        super().__init__(ledger.device, counting=ledger.counting)
        self._ledger = ledger

    @contextmanager
    def _owner(self, phase: str | None) -> Iterator[None]:
        with self._ledger._owner(None), super()._owner(phase):
            yield

    @contextmanager
    def _while_counting(self) -> Iterator[None]:
        """Counting is part of the other ledger's run."""
        with CostLedger._owner(self, None), self._ledger._while_counting():
            yield


def since(before: Entry, after: Entry) -> Entry:
    """Return the difference of two totals of a phase; of peak memory, the later one."""
    return {
        name: total - (0 if name == "peak_bytes" else before.get(name, 0))
        for name, total in after.items()
    }


def _check(phase: str, counts: Collection[str]) -> None:
    if phase not in PHASES:
        raise ValueError(f"unknown phase {phase!r}; valid: {', '.join(PHASES)}")
    valid = (*COUNTS, *FLOPS, "peak_bytes", "energy_joules", "seconds_waiting")
    for name in counts:
        if name not in valid:
            raise ValueError(f"unknown count {name!r}; valid: {', '.join(valid)}")


def known(value: float | None) -> float | None:
    """Return a number as files store it: None if it was not measured."""
    return None if value is None or math.isnan(value) else value


def _whole(value: float | None) -> int | None:
    return None if known(value) is None else int(value or 0)
