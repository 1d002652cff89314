"""Targets, break-even and selection against answers that are known beforehand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from metalearn.evaluate import accounts, targets
from metalearn.evaluate.breakeven import Account, BreakEven, at_common_levels, break_evens, crossing
from metalearn.evaluate.ledger import PHASES, MissingPhase
from metalearn.evaluate.pareto import front
from metalearn.evaluate.selection import kendall, noise, spearman
from metalearn.evaluate.stats import band
from metalearn.evaluate.targets import (
    Reached,
    Share,
    cost_per_solved,
    first_reached,
    kaplan_meier,
    reach,
)

# targets


def test_a_target_is_reached_where_it_is_kept() -> None:
    scores = np.array(
        [[0.2, 0.9, 0.9], [0.9, 0.5, 0.95], [0.9, 0.9, 0.5], [0.91, 0.9, 0.9], [0.2, np.nan, 0.9]]
    )
    assert first_reached(scores, 0.9, higher=True).tolist() == [
        1,
        2,
        3,
        0,
        2,
    ]  # 3: not on this curve
    assert first_reached([[3.0, 0.4, math.inf]], 0.5, higher=False).tolist() == [3]
    assert first_reached([[3.0, 0.4, 0.5]], 0.5, higher=False).tolist() == [1]


def test_the_failed_tasks_are_paid_by_those_that_did_it() -> None:
    """Two of three tasks solved, at 10 and at 40; the third cost all 100: 150 for two."""
    scores = [[0.1, 0.9, 0.9, 0.9], [0.1, 0.1, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]]
    found = reach(scores, [0, 10, 40, 100], 0.9, higher=True)
    assert found.solved.tolist() == [True, True, False] and found.cost.tolist() == [10, 40, 100]
    assert cost_per_solved(found) == 75
    assert cost_per_solved(Reached(np.zeros(3, bool), np.ones(3))) is None


def test_kaplan_meier_is_the_published_example() -> None:
    """Remission times of 21 patients under 6-MP (Freireich et al. 1963, as in every textbook): S(6)
    = 0.857, ...
    """
    weeks = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
    ended = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    curve = kaplan_meier(Reached(np.array(ended, bool), np.array(weeks, float)))
    known = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    for week, alive in known.items():
        assert 1 - targets.share_at(curve, week) == pytest.approx(alive, abs=5e-4)
    assert targets.share_at(curve, 5.9) == 0 and targets.median_cost(curve) == 23
    assert curve.cost[-1] == 35 and curve.share[-1] == curve.share[-2]


def test_with_one_cap_it_is_the_share_of_all_tasks() -> None:
    found = Reached(np.array([[True, False], [True, True]]), np.array([[2.0, 9.0], [2.0, 5.0]]))
    curve = kaplan_meier(found)
    assert curve.cost.tolist() == [0, 2, 5, 9] and curve.share.tolist() == [0, 0.5, 0.75, 0.75]
    assert targets.restricted_mean(curve, 9) == pytest.approx((2 + 9 + 2 + 5) / 4)
    assert targets.median_cost(Share(np.array([0.0, 3]), np.array([0.0, 0.49]))) is None
    nobody = kaplan_meier(Reached(np.zeros(2, bool), np.full(2, 7.0)))
    assert nobody.share.tolist() == [0, 0] and targets.share_at(nobody, 100) == 0


def test_the_target_is_nine_tenths_of_the_best_on_validation() -> None:
    assert targets.from_validation(0.95, higher=True) == pytest.approx(0.855)
    assert targets.from_validation(0.45, higher=False) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="finite"):
        targets.from_validation(math.nan, higher=True)


# break-even


def account(
    label: str, up: float, each: float, share: float = 1.0, seeds: int = 3, **how: Any
) -> Account:
    """E tasks of which a share is solved, all costing the same; `spread`: seeds differ in cost by
    this factor.
    """
    tasks, spread = int(how.get("tasks", 200)), float(how.get("spread", 1.0))
    solved = np.tile(np.arange(tasks) < round(share * tasks), (seeds, 1))
    factors = np.geomspace(1 / spread, spread, seeds)[:, None] if seeds > 1 else np.ones((1, 1))
    cost = np.full((seeds, tasks), each * share) * factors  # all cost over the solved: `each`
    return Account(label, tuple(range(seeds)), np.full(seeds, up), Reached(solved, cost))


def one(*pair: Account) -> BreakEven:
    (found,) = break_evens(pair)
    return found


def test_pays_from_the_crossing_on() -> None:
    """1,000 beforehand and 2 a task against 0 and 12: equal at 100 tasks."""
    found = one(account("scratch", 0, 12), account("maml", 1000, 2))
    assert (found.a, found.b, found.verdict, found.tasks) == ("maml", "scratch", "pays", 100)
    assert found.ci95 == pytest.approx((100, 100)) and found.leave_one_out == (
        (0, 100),
        (1, 100),
        (2, 100),
    )


def test_always_and_never() -> None:
    assert one(account("a", 0, 1), account("b", 0, 5))[:4] == ("a", "b", "always", 1)
    assert one(account("a", 3, 1), account("b", 0, 5))[:4] == (
        "a",
        "b",
        "always",
        1,
    )  # repaid by the first task
    found = one(account("a", 0, 1), account("b", 10, 5))
    assert found[:4] == ("b", "a", "never", None) and found.ci95 == (math.inf, math.inf)
    assert one(account("a", 0, 1), account("b", 10, 1)).verdict == "never"


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (0.49, 0.49, "not_reached"),
        (0.5, 0.5, "pays"),
        (0.9, 0.79, "not_reached"),
        (0.9, 0.805, "pays"),
    ],
)
def test_no_crossing_between_different_accuracies(a: float, b: float, verdict: str) -> None:
    found = one(account("maml", 1000, 2, a), account("scratch", 0, 12, b))
    assert found.verdict == verdict
    assert (found.tasks is None) == (verdict == "not_reached")


def test_a_cheap_method_that_never_gets_there_does_not_win() -> None:
    cheap, good = account("cheap", 0, 1, 0.02), account("good", 1e6, 50)
    assert one(cheap, good).verdict == "not_reached" and "cheap 2%" in one(cheap, good).why


def test_each_pair_is_held_to_the_hardest_level_that_both_reach() -> None:
    """At 0.9 only `good` gets there; at 0.5 `fair` does too, and pays; `poor` reaches nothing that
    others reach.
    """
    shares = {0.9: (1.0, 0.2, 0.0), 0.5: (1.0, 0.95, 0.1), 0.3: (1.0, 1.0, 0.4)}
    asked: list[float] = []

    def at(level: float) -> list[Account]:
        asked.append(level)
        good, fair, poor = shares[level]
        return [
            account("good", 1000, 2, good),
            account("fair", 0, 12, fair),
            account("poor", 0, 1, poor),
        ]

    found = at_common_levels((0.9, 0.5, 0.3), at)
    verdicts = [(level, {one.a, one.b}, one.verdict) for level, one in found]
    assert verdicts == [
        (0.5, {"good", "fair"}, "pays"),
        (None, {"good", "poor"}, "not_reached"),
        (None, {"fair", "poor"}, "not_reached"),
    ]
    assert found[0][1].tasks == 100 and asked[0] == 0.9
    (one_level,) = at_common_levels((0.9,), lambda level: at(level)[:2])
    assert one_level[0] is None and one_level[1] == break_evens(at(0.9)[:2])[0]


def test_a_wide_interval_is_undecided() -> None:
    """Prices a task of 10 to 12 against 11: the saving is of either sign, depending
    on the seeds.
    """
    noisy = account("maml", 1000, 10, spread=1.5)
    found = one(noisy, account("scratch", 0, 11))
    assert found.verdict == "undecided" and found.ci95 is not None and math.isinf(found.ci95[1])
    assert len({tasks for _, tasks in found.leave_one_out}) == 3
    assert one(noisy, account("scratch", 0, 100)).verdict == "pays"


def test_what_was_not_measured_is_undecided() -> None:
    known = account("maml", 10, 1)
    for missing in (
        known._replace(label="x", up_front=None),
        known._replace(label="x", found=None),
    ):
        found = one(known, missing)
        assert (
            found.verdict == "undecided"
            and "not measured: the cost of x" in found.why
            and found.tasks is None
        )


def test_every_pair_once_and_the_same_bits_twice() -> None:
    rows = [
        account(name, up, each, spread=1.1)
        for name, up, each in (("a", 0, 9), ("b", 50, 4), ("c", 900, 1))
    ]
    found = break_evens(rows)
    assert [{pair.a, pair.b} for pair in found] == [{"a", "b"}, {"a", "c"}, {"b", "c"}]
    assert break_evens(rows) == found
    assert all(
        pair.ci95 is not None and pair.ci95[0] <= (pair.tasks or 0) <= pair.ci95[1] + 1
        for pair in found
    )


def test_fewer_tasks_are_compared_on_those_that_both_met() -> None:
    """The first 50 of 200 tasks cost 4, the others 400: the comparison sees the first alone."""
    many = account("many", 0, 4, seeds=1)
    assert many.found is not None
    many.found.cost[:, 50:] = 400.0
    found = one(many, account("few", 100, 2, seeds=1, tasks=50))
    assert (found.verdict, found.tasks) == ("pays", 50)
    assert found.leave_one_out == ()  # one seed: nothing is left without it


def test_the_interval_is_the_bootstrap_of_the_crossing() -> None:
    """One seed, tasks that cost 1 or 3: n = U / (c_b - mean), whose spread is that of the mean."""
    cost = np.tile([1.0, 3.0], 200)[None]
    a = Account("a", (0,), np.array([1000.0]), Reached(np.ones_like(cost, bool), cost))
    found = one(a, account("b", 0, 12, seeds=1, tasks=400))
    error = 1.96 / math.sqrt(400)  # sd 1
    assert found.tasks == 100 and found.ci95 is not None
    assert found.ci95 == pytest.approx((1000 / (10 + error), 1000 / (10 - error)), rel=0.004)


@given(st.floats(0, 1e6), st.floats(0.01, 1e3), st.floats(0, 1e6), st.floats(0.01, 1e3))
def test_at_the_crossing_both_cost_the_same(up_a: float, a: float, up_b: float, b: float) -> None:
    tasks = crossing(up_a, a, up_b, b)
    assert tasks >= 1
    if math.isinf(tasks):
        assert a >= b or up_a <= up_b
    else:
        assert up_a + tasks * a <= (up_b + tasks * b) * (1 + 1e-6) + 1e-6


#
# accounts and fronts


def block(**entries: dict[str, Any]) -> dict[str, Any]:
    nothing = {"flops": 0, "seconds": 0.0, "tasks": 0}
    return {phase: {**nothing, **entries.get(phase, {})} for phase in PHASES}


def test_what_is_paid_once_and_what_each_task_takes() -> None:
    each = {"seconds_batched": 2.0, "seconds_alone": 5.0, "tasks": 10}
    cost = block(
        setup={"seconds": 7.0, "flops": None},
        tune={"flops": 100, "seconds": 1.0},
        meta_train={"flops": 900, "seconds": 9},
        search={
            "flops": 30,
            "seconds_batched": 1.0,
            "tasks": 10,
            "once": {"flops": 5, "seconds": 0.5},
        },
        adapt={**each, "flops": 50, "flops_at_start": 10, "seconds_at_start": 0.0},
        predict={**each, "flops": 4},
    )
    assert accounts.up_front(cost, "flops") == 1005 and accounts.up_front(cost, "seconds") == 10.5
    steps = accounts.learning(cost, "flops", [0, 1, 4])
    assert steps is not None and steps.tolist() == [40, 50, 80]  # the search, and 10 + 40 s / 4
    seconds = accounts.learning(cost, "seconds", [0, 1, 4])
    assert seconds is not None and seconds.tolist() == [1.0, 1.5, 3.0]
    assert accounts.answering(cost, "flops") == 4
    assert accounts.whole_seconds(cost) == 7 + 1 + 9 + 10 * 1 + 0.5 + 10 * 2 + 10 * 2


def test_an_absent_phase_is_an_error_and_null_is_unknown() -> None:
    cost = block(adapt={"seconds_batched": 1.0, "flops": None})
    assert accounts.learning(cost, "flops", [1]) is None
    cost["meta_train"]["flops"] = None
    assert accounts.up_front(cost, "flops") is None and accounts.up_front(cost, "seconds") == 0
    del cost["tune"]
    with pytest.raises(MissingPhase, match="'tune'"):
        accounts.up_front(cost, "seconds")


def test_the_front() -> None:
    costs, scores = [1.0, 2.0, 2.0, 3.0, None, 1.0], [0.5, 0.9, 0.8, 0.9, 0.99, 0.5]
    assert front(costs, scores, higher=True) == [True, True, False, False, False, True]
    assert front([1.0, 2.0], [0.3, 0.2], higher=False) == [True, True]


def test_a_band_is_the_spread_of_the_mean() -> None:
    scores = np.random.default_rng(0).normal(0, 1, (1, 900, 2)) + np.array([0.0, 5.0])
    low, high = band(scores, 0)
    assert high - low == pytest.approx(2 * 1.96 * scores.std(1)[0] / 30, rel=0.08)
    assert ((low < scores.mean((0, 1))) & (scores.mean((0, 1)) < high)).all()
    seeds = np.arange(3.0)[:, None, None] + np.zeros((3, 50, 1))  # all spread is between seeds
    assert [float(part[0]) for part in band(seeds, 0)] == [0.0, 2.0]


# selection


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=25))
def test_rank_correlations_are_scipys(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, float).T
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(kendall(a, b)) and math.isnan(spearman(a, b))
    else:
        assert kendall(a, b) == pytest.approx(scipy.stats.kendalltau(a, b).statistic, abs=1e-12)
        assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)


def test_a_perfect_score_has_no_regret_and_pure_noise_only_optimism() -> None:
    generator = np.random.default_rng(1)
    truth = generator.normal(0.6, 0.05, (300, 64))
    perfect = noise(list(truth), list(truth))
    assert (perfect.tau, perfect.regret, perfect.optimism) == (pytest.approx(1), 0, 0)
    flat = np.full((300, 64), 0.6)
    lucky = noise(list(flat + generator.normal(0, 0.1, flat.shape)), list(flat))
    assert lucky.tau is None and lucky.regret == lucky.gain == 0
    assert lucky.optimism == pytest.approx(
        0.24, abs=0.02
    )  # the largest of 64 normals: 2.4 deviations of 0.1
    blind = noise(list(generator.normal(0, 1, truth.shape)), list(truth), one_unit=False)
    assert blind.regret == pytest.approx(blind.regret_of_chance, rel=0.1) and blind.optimism is None
    assert abs(blind.tau or 0) < 0.02 and (blind.searches, blind.candidates) == (300, 64)


def test_a_pick_that_diverged_is_never_the_pick() -> None:
    found = noise([[math.nan, 0.5, -math.inf]], [[0.9, 0.4, 0.2]])
    assert found.regret == pytest.approx(0.5) and found.optimism == pytest.approx(0.1)
    with pytest.raises(ValueError, match="finite"):
        noise([[1.0]], [[math.nan]])
    with pytest.raises(ValueError, match="as long as"):
        noise([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="at least one"):
        noise([], [])
