"""What `auto` chooses on a machine where other programs are at work."""

from __future__ import annotations

from typing import Any

import pytest
from clockwork import (  # noqa: F401  # clock_of_trials is a fixture
    CONV,
    FOUR,
    PIECE,
    TRACED,
    WHOLE,
    Clockwork,
    clock_of_trials,
    clockwork,
    small,
)

from metalearn.executors import auto, trials
from metalearn.executors.timings import ExecutorChoice, Timing


@pytest.mark.parametrize("busy", [(1, 8, 1, 8), (8, 1), (1, 1, 8)])
def test_a_machine_that_is_busy_at_times_does_not_change_the_choice(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, busy: tuple[int, ...]
) -> None:
    """A step takes eight times as long whenever another program runs: the least of several turns
    counts."""
    calls, timed = [0], trials.timed

    def slow_now_and_then(work: Any, choice: Any, number: int) -> float:
        calls[0] += 1
        return timed(work, choice, number) * busy[calls[0] % len(busy)]

    monkeypatch.setattr(trials, "timed", slow_now_and_then)
    monkeypatch.setattr(Clockwork, "small", False)
    found = auto.choose(clockwork(CONV, 60_000, tasks=32, most=32)[0], {})
    assert found.choice == PIECE and found.timings[PIECE].step == 0.1


SIXTEEN = ExecutorChoice("compiled", 16)
CHUNKS = {**CONV, ExecutorChoice("chunk", 16): (0.4, 0.215), SIXTEEN: (40.0, 0.113)}
CHUNKS |= {FOUR: (0.6, 0.24)}


@pytest.mark.parametrize("slow", [(2.0,), (2.0, 1.6, 2.4), (1.0, 2.0, 2.0)])
def test_a_program_that_starts_during_a_compilation_does_not_change_the_choice(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, slow: tuple[float, ...]
) -> None:
    """Eager steps were timed before it started, all others beside it: twice as long, by the clock
    and, with two workers, by the processors too."""
    timed, calls = trials.timed, [0]

    def beside_another(work: Any, choice: Any, number: int) -> float:
        if choice == SIXTEEN or calls[0]:
            calls[0] += 1
        return timed(work, choice, number) * (slow[calls[0] % len(slow)] if calls[0] else 1.0)

    monkeypatch.setattr(trials, "timed", beside_another)
    monkeypatch.setattr(Clockwork, "small", False)
    settings = {"tasks": 32, "most": 32, "workers": 2}
    found = auto.choose(clockwork(CHUNKS, 2000, **settings)[0], {})
    assert found.choice == SIXTEEN
    assert found.timings[SIXTEEN].step == pytest.approx(0.113, rel=0.35)
    # The best one is known of an earlier run, on a machine that was quiet.
    calls[0] = 1
    known = {choice: Timing(*times) for choice, times in CHUNKS.items() if choice != SIXTEEN}
    again = auto.choose(clockwork(CHUNKS, 2000, **settings)[0], known)
    assert again.choice == SIXTEEN
    assert again.timings[ExecutorChoice("chunk", 16)].step == 0.215


def test_a_compilation_that_another_one_disturbed_is_repeated_once(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, failures = trials.timed, [FileNotFoundError("a header of another process")]

    def failing(work: Any, choice: Any, number: int) -> float:
        if choice == WHOLE and failures:
            raise failures.pop()
        return timed(work, choice, number)

    monkeypatch.setattr(trials, "timed", failing)
    work = clockwork(small(0.0045, 18.0), 70_000)[0]
    found = auto.choose(work, {})
    assert found.choice == WHOLE and not found.failed
    failures += [OSError("disk full"), OSError("disk full")]
    found = auto.choose(work, {})
    assert found.choice == TRACED and found.failed == {WHOLE: "OSError: disk full"}
    assert "compiled failed" in found.why


def test_time_that_other_programs_take_does_not_count_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [(0.0, 0.0), (1.2, 0.2), (1.2, 0.2), (0.1, 0.2)]
    for begin, end, device, seconds in (
        (0, 1, "cpu", 0.2),
        (0, 2, "cuda:0", 1.2),
        (0, 3, "cpu", 0.1),  # two processors at work
    ):
        monkeypatch.setattr(trials, "clocks", lambda end=end: now[end])
        assert trials.seconds_since(now[begin], device) == seconds
