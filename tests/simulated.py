"""Synthetic comparisons whose true answer is known: scores, costs, and what older rules made of
them.

Accuracies are in points of 100: tasks differ by 5, a seed's score of a task by 9 around that, and
seeds by `seed_sd`, of which 1 is the median of the measured comparisons (RESULTS.md). S seeds, E
tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from metalearn.evaluate import targets
from metalearn.evaluate.breakeven import break_evens, total_difference
from metalearn.evaluate.comparable import MethodCosts
from metalearn.evaluate.random_effects import estimate, paired
from metalearn.evaluate.statistics.fieller import Stretch, difference
from metalearn.evaluate.statistics.holm import holm
from metalearn.evaluate.targets import Reached, share_interval

Array = NDArray[np.float64]
SEED_SDS = (0.0, 0.7, 1.3, 3.0, 7.0)
SEEDS = (3, 5, 10)
TASKS = 200
TASK_SD, RESIDUAL_SD = 5.0, 9.0
PROBIT = 0.09  # a point of accuracy in the units of the latent normal behind a solved task
TASK_PROBIT = 0.6


def scores(
    generator: np.random.Generator,
    seeds: int,
    seed_sd: float,
    mean: float = 0.0,
    tasks: int = TASKS,
) -> Array:
    """Accuracies, or a difference of two methods, around `mean`: [S, E]."""
    return np.asarray(
        mean
        + generator.normal(0, seed_sd, seeds)[:, None]
        + generator.normal(0, TASK_SD, TASKS)
        + generator.normal(0, RESIDUAL_SD, (seeds, TASKS))
    )


def family(generator: np.random.Generator, methods: int, seeds: int) -> list[Array]:
    """Equally good methods on the same tasks, each with its own seed deviation: [S, E] each."""
    common = generator.normal(0, 15, TASKS)
    spread = generator.gamma(2, 0.65, methods)  # median 1.1 points, now and then 4
    return [common + scores(generator, seeds, sd) for sd in spread]


def solved(
    generator: np.random.Generator, share: float, seeds: int, seed_sd: float, tasks: Array
) -> NDArray[np.bool_]:
    """Which tasks are solved, an expected `share` of new tasks by new seeds: [S, E]."""
    sd = PROBIT * seed_sd
    level = float(ndtri(share)) * math.sqrt(1 + TASK_PROBIT**2 + sd**2)
    shift = generator.normal(0, sd, seeds)[:, None]
    noise = generator.normal(0, 1, (seeds, len(tasks)))
    return np.asarray(level + shift + tasks + noise > 0)


def simulate_methods(
    generator: np.random.Generator,
    costs: tuple[tuple[float, float, float], ...],
    seeds: int,
    seed_sd: float,
    tasks: int = TASKS,
) -> list[MethodCosts]:
    """Methods "a", "b", ... with these (up-front cost, cost of a task, share solved).

    Up-front costs differ by 5 % between seeds."""
    common = generator.normal(0, TASK_PROBIT, tasks)
    made = []
    for label, (up, each, share) in zip("abcdef", costs):
        found = solved(generator, share, seeds, seed_sd, common)
        up_front = up * generator.normal(1, 0.05, seeds)
        spent = np.full(found.shape, each)
        made.append(MethodCosts(label, tuple(range(seeds)), up_front, Reached(found, spent)))
    return made


def crossing(costs: tuple[tuple[float, float, float], ...]) -> float:
    """The true number of tasks: (U_a - U_b) / (c_b - c_a), c being cost over share."""
    (up_a, a, share_a), (up_b, b, share_b) = costs
    saved = b / share_b - a / share_a
    return (up_a - up_b) / saved if saved > 0 else math.inf


# what was used before, planted here to be refused


def pigeonhole_bootstrap(values: Array, seed: int, resamples: int = 400) -> tuple[float, float]:
    """95 % interval of the mean by percentiles: seeds and tasks drawn with replacement."""
    generator = np.random.default_rng(seed)
    counts = [
        generator.multinomial(size, np.full(size, 1 / size), resamples) for size in values.shape
    ]
    means = np.einsum("rs,se,re->r", counts[0], values, counts[1]) / values.size
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def bootstrapped_crossing(
    a: MethodCosts, b: MethodCosts, seed: int, resamples: int = 400
) -> tuple[float, float]:
    """95 % interval of the number of tasks, by the same resampling; infinite: never."""
    generator = np.random.default_rng(seed)
    tasks = a.found.cost.shape[1]  # type: ignore[union-attr]
    of_tasks = generator.multinomial(tasks, np.full(tasks, 1 / tasks), resamples)
    sides = []
    for account in (a, b):
        count = len(account.seeds)
        of_seeds = generator.multinomial(count, np.full(count, 1 / count), resamples)
        spent, right = (
            np.einsum("rs,se,re->r", of_seeds, part.astype(float), of_tasks)
            for part in (account.found.cost, account.found.solved)  # type: ignore[union-attr]
        )
        sides.append((of_seeds @ account.up_front / count, spent / right))
    more, saved = sides[0][0] - sides[1][0], sides[1][1] - sides[0][1]
    found = np.where(saved > 0, more / np.where(saved > 0, saved, 1), np.inf)
    low, high = np.percentile(found, (2.5, 97.5), method="inverted_cdf")
    return float(low), float(high)


# how often a rule is right


class Means(NamedTuple):
    """A rule for the mean of a table [S, E], over many simulated ones."""

    coverage: float  # share of intervals that hold the truth
    excludes: float  # share of intervals without 0: false where the truth is 0, else power


class Crossings(NamedTuple):
    """A rule for the number of tasks, over many simulated pairs of methods."""

    coverage: float
    verdicts: dict[str, float]  # share of each


def two_way(values: Array, number: int) -> tuple[float, float]:
    found = estimate(values).ci95
    assert found is not None
    return found


def study_means(
    seeds: int,
    seed_sd: float,
    repeats: int,
    rule: Callable[[Array, int], tuple[float, float]] = two_way,
    mean: float = 0.0,
) -> Means:
    """Coverage of `rule` for a mean over seeds and tasks."""
    generator = np.random.default_rng([1, seeds, round(10 * seed_sd)])
    ends = np.asarray(
        [rule(scores(generator, seeds, seed_sd, mean), number) for number in range(repeats)]
    )
    inside = (ends[:, 0] <= mean) & (mean <= ends[:, 1])
    return Means(float(inside.mean()), float(((ends[:, 0] > 0) | (ends[:, 1] < 0)).mean()))


def study_crossings(
    costs: tuple[tuple[float, float, float], ...],
    seeds: int,
    seed_sd: float,
    repeats: int,
    rule: Callable[[MethodCosts, MethodCosts, int], tuple[float, float]] | None = None,
) -> Crossings:
    """Coverage and verdicts of `break_evens`, or of an older rule, which pays where its interval
    is narrower than a factor of 10."""
    generator = np.random.default_rng([2, seeds, round(10 * seed_sd)])
    truth, covered = crossing(costs), 0
    verdicts: Counter[str] = Counter()
    for number in range(repeats):
        pair = simulate_methods(generator, costs, seeds, seed_sd)
        if rule is None:
            found = break_evens(pair)[0]
            ends, verdict = found.ci95 or (1.0, math.inf), str(found.verdict)
        else:
            ends = rule(pair[0], pair[1], number)
            verdict = "pays" if ends[1] <= 10 * ends[0] else "undecided"
        covered += ends[0] <= truth <= ends[1]
        verdicts[verdict] += 1
    return Crossings(covered / repeats, {name: n / repeats for name, n in verdicts.items()})


def timed(
    generator: np.random.Generator, method: MethodCosts, variation: float, rounds: int
) -> MethodCosts:
    """The method with seconds: medians of rounds that differ by `variation`, and their variance."""
    found = method.found
    assert found is not None
    seconds = generator.lognormal(0, variation, rounds)
    middle = float(np.median(seconds))
    variance = math.pi / (2 * rounds) * float(seconds.var(ddof=1)) / middle**2
    cost = Reached(found.solved, found.cost * middle)
    return method._replace(found=cost, timing=((variance, rounds - 1.0),))


def study_timing(
    costs: tuple[tuple[float, float, float], ...],
    variation: float,
    repeats: int,
    *,
    seeds: int = 5,
    rounds: int = 5,
    with_variance: bool = True,
) -> Crossings:
    """Coverage and verdicts in seconds that were timed in rounds; before, without their variance.

    Up-front costs and costs of a task do not differ between seeds."""
    generator = np.random.default_rng([6, seeds, round(1000 * variation)])
    truth, covered = crossing(costs), 0
    verdicts: Counter[str] = Counter()
    for _ in range(repeats):
        pair = [
            timed(generator, method._replace(up_front=np.full(seeds, up)), variation, rounds)
            for method, (up, _, _) in zip(simulate_methods(generator, costs, seeds, 1.0), costs)
        ]
        if not with_variance:
            pair = [method._replace(timing=()) for method in pair]
        found = break_evens(pair)[0]
        ends = found.ci95 or (1.0, math.inf)
        covered += ends[0] <= truth <= ends[1]
        verdicts[str(found.verdict)] += 1
    return Crossings(covered / repeats, {name: n / repeats for name, n in verdicts.items()})


def study_hard_tasks(share: float, tasks: int, ratio: float, repeats: int) -> dict[str, float]:
    """How often each verdict is found where every one of 3 seeds fails on the same tasks.

    Method a solves an expected `share` of the tasks, at 1,000 in advance and 1 per task; b solves
    all, and a task costs `ratio` times as much as one that a solves: a never pays if that is below
    1."""
    generator = np.random.default_rng([6, tasks, round(1000 * share), round(1000 * ratio)])
    verdicts: Counter[str] = Counter()
    seeds, ones = (0, 1, 2), np.ones((3, tasks))
    b = MethodCosts("b", seeds, np.zeros(3), Reached(ones > 0, ones * ratio / share))
    for _ in range(repeats):
        found = np.tile(generator.random(tasks) < share, (3, 1))
        a = MethodCosts("a", seeds, np.full(3, 1000.0), Reached(found, ones))
        verdicts[break_evens([a, b])[0].verdict] += 1
    return {name: count / repeats for name, count in verdicts.items()}


def study_no_start(
    share: float, seeds: int, seed_sd: float, repeats: int, ratio: float = 1.0
) -> dict[str, float]:
    """How often each verdict is found without costs in advance, the second method's cost of a
    task being `ratio` times that of the first: "always" is false if both are equal."""
    generator = np.random.default_rng([7, seeds, round(10 * seed_sd), round(1000 * share)])
    costs = ((0.0, 1.0, share), (0.0, ratio, share))
    found = [
        break_evens(simulate_methods(generator, costs, seeds, seed_sd))[0].verdict
        for _ in range(repeats)
    ]
    return {str(name): count / repeats for name, count in Counter(found).items()}


class Shares(NamedTuple):
    """Coverage of the intervals that a break-even count is made of, over many simulated pairs."""

    share: float  # of the solved tasks of the first method
    symmetric: float  # the same by the interval of a mean, which was used before
    gap: float  # of both shares
    number: float
    symmetric_number: float  # the same without the stretch of both limits


def study_shares(
    costs: tuple[tuple[float, float, float], ...], seeds: int, seed_sd: float, repeats: int
) -> Shares:
    """Coverage of the interval of a share, of a gap of two, and of the count at its true value."""
    generator = np.random.default_rng([4, seeds, round(10 * seed_sd)])
    share, other, n = costs[0][2], costs[1][2], crossing(costs)
    inside = np.zeros(5)
    for _ in range(repeats):
        a, b = simulate_methods(generator, costs, seeds, seed_sd)
        solved = [method.found.solved.astype(float) for method in (a, b)]  # type: ignore[union-attr]
        _, low, high = share_interval(a.found.solved)  # type: ignore[union-attr]
        ends = estimate(solved[0]).ci95
        assert ends is not None
        shares = (targets.shares_of_solved(method.found.solved) for method in (a, b))  # type: ignore[union-attr]
        line = difference(*shares, paired=False)
        _, least, most, _ = line.at([math.inf]).one()
        with mock.patch.object(targets, "_widen", lambda *distances: (Stretch(), ())):
            older = total_difference(a, b, paired=False).at([n]).holds_zero[0]
        count = total_difference(a, b, paired=False).at([n]).holds_zero[0]
        whole = ends[0] <= share <= ends[1]
        inside += (low <= share <= high, whole, least <= share - other <= most, count, older)
    return Shares(*(float(value) for value in inside / repeats))


def study_varying_cost(
    share: float, seed_sd: float, repeats: int, count: int = 3
) -> tuple[float, float]:
    """How often the true cost of a solved task is (below, above) its interval.

    `count` seeds whose costs differ by 10 %, 100 tasks."""
    generator = np.random.default_rng([5, round(1000 * share), round(10 * seed_sd)])
    seeds, tasks = tuple(range(count)), 100
    free = Reached(np.ones((count, tasks), bool), np.zeros((count, tasks)))
    missed = np.zeros(2)
    for _ in range(repeats):
        found = solved(generator, share, count, seed_sd, generator.normal(0, TASK_PROBIT, tasks))
        cost = generator.normal(1, 0.1, count)[:, None] * np.ones(tasks)
        a = MethodCosts("a", seeds, np.zeros(count), Reached(found, cost))
        b = MethodCosts("b", seeds, np.zeros(count), free)
        _, low, high, _ = total_difference(a, b, paired=False).at([math.inf]).one()
        missed += (1 / share < low, 1 / share > high)
    return float(missed[0] / repeats), float(missed[1] / repeats)


CONTRASTS = (*((0, other) for other in range(1, 6)), (6, 7), (8, 9), (10, 11), (12, 13), (14, 15))


def study_family(seeds: int, repeats: int, gain: float = 0.0) -> tuple[float, float]:
    """24 equally good methods, of which number 0 is better by `gain` points: (how often a contrast
    without a difference is called one, how often contrast 0 is), Holm at 5 %."""
    generator = np.random.default_rng([3, seeds])
    false = true = 0
    for _ in range(repeats):
        methods = family(generator, 24, seeds)
        methods[0] = methods[0] + gain
        adjusted = holm([paired(methods[a], methods[b]).p for a, b in CONTRASTS])
        found = [p is not None and p <= 0.05 for p in adjusted]
        false += any(one for one, (a, _) in zip(found, CONTRASTS) if a or not gain)
        true += found[0]
    return false / repeats, true / repeats


def family_by_bootstrap(seeds: int, repeats: int) -> float:
    """Share of comparisons of 24 equal methods in which the older rule calls a contrast better."""
    generator = np.random.default_rng([3, seeds])
    false = 0
    for number in range(repeats):
        methods = family(generator, 24, seeds)
        ends = [pigeonhole_bootstrap(methods[a] - methods[b], number) for a, b in CONTRASTS]
        false += any(low > 0 or high < 0 for low, high in ends)
    return false / repeats
