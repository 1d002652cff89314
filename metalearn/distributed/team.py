"""Several processes at one run: rank 0 runs the program and writes every file, the others do what
it orders.

An order is a few whole numbers, added up over all ranks, so that it also carries back which ranks
were told to stop; some orders are followed by bytes. Orders and files of tensors travel between
CPUs (gloo), the sums of meta-gradients between devices (NCCL on CUDA, gloo on CPU; the CUDA half
has not run on several cards yet)."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from metalearn.distributed.world import STORE, World
from metalearn.errors import ConfigError, RankLost
from metalearn.tree import from_named, leaves, named_leaves, take, tree_map
from metalearn.types import MetaState

ANSWER = timedelta(minutes=30)  # in which a rank must answer: it may have to compile first
IDLE = timedelta(
    days=365
)  # that a rank may wait for an order: rank 0 may tune, search or write in the meantime
WORDS = "words"  # the name under which a letter holds its plain data
STOPS = (signal.SIGTERM, signal.SIGUSR1)


class Does(IntEnum):
    """What rank 0 can order."""

    END = 1  # number: the exit code
    TRAIN = 2  # bytes: the experiment
    STATE = 3  # bytes: the state to go on from
    STEP = 4  # number: of the step
    LANES = 5  # every rank sends the lanes of its tasks
    CURVE = 6  # bytes: what to measure


class Order(NamedTuple):
    """One order, as all ranks have received it."""

    does: Does
    number: int
    content: bytes


class Team:
    """The processes of a run, seen from one of them."""

    def __init__(self, world: World, control: Any = None) -> None:
        self.rank, self.size, self.local_size = world.rank, world.size, world.local_size
        self._control = control
        self._busy = (
            False  # between two halves of an exchange: the others wait for what will not come
        )
        self._signals = 0
        self.stop = False  # some rank was told to

    # exchange

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        except RuntimeError as error:  # all that torch.distributed raises when a peer is gone
            raise RankLost(
                f"rank {self.rank}: another process of this run is gone ({_first_line(error)})"
            ) from error
        self._busy = False

    def order(self, does: Does, number: int = 0, content: bytes = b"") -> None:
        """Rank 0: tell the others what to do."""
        self._header([does, number, len(content), 0])
        if content:
            self._broadcast(content, len(content))

    def next_order(self) -> Order:
        """The others: wait for what comes next."""
        does, number, length, _ = self._header([0, 0, 0, self._signals])
        return Order(Does(does), number, self._broadcast(b"", length) if length else b"")

    def _header(self, own: list[int]) -> list[int]:
        """Four whole numbers added up over all ranks: rank 0's order, and how many were told to
        stop.
        """
        vector = torch.tensor(own)
        with self._exchange():
            dist.all_reduce(vector, group=self._control)
        found: list[int] = vector.tolist()
        self.stop = self.stop or found[3] > 0
        return found

    def _broadcast(self, content: bytes, length: int) -> bytes:
        vector = _vector(content) if content else torch.empty(length, dtype=torch.uint8)
        with self._exchange():
            dist.broadcast(vector, 0, group=self._control)
        return vector.numpy().tobytes()

    def collect(self, content: bytes) -> list[bytes]:
        """What each rank gives, at rank 0; an empty list elsewhere."""
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(content)
        with self._exchange():
            dist.all_reduce(lengths, group=self._control)
            if self.rank:
                if content:
                    dist.send(_vector(content), 0, group=self._control)
                return []
            given = [content]
            for rank in range(1, self.size):
                vector = torch.empty(int(lengths[rank]), dtype=torch.uint8)
                if len(vector):
                    dist.recv(vector, rank, group=self._control)
                given.append(vector.numpy().tobytes())
        return given

    def total(self, vector: Tensor) -> Tensor:
        """The sum of a vector over all ranks, on its device: the one thing that passes in a
        meta-step.
        """
        with self._exchange():
            dist.all_reduce(vector)
        return vector

    # states

    def own(self, state: MetaState, first: int, count: int) -> MetaState:
        """The state with the lanes of so many tasks from the first one on."""
        return (
            state
            if state.lanes is None
            else state._replace(lanes=take(state.lanes, slice(first, first + count)))
        )

    def whole(self, state: MetaState) -> MetaState:
        """Rank 0: the state with the lanes of all tasks."""
        if self.size == 1 or state.lanes is None:
            return state
        self.order(Does.LANES)
        parts = [
            tree_of(opened(content)[1], state.lanes)
            for content in self.collect(letter({}, state.lanes))
        ]
        return state._replace(lanes=tree_map(lambda *lanes: torch.cat(lanes), *parts))

    # signals and end

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A rank other than 0 passes a signal on with its next answer; the second one ends it at
        once.
        """

        def heard(*_: Any) -> None:
            self._signals += 1
            if self._signals > 1:
                os._exit(75)

        previous = {number: signal.signal(number, heard) for number in STOPS}
        previous |= {
            number: signal.signal(number, signal.SIG_IGN)
            for number in (signal.SIGINT, signal.SIGUSR2)
        }
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)

    def close(self, code: int) -> None:
        """Rank 0: send the others home, unless they wait for something else: then they find this
        process gone.
        """
        if self.size > 1 and self.rank == 0 and not self._busy:
            try:
                self.order(Does.END, code)
            except RankLost:
                self._busy = True  # whoever is left finds out by itself


ALONE = Team(World(0, 1, 0, 1))


def join(world: World) -> Team:
    """Meet the other processes; ConfigError where this machine has fewer CUDA devices than
    processes.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards:
        if cards < world.local_size:
            text = (
                f"{world.local_size} processes on a machine with {cards} CUDA devices: give "
                f"each one of its own"
            )
            raise ConfigError(
                ("--devices", f"{text}, or set CUDA_VISIBLE_DEVICES= to use its CPU cores")
            )
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
    return Team(world, control)


def letter(words: dict[str, Any], tree: Any = None) -> bytes:
    """Plain data and the leaves of a tree under their names, as one file of tensors: nothing in it
    can be run.
    """
    said = _vector(json.dumps(words).encode())
    named = {} if tree is None else named_leaves(tree)
    buffer = io.BytesIO()
    torch.save(
        {WORDS: said, **{name: value.detach().cpu().clone() for name, value in named.items()}},
        buffer,
    )
    return buffer.getvalue()


def opened(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(plain data, tensors by name) of a letter."""
    named = torch.load(io.BytesIO(content), weights_only=True)
    return json.loads(named.pop(WORDS).numpy().tobytes()), named


def tree_of(named: dict[str, Tensor], like: Any) -> Any:
    """The tree of a letter, in the structure and place of `like`."""
    place = leaves(like)[0].device if leaves(like) else "cpu"
    return from_named(like, {name: value.to(place) for name, value in named.items()})


def _vector(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0].rpartition("] ")[2].split(". This is")[0]
