"""Results of a race on a table: regret, theory, paired differences, ranks of picks, noise.

Letters of this file: S seeds, U landscapes (1 of the truth, else the tasks), P numbers of
evaluations, G networks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metalearn.evaluate import stats
from metalearn.evaluate.selection import kendall
from metalearn.nas.searchers.search import SLACK, Score, Searcher, Trial, choose, run_search
from metalearn.nas.spaces.space import Genotype, Space
from metalearn.nas.tabular import Table, expected_pick
from metalearn.rng import fold_in

Array = NDArray[Any]
Json = dict[str, Any]
TOLERANCE = 0.01  # of the regret of a random network
ERRORS = 4.0  # standard errors between a simulated and an exact mean
RULE = (
    "worse: the 95 % t interval over seeds of the paired difference of regret lies above 0, and "
    f"the difference above {100 * TOLERANCE:g} % of the regret of a network drawn at random; "
    "better: the interval lies below 0; not worse: otherwise, and the interval's upper end says "
    "how much worse at most"
)


class Landscape(NamedTuple):
    """Scores of all networks after a fraction of the full training, and the value of each pick."""

    scores: Callable[[float], Array]  # fraction -> [G], higher is better
    worth: Array  # [G], higher is better

    @property
    def regret(self) -> Array:
        """[G]."""
        return np.asarray(self.worth.max() - self.worth)

    @property
    def rank(self) -> Array:
        """[G]; 1 is the best, and equals share the better rank."""
        return np.asarray((self.worth > self.worth[:, None]).sum(1) + 1)


def landscapes(table: Table) -> dict[str, list[Landscape]]:
    """Return one landscape for `truth`, one per task for `scores`.

    truth: the mean query value of all tasks, after the same fraction of the training; scores: those
    of each task."""
    by_truth = replace(table, rows=table.rows._replace(score=table.quality().mean(2)))
    return {
        "truth": [_landscape(by_truth, None)],
        "scores": [_landscape(table, task) for task in range(table.header["tasks"])],
    }


def _landscape(table: Table, task: int | None) -> Landscape:
    @functools.cache
    def scores(share: float) -> Array:
        return np.asarray(table.scores(task, share)[0], np.float64)

    return Landscape(scores, np.asarray(table.values(task), np.float64))


def row_numbers(table: Table) -> dict[Genotype, int]:
    """Return the row of every representative."""
    return {tuple(map(int, genotype)): row for row, genotype in enumerate(table.genotypes)}


# searches on the table


def counts(budget: int) -> list[int]:
    """Return 1, 2, 4, ... and the budget."""
    return sorted({*(2**power for power in range(budget.bit_length())), budget})


def raced(
    table: Table,
    space: Space,
    searcher: Searcher,
    lands: Sequence[Landscape],
    seeds: int,
    evaluations: Sequence[int],
) -> Array:
    """Return rows of the picks, [S, U, P]: by seed, landscape and number of evaluations."""
    rows, budget = row_numbers(table), evaluations[-1]
    picks = np.zeros((seeds, len(lands), len(evaluations)), np.int64)
    for seed in range(seeds):
        for number, land in enumerate(lands):
            score = lookup(rows, land)
            trials = run_search(
                searcher(fold_in(seed, "race", number), budget, None), score, budget
            )
            picks[seed, number] = [
                rows[genotype] for genotype in incumbents(space, trials, evaluations)
            ]
    return picks


def lookup(rows: dict[Genotype, int], land: Landscape) -> Callable[[Genotype, float], Score]:
    """Return the scores of a landscape as a function of (genotype, fraction)."""
    return lambda genotype, fraction: Score(float(land.scores(fraction)[rows[genotype]]))


def incumbents(space: Space, trials: Sequence[Trial], evaluations: Sequence[int]) -> list[Genotype]:
    """Return the pick after each number of full trainings: the best of the most trained so far."""
    cost = np.cumsum([trial.share for trial in trials])
    affordable = [int((cost <= count + SLACK).sum()) for count in evaluations]
    return [choose(space, trials[:number], 0.0).genotype for number in affordable]


def regrets(picks: Array, lands: Sequence[Landscape]) -> Array:
    """Rows [S, U, P] -> regret [S, P], the mean over landscapes."""
    return np.asarray(
        np.mean([land.regret[picks[:, number]] for number, land in enumerate(lands)], axis=0)
    )


def curve(picks: Array, lands: Sequence[Landscape], evaluations: Sequence[int]) -> Json:
    """Regret and rank by evaluations: means over seeds and landscapes, t intervals over seeds."""
    regret = regrets(picks, lands)
    return {
        "evaluations": list(evaluations),
        "regret": regret.mean(0).tolist(),
        "ci95": [stats.seeds_ci95(column.tolist()) for column in regret.T],
        "rank": np.mean(
            [land.rank[picks[:, number]] for number, land in enumerate(lands)], axis=(0, 1)
        ).tolist(),
        "at_budget": regret[:, -1].tolist(),
    }


def chance(lands: Sequence[Landscape]) -> float:
    """Return the regret of a random network, the mean over landscapes."""
    return float(np.mean([land.regret.mean() for land in lands]))


def theory(picks: Array, lands: Sequence[Landscape], evaluations: Sequence[int]) -> Json:
    """Return the exact regret of random search, and whether its simulation agrees.

    It agrees if the simulated mean is within 4 exact standard errors at every n."""
    # [U, P, 2]
    moments = np.array([[expectation(land, count) for count in evaluations] for land in lands])
    exact = moments[..., 0].mean(0)
    error = np.sqrt(moments[..., 1].sum(0) / len(picks)) / len(lands)
    off = np.abs(regrets(picks, lands).mean(0) - exact)
    agrees = bool((off <= ERRORS * error + 1e-9 * chance(lands)).all())
    return {"exact": exact.tolist(), "standard_error": error.tolist(), "agrees": agrees}


def expectation(land: Landscape, draws: int) -> tuple[float, float]:
    """Return mean and variance of random search's regret."""
    scores = land.scores(1.0)
    first, second = (expected_pick(scores, power, draws) for power in (land.regret, land.regret**2))
    return first, max(0.0, second - first**2)


def paired(
    searcher: Sequence[float], random: Sequence[float], exact: float, chance_regret: float
) -> Json:
    """Compare a searcher's regret with random search's by seed, with the verdict by RULE.

    Also with the exact expectation of random search."""
    gap = np.asarray(searcher) - np.asarray(random)
    difference, half = float(gap.mean()), stats.seeds_ci95(gap.tolist())
    lower, upper = (difference - (half or 0.0), difference + (half or 0.0))
    tolerance = TOLERANCE * chance_regret
    verdict = (
        "better" if upper < 0 else "worse" if lower > 0 and difference > tolerance else "not worse"
    )
    return {
        "regret": float(np.mean(searcher)),
        "random": float(np.mean(random)),
        "difference": difference,
        "ci95": [lower, upper],
        "tolerance": tolerance,
        "verdict": verdict,
        "over_exact": float(np.mean(searcher)) - exact,
        "over_exact_ci95": stats.seeds_ci95([float(regret) for regret in searcher]),
    }


# picks of searchers that train


def placed(genotypes: Sequence[Genotype], table: Table, budget: int) -> Json:
    """Return the rank of every task's pick among all networks.

    By that task's truth, and by all tasks' mean truth."""
    rows, fields = row_numbers(table), landscapes(table)
    lands, (shared,) = fields["scores"], fields["truth"]
    picks = [rows[genotype] for genotype in genotypes]
    own_ranks = [_ranked(land, row) for land, row in zip(lands, picks)]
    among = [_ranked(shared, row) for row in picks]
    regret = np.array([pick["regret"] for pick in own_ranks])
    below = regret - np.array([chance([land]) for land in lands])
    return {
        "networks": len(rows),
        "different": len(set(picks)),
        **_means(own_ranks),
        "ci95": stats.seeds_ci95(regret.tolist()),
        "chance": chance(lands),
        "over_chance": float(below.mean()),
        "over_chance_ci95": stats.seeds_ci95(below.tolist()),
        "random_at_budget": float(np.mean([expectation(land, budget)[0] for land in lands])),
        "shared": {**_means(among), "chance": chance([shared])},
        "tasks": [
            {"task": task, "genotype": list(genotype), **own, "shared": all_tasks}
            for task, (genotype, own, all_tasks) in enumerate(zip(genotypes, own_ranks, among))
        ],
    }


def _ranked(land: Landscape, row: int) -> Json:
    """Return rank, percentile and regret of a network.

    percentile: the other networks with a lower value, in percent."""
    beaten = int((land.worth < land.worth[row]).sum())
    rivals = max(1, len(land.worth) - 1)
    return {
        "rank": int(land.rank[row]),
        "percentile": 100 * beaten / rivals,
        "regret": float(land.regret[row]),
    }


def _means(ranks: Sequence[Json]) -> Json:
    return {
        name: float(np.mean([rank[name] for rank in ranks]))
        for name in ("rank", "percentile", "regret")
    }


# noise of the table


def noise(table: Table) -> Json:
    """Return Kendall's tau of score and truth, and its ceiling; None for one seed or one order.

    tau: with the mean truth of all seeds. one_seed: with the truth of one training, which is what
    the ceiling is made of, the tau between the truths of two trainings. between_tasks: the truths
    of two tasks."""
    worth, score = table.quality()[..., -1], table.rows.score[..., -1]  # [G, T, R], [G, T]
    tasks, seeds = range(worth.shape[1]), range(worth.shape[2])
    truth = worth.mean(2)
    taus: dict[str, list[list[float]]] = {
        "tau": [[kendall(score[:, task], truth[:, task])] for task in tasks],
        "one_seed": [
            [kendall(score[:, task], worth[:, task, seed]) for seed in seeds] for task in tasks
        ],
        "ceiling": [
            [
                kendall(worth[:, task, first], worth[:, task, second])
                for first, second in combinations(seeds, 2)
            ]
            for task in tasks
        ],
        "between_tasks": [
            [kendall(truth[:, first], truth[:, second])] for first, second in combinations(tasks, 2)
        ],
    }
    means: Json = {name: _mean(np.asarray(values, np.float64)) for name, values in taus.items()}
    alone = np.asarray(taus["tau"], np.float64)[:, 0]
    lands = landscapes(table)["scores"]
    return means | {
        "tau_ci95": stats.seeds_ci95(alone.tolist()),
        "regret_of_best_score": float(
            np.mean([expectation(land, len(score))[0] for land in lands])
        ),
    }


def _mean(values: Array) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
