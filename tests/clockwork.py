"""Work for `auto` whose steps take the seconds of a table, and a clock that they alone move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import tiny

from metalearn.executors import auto, executor, trials
from metalearn.executors.timings import ExecutorChoice
from metalearn.rng import fold_in


class Clockwork(auto.Work):
    """Work that takes no time: a table says how long each way's first and later calls take."""

    table: dict[ExecutorChoice, tuple[float, float]]

    def make(self, choice: ExecutorChoice) -> Any:
        return choice


def clockwork(
    table: dict[ExecutorChoice, tuple[float, float]], steps: int, **changes: Any
) -> tuple[Clockwork, list[float]]:
    """(work of a small model on 16 tasks, the seconds that its trials take)."""
    method = tiny()
    settings = {"tasks": 16, "device": "cpu", "most": 16, **changes}
    key = fold_in(0)
    work = Clockwork(
        method, lambda key, count, first: None, key, method.init(key), steps=steps, **settings
    )
    object.__setattr__(work, "table", table)
    return work, []


@pytest.fixture(name="clock")
def clock_of_trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """The clock of auto's trials, moved by their calls alone; the seconds they took. Nothing was
    compiled before."""
    monkeypatch.setattr(auto, "COMPILER_CACHE", tmp_path)
    spent = [0.0]

    def timed(work: Any, choice: ExecutorChoice, number: int) -> float:
        if choice not in work.table:
            raise RuntimeError("no such machine code\nsecond line")
        seconds = work.table[choice][0 if number == 0 else 1]
        spent[0] += seconds
        return seconds

    monkeypatch.setattr(trials, "timed", timed)
    monkeypatch.setattr(auto.time, "perf_counter", lambda: spent[0])
    monkeypatch.setattr(executor, "compiler_found", lambda: True)
    return spent


VMAP, FOUR, LOOP, WHOLE, TRACED = (
    ExecutorChoice("vmap"),
    ExecutorChoice("chunk", 4),
    ExecutorChoice("loop"),
    ExecutorChoice("compiled"),
    ExecutorChoice("traced"),
)


def small(
    step: float, first: float, gain: float = 10.0
) -> dict[ExecutorChoice, tuple[float, float]]:
    """Seconds of each way on a small model, as measured: chunks and loops pay the same overhead for
    every piece."""
    return {
        VMAP: (5 * step, step),
        FOUR: (5 * step, 4 * step),
        LOOP: (10 * step, 9 * step),
        WHOLE: (first, step / gain),
        TRACED: (0.1 + 150 * step, step / 2),
    }


PIECE = ExecutorChoice("compiled", 4)
CONV = {
    VMAP: (0.3, 0.241),
    FOUR: (0.6, 0.2),
    LOOP: (1.2, 1.15),
    ExecutorChoice("chunk", 16): (0.4, 0.36),
    PIECE: (15.0, 0.1),
}
