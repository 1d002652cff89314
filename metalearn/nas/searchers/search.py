"""The protocol between a searcher, which asks by `yield`, and the evaluator of its candidates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import ClassVar, NamedTuple

from metalearn.component import Component
from metalearn.nas.fit import Folds
from metalearn.nas.spaces.space import Genotype, Space
from metalearn.types import Key, Ledger

SLACK = 1e-9  # of a budget, for fractions that do not add up exactly


class Ask(NamedTuple):
    """Candidates to be scored together, each trained for a fraction of the full training."""

    genotypes: tuple[Genotype, ...]
    share: float = 1.0


class Score(NamedTuple):
    """A candidate's score on labelled examples: higher is better, minus infinity if it diverged."""

    value: float  # minus the mean loss
    error: float = 0.0  # standard error of that mean, over folds or repeats


class Trial(NamedTuple):
    """One scored candidate."""

    genotype: Genotype
    share: float
    score: Score


class Data(NamedTuple):
    """Data for a searcher that trains networks itself; holds no query inputs or labels."""

    folds: Folds  # leading L
    ledger: Ledger


Search = Generator[Ask, Sequence[float], None]  # receives the values of each Ask, in its order
Searcher = Callable[[Key, int, Data | None], Search]  # (key, budget in full trainings, data)
Request = tuple[int, Genotype, float]  # task, genotype, fraction of the full training
Evaluator = Callable[[Sequence[Request]], Sequence[Score]]


class SearcherComponent(Component):
    """The options of a searcher."""

    is_control: ClassVar[bool] = False  # what every other searcher has to beat
    name: str

    @property
    def uses_data(self) -> bool:
        """Return whether the searcher trains or measures networks itself, on its data."""
        return False

    @abstractmethod
    def build(self, space: Space) -> Searcher:
        """Return the searcher of a space."""


def run_searches(searches: Sequence[Search], evaluate: Evaluator, budget: int) -> list[list[Trial]]:
    """Run one search per task in lockstep, score their candidates together, and return the trials.

    The scores of repeated candidates are cached, at no cost. Raises RuntimeError if a search asks
    for more than `budget` full trainings."""
    trials: list[list[Trial]] = [[] for _ in searches]
    scores: dict[Request, Score] = {}
    asks = [next(search, None) for search in searches]
    while any(ask is not None for ask in asks):
        jobs = [
            (task, genotype, ask.share)
            for task, ask in enumerate(asks)
            if ask is not None
            for genotype in ask.genotypes
        ]
        new = [job for job in dict.fromkeys(jobs) if job not in scores]
        for job, score in zip(new, evaluate(new) if new else (), strict=True):
            scores[job] = score
            trials[job[0]].append(Trial(job[1], job[2], score))
        for task, ask in enumerate(asks):
            if ask is None:
                continue
            spent = sum(trial.share for trial in trials[task])
            if spent > budget + SLACK:
                text = (
                    f"a search algorithm used {spent:g} full training runs of a budget of {budget}"
                )
                raise RuntimeError(text)
            values = [scores[task, genotype, ask.share].value for genotype in ask.genotypes]
            asks[task] = _send(searches[task], values)
    return trials


def _send(search: Search, values: Sequence[float]) -> Ask | None:
    try:
        return search.send(values)
    except StopIteration:
        return None


def run_search(
    search: Search, score: Callable[[Genotype, float], Score], budget: int
) -> list[Trial]:
    """Run one search against a function of (genotype, share)."""

    def evaluate(jobs: Sequence[Request]) -> list[Score]:
        return [score(genotype, share) for _, genotype, share in jobs]

    return run_searches([search], evaluate, budget)[0]


def choose(space: Space, trials: Sequence[Trial], standard_errors: float) -> Trial:
    """Return the cheapest of the best candidates, by the one-standard-error rule.

    That is the cheapest fully trained candidate within `standard_errors` of the best (Breiman et
    al. 1984, section 3.4.3): fewer FLOPs, then fewer parameters, then asked for earlier. With 0
    standard errors it is the best. If none was trained fully, the most trained ones count."""
    most = max(trial.share for trial in trials)
    full = [trial for trial in trials if trial.share == most]
    best = max(full, key=lambda trial: trial.score.value)
    if not standard_errors:
        return best
    least = best.score.value - standard_errors * best.score.error

    def cost(trial: Trial) -> tuple[int, int]:
        network = space.cost(trial.genotype)
        return network.flops, network.params

    return min((trial for trial in full if trial.score.value >= least), key=cost)


def require_data(name: str, data: Data | None) -> Data:
    """Return the data of a search that trains networks; ValueError if a table is searched."""
    if data is None:
        raise ValueError(
            f"{name} trains networks itself and needs data: a table of scores is not enough for it"
        )
    return data
