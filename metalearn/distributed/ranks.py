"""The processes (ranks) of one run, which all execute the same program.

What a run does follows from its config, and all random numbers are functions of names: ranks make
the same decisions without communication. They communicate with three operations:

    sum      adds up a vector over ranks: the only communication of a training step
    gather   collects what each rank computed, such as the scores of its episodes
    on_rank0 calls a function on rank 0 only, for files and for choices that depend on timing

Meta-gradients are summed between devices (NCCL on CUDA, gloo on CPU; NCCL has not been tested on
several GPUs yet), everything else is sent between CPUs (gloo)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metalearn.distributed.world import STORE, World
from metalearn.errors import ConfigError, Diverged, RankLost, Stopped
from metalearn.executors.step import rank_slice
from metalearn.machine import finishes
from metalearn.tree import take, tree_map
from metalearn.types import MetaState

Value = TypeVar("Value")
ANSWER = timedelta(minutes=30)  # in which a rank must answer: it may have to compile first
# for which a rank may wait for rank 0, which may choose an executor, search or write meanwhile
IDLE = timedelta(days=365)
SIGNALLED = 60.0  # seconds that a step may take after a signal that asks for the end
SHARE_CARD = "METALEARN_SHARE_CARD"
STOPS = (signal.SIGTERM, signal.SIGUSR1)


class Ranks:
    """The processes of a run, from the view of one of them."""

    def __init__(self, world: World, control: Any = None, cards: bool = False) -> None:
        self.rank, self.size, self.local_size = world.rank, world.size, world.local_size
        self._control = control
        self._cards = cards  # whether sums travel between CUDA devices
        self.signalled = False  # this process received a signal that asks for the end
        self.stop = False  # some process did, and all ranks know it
        self._flags: Tensor | None = None  # [], number of signalled processes at the last sum

    @property
    def is_first(self) -> bool:
        """Return whether this process writes the files."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """Return (first, number) of this rank's slice of `count` items."""
        return rank_slice(count, self.rank, self.size)

    def sum(self, vector: Tensor) -> Tensor:
        """Return the sum of a vector [n] over all ranks, on its device; signals are sent along."""
        payload = torch.cat([vector, vector.new_full((1,), float(self.signalled))])
        payload = payload if self._cards else payload.cpu()  # processes that share a GPU
        with self._exchange():
            dist.all_reduce(payload)
        self._flags = payload[-1]
        return payload[:-1].to(vector.device)

    def stopping(self) -> bool:
        """Return whether a rank received a signal before the last sum; equal on all ranks."""
        if self.size == 1:
            self.stop = self.signalled
            return self.stop
        if self._flags is None:  # every rank computes the whole step of this method
            self.sum(torch.zeros(0))
        assert self._flags is not None
        self._await(self._flags)
        self.stop, self._flags = self.stop or bool(self._flags > 0), None
        return self.stop

    def _await(self, flags: Tensor) -> None:
        """Raise RankLost if the last sum does not end because another process is gone.

        The launcher signals that a process has died."""
        timeout = ANSWER.total_seconds()
        if not finishes(str(flags.device), lambda: SIGNALLED if self.signalled else timeout):
            raise RankLost(f"rank {self.rank}: another process of this run has ended")

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in order, on all ranks; tensors should be on CPU."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._exchange():
            dist.all_gather_object(values, value, group=self._control)
        return values

    def on_rank0(self, function: Callable[[], Value]) -> Value:
        """Call `function` on rank 0 only; return its result, or raise its exception, on all ranks.

        It must not communicate itself, and tensors that it returns should be on CPU."""
        if self.size == 1:
            return function()
        if not self.is_first:
            value, error = self._broadcast((None, None))
            if error is not None:
                raise error
            return value  # type: ignore[no-any-return]
        try:
            value = function()
        except (Exception, Stopped) as error:
            self._broadcast((None, _portable(error)))
            raise
        self._broadcast((value, None))
        return value

    def _broadcast(self, value: tuple[Any, BaseException | None]) -> tuple[Any, Any]:
        values = [value]
        with self._exchange():
            dist.broadcast_object_list(values, 0, group=self._control)
        return values[0]

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # all that torch.distributed raises when a peer is gone
            text = f"rank {self.rank}: another process of this run has ended"
            raise RankLost(f"{text} ({_first_line(error)})") from error

    def own_state(self, state: MetaState, tasks: int) -> MetaState:
        """Return the state with the task state of this rank's tasks out of all `tasks`."""
        if self.size == 1 or state.lanes is None:
            return state
        first, count = self.share(tasks)
        return state._replace(lanes=take(state.lanes, slice(first, first + count)))

    def whole_state(self, state: MetaState) -> MetaState:
        """Return the state with the task state of all ranks' tasks, which is then on CPU."""
        if self.size == 1 or state.lanes is None:
            return state
        parts = self.gather(on_cpu(state.lanes))
        return state._replace(lanes=tree_map(lambda *leaves: torch.cat(leaves), *parts))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context manager of ranks other than 0: a signal is sent with the next sum, a second one
        ends the process."""

        def on_signal(*_: Any) -> None:
            if self.signalled:
                os._exit(75)
            self.signalled = True

        handlers: dict[signal.Signals, Any] = dict.fromkeys(STOPS, on_signal)
        handlers |= dict.fromkeys((signal.SIGINT, signal.SIGUSR2), signal.SIG_IGN)
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


ALONE = Ranks(World(0, 1, 0, 1))


def join(world: World) -> Ranks:
    """Connect to the other processes: on CUDA if each has its own device (`check_cards`)."""
    cards = has_card_each(world.local_size)
    if cards:
        torch.cuda.set_device(world.local_rank)
    store = os.environ.get(STORE)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cards else "gloo",
        init_method=f"file://{store}" if store else "env://",
        rank=world.rank,
        world_size=world.size,
        timeout=ANSWER,
    )
    control = dist.new_group(backend="gloo", timeout=IDLE if world.rank else ANSWER)
    return Ranks(world, control, cards)


@contextmanager
def joined(world: World) -> Iterator[Ranks]:
    """Context manager with the ranks of a run. Disconnects them on exit, unless one was lost.

    Threads of gloo that still run when Python exits can abort the process."""
    ranks = join(world)
    try:
        yield ranks
    except (ConfigError, OSError, Diverged, Stopped):  # raised on all ranks
        _disconnect()
        raise
    _disconnect()


def _disconnect() -> None:
    with suppress(RuntimeError):  # the work is done: a failure here must not hide its result
        dist.destroy_process_group()


def has_card_each(processes: int) -> bool:
    """Return whether this machine has a CUDA device for each of its processes."""
    return torch.cuda.is_available() and torch.cuda.device_count() >= processes


def check_cards(ranks: Ranks, device: str) -> None:
    """Raise ConfigError if processes of a run on CUDA would share a device.

    SHARE_CARD=1 allows it, to test them on one GPU."""
    if not device.startswith("cuda") or ranks.size == 1 or os.environ.get(SHARE_CARD) == "1":
        return
    if not has_card_each(ranks.local_size):
        text = f"{ranks.local_size} processes on a machine with {torch.cuda.device_count()} CUDA"
        advice = "use one device per process, or run.device=cpu"
        raise ConfigError(("--devices", f"{text} devices: {advice}"))


def on_cpu(tree: Any) -> Any:
    """Return the tree with its leaves on CPU, where other processes can read them."""
    return tree_map(lambda leaf: None if leaf is None else leaf.detach().cpu(), tree)


def _portable(error: BaseException) -> BaseException:
    """Return an exception that the other ranks can raise as well."""
    if isinstance(error, (ConfigError, OSError, Diverged, Stopped)):
        return error
    return RankLost(f"rank 0 failed with {type(error).__name__}")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0].rpartition("] ")[2].split(". This is")[0]
