"""Peak memory of a meta-step, predicted before the run, and the chunk that fits.

    peak(c tasks at once) = episodes and state + fixed + c * each

`fixed` and `each` come from two small steps whose tensors are tracked from allocation to release.
The prediction is within 5 percent of the tensors of the eager executors, for one task at a time up
to 10 percent too much (tests/test_memory.py); it excludes what libraries allocate for themselves
(workspaces, allocators' slack). The compiled executors fuse and reuse, and need less."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.executors.executor import make_step
from metalearn.tree import leaves, take
from metalearn.types import Episode, MetaState, Method

# of what is free that a prediction may take: it knows nothing of workspaces, nor of the other
# processes
SHARE = 0.7


class Memory(NamedTuple):
    """Bytes of one meta-step."""

    held: int  # episodes of all tasks, state and new state
    fixed: int  # of a gradient, whatever the number of tasks at once
    each: int  # for every task at once

    def peak(self, chunk: int) -> int:
        """Predicted peak with `chunk` tasks at once."""
        return self.held + self.fixed + chunk * self.each

    def fits(self, tasks: int, room: int | None) -> int:
        """The most of `tasks` whose peak fits into SHARE of `room` bytes; at least 1."""
        if room is None:
            return tasks
        spare = SHARE * room - self.held - self.fixed
        return max(1, min(tasks, int(spare // max(1, self.each))))


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that live at once; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        return result

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that were there before: views of them are not new memory."""
        self._seen |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def _hold(self, storage: Any) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._seen:
            return
        self._seen.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.now -= size


def peak_of(function: Callable[..., Any], *args: Any) -> int:
    """The most bytes of new tensors that live at once while `function` runs, with its results."""
    with Live() as live:
        live.know(leaf for leaf in leaves(args) if isinstance(leaf, Tensor))
        result = function(*args)
    del result
    return int(live.peak)


def predict(method: Method, state: MetaState, episodes: Episode) -> Memory | None:
    """The memory of a meta-step on episodes [T, ...]; None for methods without task gradients."""
    if method.task_grad is None:
        return None
    tasks = episodes.support.x.shape[0]
    held = nbytes(episodes) + 2 * nbytes(state)
    most = min(4, tasks)
    few = (
        most + 1
    ) // 2  # two and four: with one task the outer update may take more than its gradient does
    low, high = (_step_of(method, state, take(episodes, slice(0, count))) for count in (few, most))
    each = (high - low) // (most - few) if most > few else high
    return Memory(held, max(0, low - few * each), max(0, each))


def _step_of(method: Method, state: MetaState, episodes: Episode) -> int:
    tasks = episodes.support.x.shape[0]
    lanes = None if state.lanes is None else take(state.lanes, slice(0, tasks))
    return peak_of(make_step(method, "vmap"), state._replace(lanes=lanes), episodes)


def nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in leaves(tree) if isinstance(leaf, Tensor))


def room(device: str) -> int | None:
    """Bytes that this process may still take: on the card, or of the machine and its cgroup."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    limits = [value for value in (_available(), _group_room()) if value is not None]
    return min(limits, default=None)


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _group_room(home: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group's limit leaves, where there is one (a container's, a batch
    system's).
    """
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        return int((home / "memory.max").read_text()) - int((home / "memory.current").read_text())
    return None
