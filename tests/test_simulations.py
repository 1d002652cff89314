"""Every interval, test and verdict against simulations whose answer is known.

These are the fast versions, with few repeats and fixed seeds: a rate is allowed two standard errors
beyond its bound. `make simulate` runs the long ones."""

from __future__ import annotations

import math

import pytest
from simulated import (
    SEED_SDS,
    SEEDS,
    bootstrapped_crossing,
    crossing,
    family_by_bootstrap,
    pigeonhole_bootstrap,
    study_crossings,
    study_family,
    study_hard_tasks,
    study_means,
    study_no_start,
    study_shares,
    study_timing,
    study_varying_cost,
)

REPEATS = 400
PAYS = ((1000.0, 2.0, 0.9), (0.0, 12.0, 0.87))
NEVER = ((1000.0, 12.0 * 0.9 / 0.87, 0.9), (0.0, 12.0, 0.87))  # equal cost of a solved task


def slack(rate: float, repeats: int = REPEATS) -> float:
    """Two standard errors of a measured rate."""
    return 2 * math.sqrt(rate * (1 - rate) / repeats)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("seed_sd", SEED_SDS)
def test_an_interval_of_a_mean_covers_it(seeds: int, seed_sd: float) -> None:
    found = study_means(seeds, seed_sd, REPEATS)
    assert 0.92 - slack(0.92) <= found.coverage <= 0.98 + slack(0.98)


def test_the_older_bootstrap_of_a_mean_is_refused() -> None:
    for seeds, seed_sd in ((3, 3.0), (3, 7.0), (5, 7.0)):
        found = study_means(seeds, seed_sd, REPEATS // 2, pigeonhole_bootstrap)
        assert found.coverage < 0.92 - slack(0.92, REPEATS // 2)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("seed_sd", (0.0, 1.3, 7.0))
def test_intervals_of_shares_and_of_a_count_cover_them(seeds: int, seed_sd: float) -> None:
    """Of a gap where seeds do not differ, the interval is wider than it need be."""
    found = study_shares(PAYS, seeds, seed_sd, REPEATS)
    for coverage in (found.share, found.number):
        assert 0.92 - slack(0.92) <= coverage <= 0.98 + slack(0.98)
    assert 0.92 - slack(0.92) <= found.gap <= (0.98 if seed_sd else 0.99) + slack(0.98)


def test_symmetric_intervals_of_a_share_and_of_a_count_are_refused() -> None:
    found = study_shares(PAYS, 3, 7.0, 1000)
    assert found.symmetric < 0.92 - slack(0.92, 1000)
    assert found.symmetric_number < found.number - 0.02


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("share", (0.9, 0.97, 0.995))
@pytest.mark.parametrize("seed_sd", (0.0, 1.3, 7.0))
def test_a_cost_that_differs_between_seeds_is_seldom_missed(
    seeds: int, share: float, seed_sd: float
) -> None:
    for missed in study_varying_cost(share, seed_sd, REPEATS, seeds):
        assert missed <= 0.04 + slack(0.04)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("seed_sd", SEED_SDS)
def test_an_interval_of_a_break_even_count_covers_it(seeds: int, seed_sd: float) -> None:
    repeats = REPEATS // 2
    found = study_crossings(PAYS, seeds, seed_sd, repeats)
    assert 0.92 - slack(0.92, repeats) <= found.coverage <= 0.98 + slack(0.98, repeats)
    wrong = set(found.verdicts) - {"pays", "undecided", "not_reached"}
    assert not wrong and found.verdicts.get("not_reached", 0) <= 0.025 + slack(0.025, repeats)


def test_a_count_is_found_where_there_is_much_to_see() -> None:
    assert crossing(PAYS) == pytest.approx(86.4, abs=0.1) and math.isinf(crossing(NEVER))
    assert study_crossings(PAYS, 5, 1.3, 100).verdicts["pays"] > 0.75
    assert study_crossings(PAYS, 10, 1.3, 100).verdicts["pays"] > 0.95


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("seed_sd", (0.0, 3.0, 7.0))
def test_what_never_pays_is_seldom_said_to_pay(seeds: int, seed_sd: float) -> None:
    repeats = REPEATS // 2
    found = study_crossings(NEVER, seeds, seed_sd, repeats)
    assert found.verdicts.get("pays", 0) <= 0.025 + slack(0.025, repeats)
    assert found.verdicts.get("always", 0) == 0


@pytest.mark.parametrize(("tasks", "share"), [(20, 0.9), (50, 0.96), (200, 0.995)])
def test_tasks_on_which_every_seed_fails_seldom_give_a_false_verdict(
    tasks: int, share: float
) -> None:
    """With these shares no failure is seen in 12 to 37 % of the comparisons."""
    repeats = REPEATS // 8
    found = study_hard_tasks(share, tasks, 0.999, repeats)
    wrong = found.get("pays", 0) + found.get("always", 0)
    assert wrong <= 0.025 + slack(0.025, repeats)


def test_what_pays_is_found_where_nothing_fails() -> None:
    assert study_hard_tasks(0.995, 200, 1.5, 40).get("pays", 0) > 0.95


@pytest.mark.parametrize("seed_sd", (1.3, 7.0))
def test_equal_methods_without_costs_in_advance_are_seldom_told_apart(seed_sd: float) -> None:
    repeats = REPEATS // 4
    found = study_no_start(0.9, 5, seed_sd, repeats)
    assert found.get("always", 0) <= 0.025 + slack(0.025, repeats)
    assert set(found) <= {"same", "always", "undecided", "not_reached"}
    if seed_sd < 3:
        assert study_no_start(0.9, 5, seed_sd, 40, 1.3).get("always", 0) > 0.8


def test_the_older_bootstrap_of_a_count_is_refused() -> None:
    repeats = REPEATS // 2
    found = study_crossings(NEVER, 3, 7.0, repeats, bootstrapped_crossing)
    assert found.verdicts["pays"] > 0.025 + slack(0.025, repeats)
    found = study_crossings(PAYS, 3, 7.0, repeats, bootstrapped_crossing)
    assert found.coverage < 0.92 - slack(0.92, repeats)


EQUAL_SECONDS = {share: ((1000.0, 1.0, share), (0.0, 1.0, share)) for share in (0.9, 1.0)}


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("share", EQUAL_SECONDS)
@pytest.mark.parametrize("variation", (0.03, 0.07))
def test_equal_seconds_are_seldom_said_to_pay(seeds: int, share: float, variation: float) -> None:
    """The noise of five rounds of timing is in the interval."""
    repeats = REPEATS // 4
    found = study_timing(EQUAL_SECONDS[share], variation, repeats, seeds=seeds)
    assert found.verdicts.get("pays", 0) <= 0.025 + slack(0.025, repeats)
    assert found.verdicts.get("always", 0) == 0


def test_seconds_without_the_noise_of_timing_are_refused() -> None:
    for costs in EQUAL_SECONDS.values():
        found = study_timing(costs, 0.07, REPEATS // 4, with_variance=False)
        assert found.verdicts["pays"] > 0.025 + slack(0.025, REPEATS // 4)


@pytest.mark.parametrize("seeds", SEEDS)
def test_seconds_that_differ_are_said_to_pay(seeds: int) -> None:
    """With three seeds a count of this size is often left undecided."""
    costs = ((1000.0, 1.0, 0.9), (0.0, 2.0, 0.9))
    found = study_timing(costs, 0.03, REPEATS // 4, seeds=seeds)
    assert found.verdicts["pays"] > (0.9 if seeds > 3 else 0.3)
    assert found.coverage >= 0.92 - slack(0.92, REPEATS // 4)


@pytest.mark.parametrize("seeds", SEEDS)
def test_equal_methods_are_seldom_called_different(seeds: int) -> None:
    """24 equally good methods, 10 contrasts named before the run, Holm."""
    false, _ = study_family(seeds, REPEATS)
    assert false <= 0.05 + slack(0.05)
    if seeds > 3:
        assert study_family(seeds, 100, gain=6.0)[1] > 0.5


def test_the_older_bootstrap_calls_equal_methods_different() -> None:
    assert family_by_bootstrap(3, 50) > 0.3
