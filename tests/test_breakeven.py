"""Break-even counts against analytic answers, at every edge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalearn.evaluate.breakeven import BreakEven, at_common_levels, break_evens, crossing
from metalearn.evaluate.comparable import MethodCosts
from metalearn.evaluate.statistics.fieller import Costs, difference, root, root_interval
from metalearn.evaluate.targets import Reached


def method(
    label: str, up: float, each: float, share: float = 1.0, seeds: int = 3, **how: Any
) -> MethodCosts:
    """E tasks of which a share is solved, all costing the same; `spread`: seeds differ in cost by
    this factor; `origin`: the network that it starts from."""
    tasks, spread = int(how.get("tasks", 200)), float(how.get("spread", 1.0))
    solved = np.tile(np.arange(tasks) < round(share * tasks), (seeds, 1))
    factors = np.geomspace(1 / spread, spread, seeds)[:, None] if seeds > 1 else np.ones((1, 1))
    cost = np.full((seeds, tasks), each * share) * factors  # all cost over the solved: `each`
    found = Reached(solved, cost)
    up_front = np.full(seeds, float(up))
    return MethodCosts(label, tuple(range(seeds)), up_front, found, how.get("origin", ""))


def one(*pair: MethodCosts) -> BreakEven:
    (found,) = break_evens(pair)
    return found


def test_pays_from_the_crossing_on() -> None:
    """1,000 beforehand and 2 a task against 0 and 12: equal at 100 tasks."""
    found = one(method("scratch", 0, 12), method("maml", 1000, 2))
    assert (found.a, found.b, found.verdict, found.tasks) == ("maml", "scratch", "pays", 100)
    # without a failure, the share solved of 200 tasks is at least 0.981
    assert found.ci95 == pytest.approx((97.7, 100.4), abs=0.05) and found.seeds == (3, 3)
    assert found.leave_one_out == ((0, 100), (1, 100), (2, 100))


@pytest.mark.parametrize(
    ("a", "b", "verdict", "tasks"),
    [
        ((0, 1), (0, 5), "always", 1),  # nothing beforehand
        ((3, 1), (0, 5), "always", 1),  # repaid by the first task
        ((4, 1), (0, 5), "pays", 1),  # exactly by the first, if b never fails
        ((4.1, 1), (0, 5), "pays", 2),
        ((10, 5), (0, 1), "never", None),
        ((10, 1.05), (0, 1), "never", None),
        ((10, 1), (0, 1), "undecided", None),  # equal costs of a task: which one fails less?
        ((10, 1 - 1e-12), (0, 1), "undecided", None),  # a saving that is rounding
        ((0, 1), (0, 1), "same", None),
        ((0, 0.1 + 0.2), (0, 0.3), "same", None),
        ((7, 1), (7, 1), "same", None),
        ((7, 1), (7, 1.2), "always", 1),  # equal starts
        ((1000, 2), (999, 2.0002), "same", None),  # both within 10 %, on either side
        ((1000, 2), (1000, 2.1), "same", None),
        ((1050, 2), (1000, 2.1), "same", None),
        ((1120, 2), (1000, 2.1), "pays", 1200),
        ((1000, 2), (0, 12), "pays", 100),
        ((1000, 2), (500, 7), "pays", 100),
        ((1e15, 1e-3), (0, 1), "pays", 1001001001001002),
    ],
)
def test_analytic_answers(
    a: tuple[float, float], b: tuple[float, float], verdict: str, tasks: int | None
) -> None:
    found = one(method("a", *a), method("b", *b))
    assert (found.a, found.b, found.verdict) == ("a", "b", verdict)
    assert found.tasks == (tasks if tasks is None else pytest.approx(tasks, rel=1e-9))


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_methods_does_not_matter(order: int) -> None:
    pair = (method("maml", 1000, 2, 0.9), method("scratch", 0, 12, 0.92))[::order]
    assert one(*pair) == one(*pair[::-1])


def shared(*solved: Any, seeds: int = 3) -> list[MethodCosts]:
    """Methods that solve these of their tasks, the same under every seed."""
    costs = ((1000.0, 2.0), (0.0, 12.0))
    return [
        MethodCosts(
            name,
            tuple(range(seeds)),
            np.full(seeds, up),
            Reached(np.tile(np.asarray(which, bool), (seeds, 1)), np.full((seeds, len(which)), c)),
        )
        for name, (up, c), which in zip("ab", costs, solved)
    ]


@pytest.mark.parametrize("high", [0.6, 0.7, 0.8, 0.9, 1.0])
def test_a_gap_of_ten_points_is_never_decided_by_rounding(high: float) -> None:
    """Shares .8 and .7 differ by a little more than .1 in floats, .6 and .5 by a little less."""
    many = np.arange(1000) / 1000
    found = one(*shared(many < high, many < high - 0.1))
    assert found.verdict == "undecided" and "possibly above 10 points" in found.why
    assert found.tasks is not None and found.ci95 is not None  # estimates, without a verdict


def test_gates_are_decided_by_intervals() -> None:
    many = np.arange(400) / 400
    assert one(*shared(many < 0.9, many < 0.89)).verdict == "pays"
    far = one(*shared(many < 0.95, many < 0.75))
    assert far.verdict == "not_reached" and far.tasks is None and "no common level" in far.why
    few = one(*shared(many < 0.3, many < 0.3))
    assert few.verdict == "not_reached" and "fewer than 50%" in few.why
    at_the_gate = one(*shared(many < 0.5, many < 0.5))
    assert at_the_gate.verdict == "undecided" and "possibly fewer than 50%" in at_the_gate.why


def test_a_failure_more_restores_no_verdict() -> None:
    """3 seeds with 60 tasks, of which one of as many seeds fails."""
    of_a = Reached(np.ones((3, 60), bool), np.full((3, 60), 2.0))
    a = MethodCosts("a", (0, 1, 2), np.full(3, 1000.0), of_a)
    found = []
    for failed in range(4):
        solved = np.ones((3, 60), bool)
        solved[range(failed), range(failed)] = False
        of_b = Reached(solved, np.full((3, 60), 12.0))
        found.append(one(a, MethodCosts("b", (0, 1, 2), np.zeros(3), of_b)))
    assert [row.verdict for row in found] == ["pays"] * 4
    lows, highs = zip(*(row.ci95 or (0, 0) for row in found))
    assert list(lows) == sorted(lows, reverse=True) and lows[-1] > 80
    assert max(highs) < 102


def test_few_tasks_without_a_failure_do_not_exclude_a_gap() -> None:
    """All of 20 tasks are solved where the share is 0.82 in one case of 50; of 60, 0.93."""
    few = one(*shared(np.ones(20), np.ones(20)))
    assert few.verdict == "undecided" and few.tasks == 100
    assert "by 0 points (-18 to 18), possibly above 10 points" in few.why
    assert one(*shared(np.ones(60), np.ones(60))).verdict == "pays"


def test_a_higher_up_front_cost_is_tested() -> None:
    """95 in the mean against 98, but 40 to 145: which costs more up front is unknown."""
    a, b = method("a", 0, 1), method("b", 0, 21)
    a = a._replace(up_front=np.array([40.0, 100, 145]))
    b = b._replace(up_front=np.array([105.0, 90, 100]))
    found = one(a, b)
    assert (found.a, found.verdict) == ("a", "undecided")
    assert "which costs more up front is undecided: the difference a - b is -3.33" in found.why
    assert one(a._replace(up_front=a.up_front + 500), b).verdict == "pays"  # type: ignore[operator]
    dear = b._replace(found=Reached(np.ones((3, 200), bool), np.full((3, 200), 500.0)))
    assert one(a, dear).verdict == "always"


def test_the_method_that_its_lower_cost_puts_first_is_tested_at_half_of_the_error() -> None:
    """Both start alike, so either may be said to cost less: t is 4.8, where the quantile is
    4.3 at 95 % and 6.2 at 97.5 %."""
    a, b = method("a", 0, 10, origin="x"), method("b", 0, 1, origin="x")
    costs = np.array([[11.96], [13.0], [14.04]])
    b = b._replace(found=Reached(np.ones((3, 200), bool), costs * np.ones(200)))
    found = one(a, b)
    assert (found.a, found.verdict) == ("a", "undecided")
    assert "which of the two is cheaper per solved task is undecided" in found.why
    assert "(97.5 % interval -" in found.why
    # a costs more up front
    assert one(a._replace(up_front=np.full(3, 0.01)), b).verdict == "always"


def test_a_cheap_method_that_solves_nothing_does_not_win() -> None:
    cheap, good = method("cheap", 0, 1, 0.02), method("good", 1e6, 50)
    assert one(cheap, good).verdict == "not_reached" and "cheap solved 2%" in one(cheap, good).why
    nothing = method("cheap", 0, 1, 0.0)
    assert one(nothing, good).verdict == "not_reached" and one(nothing, good).tasks is None
    assert one(nothing, method("other", 5, 1, 0.0)).verdict == "not_reached"


def test_few_seeds_give_an_estimate_and_no_verdict() -> None:
    for seeds in (1, 2):
        found = one(method("maml", 1000, 2, seeds=seeds), method("scratch", 0, 12, seeds=seeds))
        assert (found.verdict, found.tasks, found.ci95) == ("undecided", 100, None)
        assert f"{seeds} seed" in found.why and "needs at least 3" in found.why
    uneven = one(method("maml", 1000, 2, seeds=5), method("scratch", 0, 12, seeds=2))
    assert uneven.verdict == "undecided" and "scratch has 2 seeds" in uneven.why
    nothing = one(method("maml", 10, 2, 0.0, seeds=1), method("b", 0, 1, seeds=1))
    assert nothing.verdict == "undecided" and nothing.tasks is None


def test_one_seed_counts_no_tasks_where_fewer_than_half_are_solved() -> None:
    found = one(method("maml", 1000, 2, 0.3, seeds=1), method("scratch", 0, 12, 0.3, seeds=1))
    assert (found.verdict, found.tasks, found.crossing) == ("undecided", None, None)
    assert "1 seed" in found.why and "of its tasks, fewer than 50%" in found.why
    never = one(method("a", 10, 12, seeds=1), method("b", 0, 1, seeds=1))
    assert never.tasks is None and never.crossing == math.inf


@pytest.mark.parametrize(("share", "gap"), [(0.75, 25), (0.89, 11), (0.9, 0), (0.91, 0)])
def test_estimates_are_not_counted_across_a_gap_that_blocks_verdicts(
    share: float, gap: int
) -> None:
    found = one(method("maml", 1000, 2, seeds=1), method("scratch", 0, 12, share, seeds=1))
    assert found.verdict == "undecided" and found.ci95 is None and found.comparable == (gap == 0)
    assert found.tasks == (None if gap else 100)
    gaps = f"maml solved a larger fraction of tasks than scratch, by {gap} points: no common level"
    seeds = "maml has 1 seed: a verdict needs at least 3"
    assert found.why == (f"{seeds}; {gaps}" if gap else seeds)


def test_reasons_name_the_tasks_and_the_unit() -> None:
    """The method of 40 tasks solves all of its own, but 3 of the first 10."""
    many, few = method("many", 0, 4, tasks=40), method("few", 100, 2, tasks=10)
    assert many.found is not None
    many.found.solved[:, 3:10] = False
    shared_tasks = "many solved 30% of the first 10 tasks, which both were tested on, fewer than"
    single = [row._replace(seeds=(0,), up_front=np.zeros(1)) for row in (many, few)]
    single = [
        row._replace(found=Reached(row.found.solved[:1], row.found.cost[:1]))
        for row in single
        if row.found is not None
    ]
    assert shared_tasks in one(*single).why
    of_first = "few solved a larger fraction of the first 10 tasks, which both were tested on, than"
    assert f"{of_first} many, by 70 points (24 to 91): no common level" in one(many, few).why
    far = one(method("maml", 1000, 2), method("scratch", 0, 12, 0.8))
    assert "than scratch, by 20 points (15 to 26): no common level" in far.why


def test_three_seeds_against_five_use_all_of_them_where_seeds_are_independent() -> None:
    found = one(method("maml", 1000, 2, seeds=5, spread=1.1), method("scratch", 0, 12, spread=1.1))
    assert found.seeds == (5, 3) and found.verdict == "pays"
    same_start = [
        method("a", 1000, 2, seeds=5, origin="x"),
        method("b", 0, 12, seeds=3, origin="x"),
    ]
    assert one(*same_start).seeds == (3, 3)


def test_seeds_that_share_a_start_are_paired() -> None:
    """Both are dear under the same seeds, so their difference is known better than each."""
    costs = [("a", 1000, 20, 1.3), ("b", 0, 30, 1.3)]
    apart = one(*(method(n, u, e, spread=s) for n, u, e, s in costs))
    paired = one(*(method(n, u, e, spread=s, origin="x") for n, u, e, s in costs))
    assert apart.ci95 is not None and paired.ci95 is not None
    assert apart.verdict == "undecided" and math.isinf(apart.ci95[1])
    assert paired.verdict == "pays" and paired.ci95[1] < 300
    start = method("x", 0, 30, spread=1.3)  # the start itself, and what begins from it
    assert one(method("a", 1000, 20, spread=1.3, origin="x"), start).verdict == "pays"


def test_a_wide_interval_is_undecided() -> None:
    """Prices a task of 10 to 12 against 11: the saving is of either sign, depending
    on the seeds."""
    noisy = method("maml", 1000, 10, spread=1.5)
    found = one(noisy, method("scratch", 0, 11))
    assert found.verdict == "undecided" and found.ci95 is not None and math.isinf(found.ci95[1])
    assert "is undecided" in found.why and len({tasks for _, tasks in found.leave_one_out}) == 3
    assert one(noisy, method("scratch", 0, 100)).verdict == "pays"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    good, fine = method("b", 0, 1), method("maml", 10, 1)
    assert fine.up_front is not None and fine.found is not None
    up_front, cost = fine.up_front.copy(), fine.found.cost.copy()
    up_front[1], cost[2, 3] = bad, bad
    with pytest.raises(ValueError, match="up-front cost of maml must be finite"):
        one(fine._replace(up_front=up_front), good)
    with pytest.raises(ValueError, match="cost of a task of maml must be finite"):
        one(good, fine._replace(found=Reached(fine.found.solved, cost)))


def test_what_was_not_measured_is_undecided() -> None:
    known = method("maml", 10, 1)
    for missing in (
        known._replace(label="x", up_front=None),
        known._replace(label="x", found=None),
    ):
        found = one(known, missing)
        assert found.verdict == "undecided" and found.tasks is None
        assert "not measured: the cost of x" in found.why


def test_too_few_tasks_are_undecided() -> None:
    for tasks in (1, 4):
        found = one(method("a", 9, 1, tasks=tasks), method("b", 0, 2, tasks=tasks))
        assert found.verdict == "undecided" and f"{tasks} common tasks are too few" in found.why
    empty = method("a", 9, 1, tasks=0)
    with pytest.raises(ValueError, match="must be finite numbers"):
        one(empty, method("b", 0, 2))


def test_every_pair_once_and_the_same_bits_twice() -> None:
    rows = [
        method(name, up, each, spread=1.1)
        for name, up, each in (("a", 0, 9), ("b", 50, 4), ("c", 900, 1))
    ]
    found = break_evens(rows)
    assert [{pair.a, pair.b} for pair in found] == [{"a", "b"}, {"a", "c"}, {"b", "c"}]
    assert break_evens(rows) == found and break_evens(rows, [(0, 2)]) == [found[1]]
    for pair in found:
        assert pair.ci95 is not None and pair.tasks is not None
        assert pair.ci95[0] <= pair.tasks <= pair.ci95[1] + 1


def test_fewer_tasks_are_compared_on_those_that_both_met() -> None:
    """The first 50 of 200 tasks cost 4, the others 400: the comparison sees the first alone."""
    many = method("many", 0, 4)
    assert many.found is not None
    many.found.cost[:, 50:] = 400.0
    found = one(many, method("few", 100, 2, tasks=50))
    assert (found.verdict, found.tasks) == ("pays", 50)


def test_each_pair_is_compared_at_the_hardest_level_that_both_reach() -> None:
    """At 0.9 only `good` gets there; at 0.5 `fair` does too, and pays; `poor` reaches nothing that
    others reach."""
    shares = {0.9: (1.0, 0.2, 0.0), 0.5: (1.0, 1.0, 0.1), 0.3: (1.0, 1.0, 0.4)}
    levels: list[float] = []

    def at(level: float) -> list[MethodCosts]:
        levels.append(level)
        good, fair, poor = shares[level]
        return [
            method("good", 1000, 2, good),
            method("fair", 0, 12, fair),
            method("poor", 0, 1, poor),
        ]

    found = at_common_levels((0.9, 0.5, 0.3), at)
    assert levels == [0.9, 0.5, 0.3]
    verdicts = [(level, {one.a, one.b}, one.verdict) for level, one in found]
    assert verdicts == [
        (0.5, {"good", "fair"}, "pays"),
        (None, {"good", "poor"}, "not_reached"),
        (None, {"fair", "poor"}, "not_reached"),
    ]
    assert found[0][1].tasks == 100
    (one_level,) = at_common_levels((0.9,), lambda level: at(level)[:2])
    assert one_level == (None, break_evens(at(0.9)[:2])[0])


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_with_few_seeds_the_level_is_chosen_by_point_estimates(seeds: int) -> None:
    """At 0.9 one method solves fewer than half; at 0.8 they are 30 points apart; at 0.7 they are
    about equal."""
    shares = {0.9: (1.0, 0.4), 0.8: (1.0, 0.7), 0.7: (1.0, 0.95), 0.4: (1.0, 1.0)}

    def at(level: float) -> list[MethodCosts]:
        good, fair = shares[level]
        return [
            method("good", 1000 * level, 2, good, seeds),
            method("fair", 0, 12, fair, seeds),
        ]

    ((level, found),) = at_common_levels(tuple(shares), at)
    assert (level, found.tasks, found.ci95 is None) == (0.7, 70, seeds < 3)
    assert found.verdict == ("undecided" if seeds < 3 else "pays")
    ((none, last),) = at_common_levels((0.9, 0.8), at)
    assert none is None and last.tasks is None and "by 30 points" in last.why


# the interval


def test_the_interval_is_fiellers_closed_form() -> None:
    """Paired seeds and no spread over tasks: the roots of (U + n c)^2 = t^2 Var(U + n c), a
    quadratic in n, with t at 2 degrees of freedom."""
    up, each = np.array([1000.0, 1100, 950]), np.array([9.0, 10.5, 10.0])
    flat = np.ones((3, 50))
    line = difference(
        Costs(up, 2 * flat), Costs(np.zeros(3), 2 * flat + each[:, None]), paired=True
    )
    t, covariance = 4.302652729749462, np.cov(np.stack([up, -each])) / 3
    means = np.array([up.mean(), -each.mean()])
    squares = np.outer(means, means) - t**2 * covariance
    roots = np.roots([squares[1, 1], 2 * squares[0, 1], squares[0, 0]])
    assert root_interval(line) == pytest.approx(tuple(sorted(roots)), rel=1e-4)
    assert root(line) == pytest.approx(up.mean() / each.mean())


def test_the_interval_of_a_ratio_follows_the_spread_over_tasks() -> None:
    """Tasks that cost 1 or 3, the same under every seed: n = U / (c_b - mean)."""
    cost = np.tile(np.tile([1.0, 3.0], 200), (3, 1))
    other = Costs(np.zeros(3), np.full((3, 400), 12.0))
    line = difference(Costs(np.full(3, 1000.0), cost), other, paired=False)
    error = 1.966 / math.sqrt(399)  # sd 1
    assert root(line) == pytest.approx(100)
    ends = 1000 / (10 + error), 1000 / (10 - error)
    assert root_interval(line) == pytest.approx(ends, rel=1e-3)


@given(st.floats(0, 1e6), st.floats(0.01, 1e3), st.floats(0, 1e6), st.floats(0.01, 1e3))
def test_at_the_crossing_both_cost_the_same(up_a: float, a: float, up_b: float, b: float) -> None:
    tasks = crossing(up_a, a, up_b, b)
    assert tasks >= 1
    if math.isinf(tasks):
        assert a >= b * (1 - 1e-8) or up_a <= up_b
    else:
        assert up_a + tasks * a <= (up_b + tasks * b) * (1 + 1e-6) + 1e-6
