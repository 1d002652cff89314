"""Rank and number of processes, as the launcher has written them into the environment."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

STORE = "METALEARN_MEETING"  # file through which the processes of one machine connect
LOST = 70  # exit code of a rank that has failed, or has lost rank 0
# Asks rank 0 to stop; repeated ones count once, as a batch system may signal every process itself.
PASSED_ON = signal.SIGUSR2


class World(NamedTuple):
    """Rank of this process and number of processes, in all and on this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def world() -> World:
    """Read what the launcher (this one, or torchrun) has written into the environment."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return World(
            rank, size, int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", size))
        )
    except (KeyError, ValueError):
        return World(0, 1, 0, 1)
