"""Targets, cost blocks and selection against answers that are known beforehand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from metalearn.evaluate import cost_block, targets
from metalearn.evaluate.ledger import PHASES, MissingPhase
from metalearn.evaluate.pareto import front
from metalearn.evaluate.random_effects import estimate
from metalearn.evaluate.selection import kendall, noise, spearman
from metalearn.evaluate.statistics import students_t
from metalearn.evaluate.targets import (
    Reached,
    Share,
    cost_per_solved,
    first_reached,
    reach,
    share_by_cost,
)

# targets


def test_a_target_is_reached_where_it_is_kept() -> None:
    scores = np.array(
        [[0.2, 0.9, 0.9], [0.9, 0.5, 0.95], [0.9, 0.9, 0.5], [0.91, 0.9, 0.9], [0.2, np.nan, 0.9]]
    )
    # 3: not on this curve
    assert first_reached(scores, 0.9, higher=True).tolist() == [1, 2, 3, 0, 2]
    assert first_reached([[3.0, 0.4, math.inf]], 0.5, higher=False).tolist() == [3]
    assert first_reached([[3.0, 0.4, 0.5]], 0.5, higher=False).tolist() == [1]


def test_the_failed_tasks_are_paid_by_those_that_did_it() -> None:
    """Two of three tasks solved, at 10 and at 40; the third cost all 100: 150 for two."""
    scores = [[0.1, 0.9, 0.9, 0.9], [0.1, 0.1, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]]
    found = reach(scores, [0, 10, 40, 100], 0.9, higher=True)
    assert found.solved.tolist() == [True, True, False] and found.cost.tolist() == [10, 40, 100]
    assert cost_per_solved(found) == 75
    assert cost_per_solved(Reached(np.zeros(3, bool), np.ones(3))) is None


def share_at(curve: Share, budget: float) -> float:
    return float(curve.share[np.searchsorted(curve.cost, budget, side="right") - 1])


def test_the_share_by_cost_is_that_of_all_tasks() -> None:
    found = Reached(np.array([[True, False], [True, True]]), np.array([[2.0, 9.0], [2.0, 5.0]]))
    curve = share_by_cost(found)
    assert curve.cost.tolist() == [0, 2, 5, 9] and curve.share.tolist() == [0, 0.5, 0.75, 0.75]
    assert share_at(curve, 1.9) == 0 and targets.median_cost(curve) == 2
    assert targets.median_cost(Share(np.array([0.0, 3]), np.array([0.0, 0.49]))) is None
    nobody = share_by_cost(Reached(np.zeros(2, bool), np.full(2, 7.0)))
    assert nobody.share.tolist() == [0, 0] and share_at(nobody, 100) == 0
    assert share_by_cost(Reached(np.zeros(0, bool), np.zeros(0))).share.tolist() == [0]


def test_unsolved_tasks_of_a_fast_seed_stay_in_the_denominator() -> None:
    """Two seeds, 1 and 10 s per step, tasks solved at step 2, at step 4, and never."""
    scores = [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    seeds = [
        reach(scores, np.arange(5) * seconds, 1, higher=True, first=1) for seconds in (1.0, 10.0)
    ]
    curve = share_by_cost(Reached(*(np.stack(parts) for parts in zip(*seeds))))
    # censored at 4 s, the last task of the fast seed would give 1/3 -> 5/9 -> 7/9
    assert curve.cost.tolist() == [0, 2, 4, 20, 40]
    assert curve.share * 6 == pytest.approx([0, 1, 2, 3, 4])
    assert targets.median_cost(curve) == 20


def test_the_limits_of_a_share_are_where_its_distance_is_t_standard_errors() -> None:
    solved = np.random.default_rng(0).random((3, 200)) < np.array([[0.8], [0.9], [0.97]])
    share, low, high = targets.share_interval(solved)
    linear = estimate(solved.astype(float)).ci95
    assert share == pytest.approx(solved.mean()) and linear is not None and linear[1] > 1 > high
    widths = [abs(share - p) / math.sqrt(p * (1 - p)) for p in (low, high)]
    half = (linear[1] - share) / math.sqrt(share * (1 - share))
    assert widths == pytest.approx([half, half], rel=0.01)  # but for the 1/2 in the effective n
    costs = targets.costs_of_solved(np.zeros(3), of(solved))
    unit = (linear[1] - share) / share**2  # 1 / high and 1 / low around 1 / share
    assert 1 / share - costs.stretch.below * unit == pytest.approx(1 / high)
    assert 1 / share + costs.stretch.above * unit == pytest.approx(1 / low)
    shares = targets.shares_of_solved(solved).stretch
    assert share + shares.above * (linear[1] - share) == pytest.approx(high)


def of(solved: NDArray[np.bool_]) -> Reached:
    """Tasks that cost 1 each."""
    return Reached(solved, np.ones(solved.shape))


@pytest.mark.parametrize("all_solved", [True, False])
def test_a_share_of_all_or_none_has_the_width_of_its_tasks(all_solved: bool) -> None:
    """50 tasks, whatever the number of seeds: all may fail on the same of further tasks."""
    ends = []
    for seeds in (1, 3, 10):
        share, low, high = targets.share_interval(np.full((seeds, 50), all_solved))
        assert share == float(all_solved) and (high if all_solved else 1 - low) == pytest.approx(1)
        ends.append(low if all_solved else 1 - high)
    assert 0.9 < ends[0] < 0.025 ** (1 / 50)  # the limit of Clopper & Pearson (1934)
    assert ends == pytest.approx([ends[0]] * 3, abs=1e-3)


def test_costs_without_a_failure_have_the_limits_of_a_failing_task() -> None:
    costs = targets.costs_of_solved(np.zeros(3), of(np.ones((3, 50), bool)))
    (extra,) = costs.extra
    t = students_t.t_quantile(0.975, extra.freedom)
    low = targets.share_interval(np.ones((3, 50), bool))[1]
    assert 1 + t * math.sqrt(extra.above) == pytest.approx(1 / low)
    assert extra.below == pytest.approx(0) and costs.stretch == (1, 1)
    assert not targets.costs_of_solved(np.zeros(3), of(failing(1))).extra


def test_a_failure_more_lowers_the_limits_of_a_share() -> None:
    for one_seed in (True, False):
        lows = [targets.share_interval(failing(number, one_seed))[1] for number in range(4)]
        assert lows == sorted(lows, reverse=True) and 0.815 < lows[0] < 0.025 ** (1 / 20)


def failing(number: int, one_seed: bool = False) -> NDArray[np.bool_]:
    """3 seeds of 20 tasks of which `number` fail, in one seed or in one each: [3, 20]."""
    solved = np.ones((3, 20), bool)
    for place in range(number):
        solved[0 if one_seed else place, place] = False
    return solved


def test_variation_of_cost_is_not_stretched() -> None:
    cost = np.array([[0.9], [1.0], [1.1]]) * np.ones(20)
    constant, varying = (
        targets.costs_of_solved(np.zeros(3), Reached(failing(1), table))
        for table in (np.ones((3, 20)), cost)
    )
    assert varying.failures == pytest.approx(constant.failures)
    assert varying.per_task - constant.per_task == pytest.approx((cost - 1) / failing(1).mean())


def test_the_target_is_nine_tenths_of_the_best_on_validation() -> None:
    assert targets.from_validation(0.95, higher=True) == pytest.approx(0.855)
    assert targets.from_validation(0.45, higher=False) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="finite"):
        targets.from_validation(math.nan, higher=True)


# cost blocks and fronts


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
    assert cost_block.up_front_cost(cost, "flops") == 1005
    assert cost_block.up_front_cost(cost, "seconds") == 10.5
    steps = cost_block.learning_cost(cost, "flops", [0, 1, 4])
    assert steps is not None and steps.tolist() == [40, 50, 80]  # the search, and 10 + 40 s / 4
    seconds = cost_block.learning_cost(cost, "seconds", [0, 1, 4])
    assert seconds is not None and seconds.tolist() == [1.0, 1.5, 3.0]
    assert cost_block.answering_cost(cost, "flops") == 4
    assert cost_block.total_seconds(cost) == 7 + 1 + 9 + 10 * 1 + 0.5 + 10 * 2 + 10 * 2


def test_an_absent_phase_is_an_error_and_null_is_unknown() -> None:
    cost = block(adapt={"seconds_batched": 1.0, "flops": None})
    assert cost_block.learning_cost(cost, "flops", [1]) is None
    cost["meta_train"]["flops"] = None
    assert cost_block.up_front_cost(cost, "flops") is None
    assert cost_block.up_front_cost(cost, "seconds") == 0
    del cost["tune"]
    with pytest.raises(MissingPhase, match="'tune'"):
        cost_block.up_front_cost(cost, "seconds")
    with pytest.raises(MissingPhase, match="unknown phase 'x' of the cost block; valid: setup"):
        cost_block.phase_entry(cost, "x")


def test_the_front() -> None:
    costs, scores = [1.0, 2.0, 2.0, 3.0, None, 1.0], [0.5, 0.9, 0.8, 0.9, 0.99, 0.5]
    assert front(costs, scores, higher=True) == [True, True, False, False, False, True]
    assert front([1.0, 2.0], [0.3, 0.2], higher=False) == [True, True]


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
    # the largest of 64 normals: 2.4 deviations of 0.1
    assert lucky.optimism == pytest.approx(0.24, abs=0.02)
    blind = noise(list(generator.normal(0, 1, truth.shape)), list(truth), one_unit=False)
    assert blind.regret == pytest.approx(blind.regret_of_chance, rel=0.1) and blind.optimism is None
    assert abs(blind.tau or 0) < 0.02 and (blind.searches, blind.candidates) == (300, 64)


def test_a_pick_that_diverged_is_never_the_pick() -> None:
    found = noise([[math.nan, 0.5, -math.inf]], [[0.9, 0.4, 0.2]])
    assert found.regret == pytest.approx(0.5) and found.optimism == pytest.approx(0.1)
    with pytest.raises(ValueError, match="finite"):
        noise([[1.0]], [[math.nan]])
    with pytest.raises(ValueError, match="equal length"):
        noise([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="at least one"):
        noise([], [])
