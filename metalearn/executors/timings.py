"""What trials and runs found about speed, kept beside the compiler's code: the next run of a kind
chooses at once.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.executors.trace import COMPILER_CACHE
from metalearn.storage.files import write_json

# share of the first call's time that is left when the compiler finds its code on disk; seen: 0.1 to
# 0.2
WARM = 0.15


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


def recall(name: str) -> dict[Way, Seen]:
    """What is known under a signature; nothing where the file is missing or damaged."""
    found: dict[Way, Seen] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for row in json.loads(_file(name).read_text(encoding="utf-8"))["ways"]:
            found[Way(row["executor"], row["chunk"])] = Seen(
                float(row["first"]), float(row["step"])
            )
    return found


def expected(seen: Seen) -> Seen:
    """The next run's: what was compiled lies on disk by now."""
    return Seen(min(seen.first, max(seen.step, 2.0 + WARM * seen.first)), seen.step)


def remember(name: str, ways: dict[Way, Seen]) -> None:
    """Add to what is known; a folder that cannot be written to is no reason to stop a run."""
    if os.environ.get("METALEARN_REMEMBER", "1") == "0":
        return
    known = {**recall(name), **ways}
    rows: list[dict[str, Any]] = [
        {**way._asdict(), **seen._asdict()} for way, seen in known.items()
    ]
    with contextlib.suppress(OSError):
        path = _file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema": 1, "ways": rows})


def _file(name: str) -> Path:
    return COMPILER_CACHE / "speed" / f"{name}.json"
