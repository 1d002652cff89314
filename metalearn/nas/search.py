"""How a searcher and whoever trains its candidates talk: the searcher asks by yielding, and is told
by `send`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from metalearn.nas.fit import Folds
from metalearn.nas.space import Genotype, Space
from metalearn.types import Key, Ledger

SLACK = 1e-9  # of a budget, for shares that do not add up exactly


class Ask(NamedTuple):
    """Candidates to be scored together, each trained for a share of the full training."""

    genotypes: tuple[Genotype, ...]
    share: float = 1.0


class Score(NamedTuple):
    """What a candidate's own labelled examples say of it: higher is better; minus infinity where it
    diverged.
    """

    value: float  # minus the mean loss
    error: float = 0.0  # standard error of that mean, over folds or repeats


class Trial(NamedTuple):
    """One scored candidate."""

    genotype: Genotype
    share: float
    score: Score


class Data(NamedTuple):
    """What a searcher that trains networks itself may see of a task: no query, neither inputs nor
    labels.
    """

    folds: Folds  # leading L
    book: Ledger


Search = Generator[Ask, Sequence[float], None]  # is sent the values of what it asked, in that order
Searcher = Callable[[Key, int, Data | None], Search]  # (key, budget in full trainings, data)
Judge = Callable[
    [Sequence[tuple[int, Genotype, float]]], Sequence[Score]
]  # (task, genotype, share) -> scores


def lockstep(searches: Sequence[Search], judge: Judge, budget: int) -> list[list[Trial]]:
    """Run searches side by side, one for each task, and score together what they ask together:
    trials of each.

    What a search asks again is answered from memory and costs nothing. RuntimeError where one asks
    for more than `budget` full trainings.
    """
    trials: list[list[Trial]] = [[] for _ in searches]
    known: dict[tuple[int, Genotype, float], Score] = {}
    asks = [next(search, None) for search in searches]
    while any(ask is not None for ask in asks):
        jobs = [
            (task, genotype, ask.share)
            for task, ask in enumerate(asks)
            if ask is not None
            for genotype in ask.genotypes
        ]
        new = [job for job in dict.fromkeys(jobs) if job not in known]
        for job, score in zip(new, judge(new) if new else (), strict=True):
            known[job] = score
            trials[job[0]].append(Trial(job[1], job[2], score))
        for task, ask in enumerate(asks):
            if ask is None:
                continue
            spent = sum(trial.share for trial in trials[task])
            if spent > budget + SLACK:
                raise RuntimeError(
                    f"a searcher asked for {spent:g} full trainings, and its budget is {budget}"
                )
            values = [known[task, genotype, ask.share].value for genotype in ask.genotypes]
            asks[task] = _tell(searches[task], values)
    return trials


def drive(search: Search, score: Callable[[Genotype, float], Score], budget: int) -> list[Trial]:
    """Run one search against a function of (genotype, share)."""
    return lockstep(
        [search], lambda jobs: [score(genotype, share) for _, genotype, share in jobs], budget
    )[0]


def choose(space: Space, trials: Sequence[Trial], standard_errors: float) -> Trial:
    """The cheapest fully trained candidate within `standard_errors` of the best (Breiman et al.
    1984, section 3.4.3).

    Cheaper means fewer FLOPs, then fewer parameters, then asked for earlier; 0 standard errors: the
    best. Where none was trained fully the most trained ones count.
    """
    most = max(trial.share for trial in trials)
    full = [trial for trial in trials if trial.share == most]
    best = max(full, key=lambda trial: trial.score.value)
    least = (
        best.score.value - standard_errors * best.score.error
        if standard_errors
        else best.score.value
    )
    near = [trial for trial in full if trial.score.value >= least]
    if not standard_errors:
        return near[0]
    return min(
        near,
        key=lambda trial: (space.cost(trial.genotype).flops, space.cost(trial.genotype).params),
    )


def need_data(name: str, data: Data | None) -> Data:
    """The data of a search that trains networks itself; ValueError where a table is searched."""
    if data is None:
        raise ValueError(
            f"{name} trains networks itself and needs data: a table of scores is not enough for it"
        )
    return data


def _tell(search: Search, values: Sequence[float]) -> Ask | None:
    try:
        return search.send(values)
    except StopIteration:
        return None
