"""`auto`: which executor, from a few timed steps and what compiling is expected to cost and to
save.

For the n steps of a run, a way of running costs   first call (compilation included) + n * seconds a
step.

Eager ways are timed, within a share of the time that the run will take. A compiled way cannot be
known before it is compiled: it is tried when the expected saving pays for it, or when it is so
cheap beside the run that it may fail. All trials run on the state before step 0 and throw their
results away, so that a run is the same whoever chose. What was found is remembered (remembered.py):
then nothing is tried at all."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from metalearn.executors.compile_cache import NotReady, only_ready
from metalearn.executors.executor import CHUNK, COMPILED, Advance, Draw, why_not
from metalearn.executors.sharded import make_advance
from metalearn.executors.timings import Seen, Way, expected
from metalearn.executors.trace import COMPILER_CACHE as COMPILER_CACHE
from metalearn.executors.trace import traces_left
from metalearn.machine import cores
from metalearn.tree import leaves
from metalearn.types import Key, MetaState, Method

SHORT = 100  # steps below which a run is over before a trial could pay
BUDGET = 0.03  # share of a run that the trials of eager ways may take
INSURANCE = 0.03  # share of a run that a compilation without a promise may take
DROP = 1.5  # a way whose first timed step is so much slower than the best is not timed again
SMALL = 50_000  # parameters below which Python and launch overhead is all there is
REPEATS, LONG = 5, 0.2  # timed steps of a trial, and seconds after which one has shown enough
CLOSE, AGAIN = (
    1.5,
    0.01,
)  # ways whose totals are so close are timed again, within so large a share of the run
LOADING = 3.0  # seconds to load the compiled step of convolutions
EAGER = ("vmap", "chunk", "loop")
SIZES = (16, CHUNK)  # tasks at once that are tried between all of them and one


@dataclass(frozen=True)
class Work:
    """What is to be run: a method's steps on a device."""

    method: Method
    draw: Draw
    key: Key
    state: MetaState
    tasks: int
    device: str
    steps: int
    most: int  # tasks at once that memory holds
    compiling: bool = True  # whether compiled ways may be tried

    def advance(self, way: Way) -> Advance:
        return make_advance(
            self.method, self.draw, self.key, self.tasks, self.device, way.executor, way.chunk
        )

    @property
    def small(self) -> bool:
        return is_small(self.state)

    @property
    def pieces(self) -> bool:
        return self.method.task_grad is not None


@dataclass
class Choice:
    """What was chosen, why, and what was seen on the way."""

    way: Way
    why: str
    seen: dict[Way, Seen] = field(default_factory=dict)  # in this process: what `remembered` keeps
    known: dict[Way, Seen] = field(default_factory=dict)  # from earlier ones
    failed: dict[Way, str] = field(default_factory=dict)
    ready: dict[Way, Advance] = field(default_factory=dict)  # made, and compiled, by a trial

    def record(self) -> dict[str, Any]:
        """For environment.json."""

        def row(way: Way, seen: Seen, source: str) -> dict[str, Any]:
            return {
                **way._asdict(),
                "first_seconds": seen.first,
                "step_seconds": seen.step,
                "from": source,
            }

        trials = [row(way, seen, "trial") for way, seen in self.seen.items()]
        trials += [
            row(way, seen, "memory") for way, seen in self.known.items() if way not in self.seen
        ]
        trials += [{**way._asdict(), "error": why} for way, why in self.failed.items()]
        return {**self.way._asdict(), "why": self.why, "trials": trials}

    def eager(self) -> float:
        """Seconds a step of the fastest way that needs no preparation."""
        ways = {**self.known, **self.seen}
        return min(
            seen.step
            for way, seen in ways.items()
            if way.executor in EAGER and way not in self.failed
        )

    def step_of(self, way: Way) -> float:
        return (self.seen.get(way) or self.known[way]).step

    def total(self, way: Way, steps: int) -> float:
        """Seconds still to be spent on a whole run: the first call of a way that a trial has made
        is paid.
        """
        return (
            steps * self.step_of(way)
            if way in self.ready
            else expected(self.known[way]).total(steps)
        )

    def fail(self, way: Way, error: Exception) -> None:
        self.failed[way] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"

    def best(self, steps: int) -> Way:
        ways = [way for way in {**self.known, **self.seen} if way not in self.failed]
        return min(ways, key=lambda way: self.total(way, steps))


def is_small(state: MetaState) -> bool:
    sizes = [leaf.numel() for leaf in leaves(state.meta)]
    return sum(sizes) < SMALL and not any(leaf.dim() == 4 for leaf in leaves(state.meta))


def good_threads(state: MetaState) -> int:
    """CPU threads when none are asked for: one for small models, whose work is too little to share;
    else every core.
    """
    return 1 if is_small(state) else cores()


def asked_for(executor: str, chunk: int | None, tasks: int, most: int) -> Way:
    """The way that a config names; where it leaves the chunk open, the one that fits memory."""
    if executor == "chunk":
        return Way(executor, chunk or min(CHUNK, most))
    if executor == "compiled":
        return Way(executor, chunk if chunk or most >= tasks else most)
    return Way(executor, chunk)


def choose(work: Work, known: dict[Way, Seen], chunk: int | None = None) -> Choice:
    """The way that is expected to finish `work` first; `chunk` where the config fixes it."""
    eager = _eager(work, chunk)
    if work.steps < SHORT:
        return Choice(eager[0], f"{work.steps} steps: too short a run to try anything")
    compiled = _compiled(work, None, chunk)
    possible = {*eager, *compiled}
    choice = Choice(
        eager[0], "", known={way: seen for way, seen in known.items() if way in possible}
    )
    if not any(way in choice.known for way in eager):
        _try_eager(work, eager, choice)
    with traces_left():
        _try_compiled(work, chunk, choice)
    _time_rivals_again(work, choice)
    choice.way = choice.best(work.steps)
    choice.why = _reason(work, choice)
    return choice


def _try_compiled(work: Work, chunk: int | None, choice: Choice) -> None:
    """What the compiler's cache holds first, as that takes a second; then what is expected to
    pay.
    """
    ways = _compiled(work, choice.best(work.steps), chunk)
    for way in ways if work.small and not work.device.startswith("cuda") else ():
        _try_to_load(work, way, choice)
    for way in sorted(ways, key=lambda way: _hoped(work, way, choice)):
        if way in {**choice.known, **choice.seen, **choice.failed}:
            continue
        if _promises(work, way, choice):
            _try(work, way, choice)
        elif not work.small:
            _try_to_load(work, way, choice)


def _try_to_load(work: Work, way: Way, choice: Choice) -> None:
    if way not in choice.known and _may_load(work, way, choice):
        with only_ready():
            _try(work, way, choice)


def _eager(work: Work, chunk: int | None) -> list[Way]:
    """The ways that need no compiler, the likeliest first."""
    if not work.pieces:
        return [Way("vmap")]
    if chunk is not None:
        return [Way("vmap") if chunk >= work.tasks else Way("chunk", chunk)]
    whole = [Way("vmap")] if work.most >= work.tasks else []
    sizes = sorted(
        {size for size in (work.most, *SIZES) if 1 < size <= work.most and size < work.tasks},
        reverse=True,
    )
    parts = [Way("chunk", size) for size in sizes] + [Way("loop")]
    if work.small or work.device.startswith("cuda"):
        return whole + parts
    likely = Way(
        "chunk", CHUNK
    )  # convolutions on a CPU: the activations of a few tasks stay in its caches
    return (
        [likely, *whole, *(way for way in parts if way != likely)]
        if likely in parts
        else whole + parts
    )


def _compiled(work: Work, best: Way | None, chunk: int | None) -> list[Way]:
    """The compiled ways that go with the best eager one; all there are where none is given."""
    if work.method.traits.alike and chunk is None:
        found = [Way("compiled_steps")] if work.most >= work.tasks else []
    elif work.device.startswith("cuda"):
        if work.most >= work.tasks and chunk is None:
            found = [Way("graph"), Way("compiled_graph")]
        else:
            found = [Way("compiled", chunk or work.most)]
    elif not work.pieces or work.small:
        whole = work.most >= work.tasks and chunk is None
        found = [
            *([Way("traced")] if whole else []),
            Way("compiled", None if whole else chunk or work.most),
        ]
    else:
        # A few tasks at once: measured fastest, as their activations stay in the caches.
        size = min(CHUNK, work.most)
        found = [
            Way(
                "compiled",
                chunk or even(work.tasks, size) or (size if work.most < work.tasks else None),
            )
        ]
    found = [
        way
        for way in dict.fromkeys(found)
        if work.compiling or way.executor not in (*COMPILED, "traced")
    ]
    return [way for way in found if why_not(way.executor, work.device, way.chunk) is None]


def even(tasks: int, size: int) -> int | None:
    """Tasks at once near `size`, at most twice as many, that divide `tasks`: one graph serves;
    None: all at once.
    """
    near = [number for number in range((size + 1) // 2, 2 * size + 1) if tasks % number == 0]
    best = min(near, key=lambda number: abs(number - size), default=size)
    return best if best < tasks else None


def _promises(work: Work, way: Way, choice: Choice) -> bool:
    """Whether preparing a way is expected to pay, or is too cheap beside the run to be missed."""
    eager, best = choice.eager(), choice.step_of(choice.best(work.steps))
    cost, gain = _prior(work, way, eager)
    return work.steps * (best - eager / gain) > cost or cost < INSURANCE * work.steps * best


def _may_load(work: Work, way: Way, choice: Choice) -> bool:
    """Whether a way that is not worth compiling may be worth loading, if the compiler's cache holds
    it.

    For small models loading took 1.6 and 2.1 s where an eager step took 3 and 8 ms, and steps were
    9 to 11 times as fast, those of `traced` 4 times; finding out takes a trace, which `traced`
    takes over where the cache does not hold it. Elsewhere loading took 3 s, and the trace is in
    vain then: no more than trials may take."""
    if way.executor not in COMPILED:
        return False
    eager, best = choice.eager(), choice.step_of(choice.best(work.steps))
    if work.small:
        loading = 0.75 if compiler_there() else 1.25
        return (
            work.steps * (eager / 4 - eager / 9)
            > loading + 100 * eager - _prior(work, Way("traced"), eager)[0]
        )
    saved = work.steps * (best - eager / _prior(work, way, eager)[1])
    return saved > 2 * LOADING and BUDGET * work.steps * best > LOADING / 2


def compiler_there() -> bool:
    """Whether this process has loaded the compiler itself, which takes longer than what it then
    loads.
    """
    return "torch._inductor.compile_fx" in sys.modules


def _hoped(work: Work, way: Way, choice: Choice) -> float:
    """Seconds of the whole run as the prior has them: the likeliest way is tried first, and may
    settle the matter.
    """
    cost, gain = _prior(work, way, choice.eager())
    return cost + work.steps * choice.eager() / gain


def _prior(work: Work, way: Way, step: float) -> tuple[float, float]:
    """(seconds that making a way may take, how many times faster than an eager `step` it may be),
    from measured runs.

    The time to trace and to compile grows with the number of operations; so does an eager step of a
    small model, which is all overhead, about 7 microseconds an operation. A machine that has never
    compiled builds its headers first."""
    if way.executor == "traced":
        return 0.1 + 150 * step, 2.0
    headers = 0.0 if any((COMPILER_CACHE / "precompiled_headers").glob("*")) else 8.0
    if way.executor == "graph":
        return 3.0 + 5 * step, 2.0
    if work.small or not work.pieces:
        return headers + 8.0 + 1000 * step, 8.0
    return headers + 45.0, 2.0


def _try_eager(work: Work, ways: list[Way], choice: Choice) -> None:
    began = time.perf_counter()
    for way in ways:
        if choice.seen:
            best = min(seen.step for seen in choice.seen.values())
            if work.small or time.perf_counter() - began + 2 * best > BUDGET * work.steps * best:
                continue  # small: the most tasks at once are fastest, as overhead is all there is
        _try(work, way, choice)


def _try(work: Work, way: Way, choice: Choice) -> None:
    """Time a way's first call and a few more; the state stays where it is, at the start."""
    best = min((seen.step for seen in choice.seen.values()), default=float("inf"))
    try:
        advance = work.advance(way)
        first = _timed(work, advance, 0)
        steps: list[float] = []
        while len(steps) < REPEATS and sum(steps) < LONG and min(steps, default=0.0) <= DROP * best:
            steps.append(_timed(work, advance, len(steps) + 1))
    except NotReady:
        return
    except (
        Exception
    ) as error:  # whatever a compiler or a device meets must not end a run that has another way
        choice.fail(way, error)
        return
    choice.seen[way] = Seen(first, sorted(steps)[len(steps) // 2])
    choice.ready[way] = advance


def _time_rivals_again(work: Work, choice: Choice) -> None:
    """Ways that are close are timed again in turns, so that what else the machine does hits them
    alike.
    """
    totals = {way: choice.total(way, work.steps) for way in choice.ready}
    rivals = [way for way, total in totals.items() if total <= CLOSE * min(totals.values())]
    if len(rivals) < 2:
        return
    times: dict[Way, list[float]] = {way: [] for way in rivals}
    allowed, began = (
        AGAIN * work.steps * min(choice.step_of(way) for way in rivals),
        time.perf_counter(),
    )
    for number in range(1, REPEATS + 1):
        if time.perf_counter() - began > allowed:
            break
        for way in rivals:
            try:
                times[way].append(_timed(work, choice.ready[way], number))
            except Exception as error:  # several ways are alive at once: memory may not hold them
                choice.fail(way, error)
                return
    for way, seconds in times.items():
        if len(seconds) > 2:
            choice.seen[way] = Seen(choice.seen[way].first, sorted(seconds)[len(seconds) // 2])


def _timed(work: Work, advance: Advance, number: int) -> float:
    begin = time.perf_counter()
    advance(work.state, number)
    if work.device.startswith("cuda"):
        torch.cuda.synchronize(work.device)
    return time.perf_counter() - begin


def _reason(work: Work, choice: Choice) -> str:
    way = choice.way
    shown = ", ".join(
        f"{other} {1000 * seen.step:.3g} ms"
        for other, seen in {**choice.known, **choice.seen}.items()
        if other != way
    )
    source = "tried" if way in choice.seen else "remembered from earlier runs"
    text = f"{source}: {1000 * choice.step_of(way):.3g} ms a step"
    text += f" against {shown}" if shown else ""
    if way.executor in COMPILED and way in choice.seen:
        text += f"; compiling took {choice.seen[way].first:.0f} s of a run of {work.steps} steps"
    met = {*choice.known, *choice.seen, *choice.failed}
    if way.executor not in COMPILED and any(
        other not in met for other in _compiled(work, way, None)
    ):
        text += f"; {work.steps} steps are too few to repay compiling"
    return text
