"""Checks of cost: equal tuning, controls, seeds of searches, phases, sums of seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metalearn.evaluate.cost_block import waiting_share
from metalearn.results import costs
from metalearn.results.design import timing
from metalearn.results.design.tuning import describe_trials, stage_trials, trial_flops
from metalearn.results.records import Group, Json, Run, mean
from metalearn.results.searches import (
    candidate_count,
    has_search,
    is_control,
    tuning_flops,
    tuning_trials,
)

SEARCH_SEEDS = 3
NO_SEARCH = "does not apply: no method searched architectures"
# of seconds per task, and of seconds up front
TIMED_ALONE, TRAINED_ALONE = (
    "new tasks were timed alone on the machine",
    "training did not wait for cores",
)
EQUAL_TRIALS = "equal tuning trials in each stage"  # their FLOPs may differ
ROUNDING = 1e-9
SUM_WITHIN = 0.05  # of the run's seconds by the wall clock


class Check(NamedTuple):
    """One named condition, whether it holds, and the numbers behind the verdict."""

    name: str
    passed: bool
    why: str


def applies(one: Json) -> bool:
    """Return whether a check of comparison.json found what it is about."""
    return not (one["passed"] and one["why"].startswith("does not apply"))


def check(name: str, wrong: str, fine: str) -> Check:
    """Return a check that fails if `wrong` is not empty, and says what."""
    return Check(name, not wrong, wrong or fine)


def group_owners(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the owners of each value, each once, in their order, from pairs (value, owner)."""
    by_value: dict[str, list[str]] = {}
    for value, owner in dict.fromkeys(pairs):
        by_value.setdefault(value, []).append(owner)
    return by_value


def join_owners(by_value: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in by_value.items())


def cost_checks(groups: Sequence[Group]) -> list[Check]:
    """Return all cost checks, the most serious first."""
    runs = [run for group in groups for run in group.runs]
    return [
        _check_equal_tuning(groups),
        _check_search_seeds(groups),
        _check_random_control(groups),
        _check_phases(runs),
        _check_sums(runs),
        _check_idle(groups),
        _check_training_load(groups),
        _check_policy(runs),
    ]


def tunable(run: Run) -> bool:
    """Return whether there is anything to tune.

    A row that starts from the meta-parameters of another one and has no option of its own has
    nothing."""
    return run.acts_on_new_tasks or not run.method_config.get("start")


def _check_equal_tuning(groups: Sequence[Group]) -> Check:
    """Check for equal numbers of trials made, or for equal FLOPs if the budget is in FLOPs.

    A finite set of values of which all were tried equals the whole budget."""
    rows = [(run, group.label) for group in groups for run in group.runs]
    tunable_runs = [(run, label) for run, label in rows if tunable(run)]
    if any(tuning_flops(run) is not None for run, _ in rows):
        return _check_equal_compute(tunable_runs)
    counts = sorted(tunable_runs, key=lambda row: tuning_trials(row[0]))
    by_value = group_owners((describe_trials(run), label) for run, label in counts)
    wrong = f"methods were tuned with different numbers of trials ({join_owners(by_value)})"
    wrong = wrong + _describe_untuned_searches(groups)
    fine = f"all methods: {next(iter(by_value), 0)}"
    if len(by_value) > 1:
        why = "equal in each stage, where all values of a finite set equal the whole budget"
        fine = f"{why} ({join_owners(by_value)})"
    are_equal = len({_equivalent_trials(run) for run, _ in counts}) < 2
    spread = _describe_spread(groups)
    return check(EQUAL_TRIALS, "" if are_equal else wrong + spread, fine + spread)


def _describe_spread(groups: Sequence[Group]) -> str:
    """Return the least and the most FLOPs of the trials of a method that was tuned."""
    tuned = [group for group in groups if any(map(tuning_trials, group.runs))]
    flops = {group.label: mean([trial_flops(run) for run in group.runs]) for group in tuned}
    known = {label: value for label, value in flops.items() if value}
    if len(known) < 2:
        return ""
    least, most = (choose(known, key=lambda label: known[label]) for choose in (min, max))
    return f"; FLOPs of all trials: {known[least]:.3g} ({least}) to {known[most]:.3g} ({most})"


def _equivalent_trials(run: Run) -> frozenset[int]:
    """Return the numbers of trials of the stages; the whole budget for an exhausted finite set."""
    stages = stage_trials(run)
    return frozenset(one.limit if one.exhausted else one.made for one in stages) or frozenset({0})


def _check_equal_compute(runs: Sequence[tuple[Run, str]]) -> Check:
    """Check for equal budgets in FLOPs, and that they were spent up to one more trial."""
    name = "equal tuning compute"
    by_value = group_owners((_flops(run), label) for run, label in runs)
    if len(by_value) > 1:
        budgets = join_owners(dict(sorted(by_value.items())))
        return Check(name, False, f"methods were tuned with unequal compute ({budgets})")
    wrong = join_owners(
        group_owners((text, label) for run, label in runs if (text := _spending_problem(run)))
    )
    fine = f"all methods: {next(iter(by_value), 'none')}, spent up to less than one more trial"
    return check(name, wrong, fine)


def _spending_problem(run: Run) -> str:
    """Return how the FLOPs of a run's trials differ from the budget; empty if they do not.

    Each stage has an equal part of the budget. It must not spend more, and at most one trial less,
    unless all values of a finite set were tried."""
    budget, stages = tuning_flops(run), (run.result.get("tuning") or {}).get("stages") or []
    if not budget:
        return ""
    if not stages or any(stage.get("flops") is None for stage in stages):
        return "the FLOPs that tuning spent were not recorded"
    for stage in stages:
        limit, spent = budget / len(stages), float(stage["flops"])
        largest = float(stage.get("largest_flops") or spent / max(int(stage["trials"]), 1))
        is_short = spent + largest < limit * (1 - ROUNDING) and not _tried_all(run, stage)
        if is_short or spent > limit * (1 + ROUNDING):
            fields = f" for {', '.join(stage['fields'])}" if len(stages) > 1 else ""
            return f"tuning{fields} spent {spent:.3g} of {limit:.3g} FLOPs"
    return ""


def _tried_all(run: Run, stage: Mapping[str, Any]) -> bool:
    """Return whether a stage tried every combination of its fields' lists of values."""
    spans = [(run.method_config.get("tune") or {}).get(name) or {} for name in stage["fields"]]
    values: list[Sequence[Any]] = [span.get("values") or () for span in spans]
    return all(values) and math.prod(map(len, values)) <= int(stage["trials"])


def _flops(run: Run) -> str:
    budget = tuning_flops(run)
    return "trials" if budget is None else f"{budget:.3g} FLOPs"


def _describe_untuned_searches(groups: Sequence[Group]) -> str:
    """Return what to know of searches without tuning, which fail the check of equal trials.

    Their candidates are not trials."""
    rows = {
        group.label: group.first
        for group in groups
        if has_search(group.first) and not tuning_trials(group.first)
    }
    if not rows:
        return ""
    counts = ", ".join(
        f"{label} {candidate_count(run) or 'by gradient'}" for label, run in rows.items()
    )
    return (
        f"; searches without a tune: block cannot pass, as the cost of their candidates ({counts}) "
        "counts as search and not as tuning"
    )


def _check_search_seeds(groups: Sequence[Group]) -> Check:
    """Check the number of search seeds.

    Every seed of a run has its own search, unless its result has `search_seed`."""
    name = f"at least {SEARCH_SEEDS} search seeds"
    seeds = {
        group.label: _count_search_seeds(group)
        for group in groups
        if any(map(has_search, group.runs))
    }
    if not seeds:
        return Check(name, True, NO_SEARCH)
    few = ", ".join(f"{label} {count}" for label, count in seeds.items() if count < SEARCH_SEEDS)
    wrong = f"another search could give another result: {few}" if few else ""
    return check(name, wrong, f"fewest: {min(seeds.values())}")


def _count_search_seeds(group: Group) -> int:
    return len({run.result.get("search_seed", run.seed) for run in group.runs})


def _check_random_control(groups: Sequence[Group]) -> Check:
    """Check that every searcher has a random search with as many candidates (Li & Talwalkar
    2019)."""
    name = "random search beside every searcher"
    rows = {group.label: group.first for group in groups if any(map(has_search, group.runs))}
    controls = {_setting(run) for run in rows.values() if is_control(run)}
    others = {label: run for label, run in rows.items() if not is_control(run)}
    if not rows:
        return Check(name, True, NO_SEARCH)
    if not others:
        return Check(name, True, f"does not apply: every search is random ({', '.join(rows)})")
    without = ", ".join(label for label, run in others.items() if _setting(run) not in controls)
    wrong = f"no random search with equal budget and search space: {without}" if without else ""
    return check(
        name, wrong, f"random search: {', '.join(label for label in rows if label not in others)}"
    )


def _setting(run: Run) -> tuple[Any, ...]:
    method, space = run.method_config, str(run.method_config.get("space"))
    inside = (method.get("contains") or {}).get("name")
    return method.get("name"), space, method.get("candidates"), inside


def _check_phases(runs: Sequence[Run]) -> Check:
    missing = {run.name: what for run in runs if (what := costs.missing_phases(run))}
    rows = "; ".join(
        f"{who}: {', '.join(what[:4])}{_count_rest(what)}" for who, what in missing.items()
    )
    reasons = [reason for run in runs for reason in (run.result.get("uncounted") or {}).values()]
    why = f"; why: {'; '.join(dict.fromkeys(map(str, reasons)))}" if reasons else ""
    wrong = f"not measured, so costs are not compared ({rows}){why}" if missing else ""
    fine = f"{len(runs)} runs, every phase with FLOPs and seconds"
    return check("no missing phase", wrong, fine)


def _count_rest(what: Sequence[str]) -> str:
    return f" and {len(what) - 4} more" if len(what) > 4 else ""


def _check_sums(runs: Sequence[Run]) -> Check:
    name = "phases add up to the run's seconds"
    gaps: dict[str, float] = {}
    for run in runs:
        wall, whole = run.result.get("seconds"), costs.total_seconds(run)
        if wall and whole is not None:
            gaps[run.name] = whole / float(wall) - 1
    if not gaps:
        return Check(name, False, "no run recorded its wall-clock time")
    worst = max(gaps, key=lambda who: abs(gaps[who]))
    gaps = {who: gap if abs(gap) > 5e-4 else 0.0 for who, gap in gaps.items()}  # no minus nought
    wide = ", ".join(f"{who} {gap:+.1%}" for who, gap in gaps.items() if abs(gap) > SUM_WITHIN)
    wrong = f"more than {SUM_WITHIN:.0%} apart: {wide}" if wide else ""
    return check(name, wrong, f"{len(gaps)} runs; largest difference: {worst} {gaps[worst]:+.1%}")


def _check_idle(groups: Sequence[Group]) -> Check:
    """Check that all rows were timed in turns on an idle machine, as seconds require.

    The load by other processes is a mean over a round; a short one shows in the seconds."""
    name = TIMED_ALONE
    if len(groups) < 2:
        return Check(name, True, "does not apply: there is one method")
    runs = [run for group in groups for run in group.runs]
    problems = group_owners(
        (text, run.name) for run in runs if (text := timing.timing_problem(run))
    )
    if problems:
        return Check(name, False, f"no verdict in seconds: {_describe_rows(problems, runs)}")
    timings = [run.result["timing"] for run in runs]
    others = max(one["others"] for one in timings)
    rounds = min(one["rounds"] for one in timings)
    why = f"{rounds} interleaved rounds; other processes used at most {others:.1%} of the cores"
    return _check_rounds(name, groups, why)


def _check_rounds(name: str, groups: Sequence[Group], why: str) -> Check:
    """Check that no round was slow: others may have used the cores for a part of it."""
    exempt = ", ".join(group.label for group in groups if timing.has_search_per_task(group))
    why += f"; rounds not compared, as each searches for another task: {exempt}" if exempt else ""
    ratios = [
        (ratio, group.label, kind)
        for group in groups
        for kind, ratio in timing.round_ratios(group).items()
    ]
    slow = "; ".join(
        f"{label} {ratio:.1f}, “{timing.COLUMNS[kind]}”: {_describe_slow(kind)}"
        for ratio, label, kind in ratios
        if ratio > timing.SLOW_ROUND
    )
    if slow:
        limit = f"more than {timing.SLOW_ROUND:g} times the median of its method"
        return Check(name, False, f"a round took {limit} ({slow}); {why}")
    if not ratios:
        return Check(name, True, why)
    ratio, label, _ = max(ratios, key=lambda one: one[0])
    text = f"slowest round: {label}, {ratio:.1f} times the median of its method"
    return Check(name, True, f"{why}; {text}")


def _describe_slow(kind: timing.Kind) -> str:
    """Return what a slow round of these seconds makes doubtful."""
    if kind == "seconds_batched":
        return "no verdict in seconds of this method"
    return "the number is doubtful, and no verdict uses it"


def _check_training_load(groups: Sequence[Group]) -> Check:
    """Check that training had its cores to itself, as up-front seconds require."""
    name = TRAINED_ALONE
    if len(groups) < 2:
        return Check(name, True, "does not apply: there is one method")
    runs = [run for group in groups for run in group.runs]
    problems = group_owners(
        (text, run.name) for run in runs if (text := timing.up_front_problem(run))
    )
    shares = [share for run in runs if (share := waiting_share(run.cost)) is not None]
    fine = f"at most {max(shares, default=0.0):.1%} of the up-front seconds of a run"
    return check(
        name, f"no verdict in seconds: {_describe_rows(problems, runs)}" if problems else "", fine
    )


def _describe_rows(problems: Mapping[str, Sequence[str]], runs: Sequence[Run]) -> str:
    """Return `problem (rows)` of each problem."""
    rows = {
        text: "all runs" if len(who) == len(runs) else ", ".join(who)
        for text, who in problems.items()
    }
    return "; ".join(f"{text} ({who})" for text, who in rows.items())


def _check_policy(runs: Sequence[Run]) -> Check:
    without = ", ".join(run.name for run in runs if not run.result.get("normalisation"))
    wrong = f"not stated: {without}" if without else ""
    return check("normalisation policy stated", wrong, "in all runs")
