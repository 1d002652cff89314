"""Checks of cost: equal tuning, controls, seeds of searches, phases, sums of seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from metalearn.results import costs
from metalearn.results.records import Group, Run
from metalearn.results.searches import candidates, is_control, searched, trials, tuning_flops

SEARCH_SEEDS = 3
SUM_WITHIN = 0.05  # of the run's seconds by the wall clock


class Check(NamedTuple):
    """One named condition, whether it holds, and the numbers behind the verdict."""

    name: str
    passed: bool
    why: str


def cost_checks(groups: Sequence[Group]) -> list[Check]:
    """The checklist of the account, in the order in which a reader should worry."""
    runs = [run for group in groups for run in group.runs]
    return [
        _equal_tuning(groups),
        _search_seeds(groups),
        _random_control(groups),
        _phases(runs),
        _sums(runs),
        _idle(groups),
        _policy(runs),
    ]


def tunable(run: Run) -> bool:
    """Whether there is anything to tune.

    A row that starts from another's meta and has no option of its own has not."""
    return run.acts_on_new_tasks or not (run.config.get("method") or {}).get("start")


def _equal_tuning(groups: Sequence[Group]) -> Check:
    """Equal trials, or equal FLOPs where the budget is in FLOPs."""
    if any(tuning_flops(run) is not None for group in groups for run in group.runs):
        return _equal_flops(groups)
    name = "equal tuning trials"
    found: dict[int, list[str]] = {}
    for group in groups:
        for count in sorted({trials(run) for run in group.runs if tunable(run)}):
            found.setdefault(count, []).append(group.label)
    if len(found) > 1:
        listed = "; ".join(
            f"{count}: {', '.join(labels)}" for count, labels in sorted(found.items())
        )
        why = f"a method that was tuned more had more chances ({listed})"
        return Check(name, False, why + _untuned_searches(groups))
    return Check(name, True, f"every row: {next(iter(found), 0)}")


def _equal_flops(groups: Sequence[Group]) -> Check:
    name = "equal tuning compute"
    found: dict[str, list[str]] = {}
    for group in groups:
        given = {tuning_flops(run) for run in group.runs if tunable(run)}
        for words in sorted("trials" if one is None else f"{one:.3g} FLOPs" for one in given):
            found.setdefault(words, []).append(group.label)
    if len(found) > 1:
        listed = "; ".join(f"{words}: {', '.join(who)}" for words, who in sorted(found.items()))
        return Check(name, False, f"rows were tuned with unequal compute ({listed})")
    return Check(name, True, f"every row: {next(iter(found), 'none')}")


def _untuned_searches(groups: Sequence[Group]) -> str:
    """What to know of a search that was not tuned: its candidates are no trials, so it fails the
    check by itself."""
    rows = {
        group.label: group.first
        for group in groups
        if searched(group.first) and not trials(group.first)
    }
    if not rows:
        return ""
    listed = ", ".join(f"{label} {candidates(run) or 'by gradient'}" for label, run in rows.items())
    return (
        f"; searches without tuning cannot be equal here: their candidates ({listed}) are paid "
        f"as search and are no "
        "tuning trials; with tune: in their methods they could be"
    )


def _search_seeds(groups: Sequence[Group]) -> Check:
    """Every seed of a run draws its search anew; a row may say otherwise, where one search served
    all its seeds."""
    name = f"at least {SEARCH_SEEDS} search seeds"
    found = {group.label: _seeds(group) for group in groups if any(map(searched, group.runs))}
    few = [f"{label} {count}" for label, count in found.items() if count < SEARCH_SEEDS]
    if few:
        return Check(name, False, f"another search could find something else: {', '.join(few)}")
    if not found:
        return Check(name, True, "does not apply: no row searched architectures")
    return Check(name, True, f"fewest: {min(found.values())}")


def _seeds(group: Group) -> int:
    return len({run.result.get("search_seed", run.seed) for run in group.runs})


def _random_control(groups: Sequence[Group]) -> Check:
    """Random search with as many candidates stands beside every other searcher (Li & Talwalkar
    2019)."""
    name = "random search beside every searcher"
    rows = {group.label: group.first for group in groups if any(map(searched, group.runs))}
    controls = {_setting(run) for run in rows.values() if is_control(run)}
    others = {label: run for label, run in rows.items() if not is_control(run)}
    without = [label for label, run in others.items() if _setting(run) not in controls]
    if without:
        text = f"no random search with the same budget and space: {', '.join(without)}"
        return Check(name, False, text)
    if not rows:
        return Check(name, True, "does not apply: no row searched architectures")
    text = f"random search: {', '.join(label for label in rows if label not in others)}"
    return Check(name, True, text)


def _setting(run: Run) -> tuple[Any, ...]:
    method = run.config.get("method") or {}
    inside = method.get("contains") or {}
    return (
        method.get("name"),
        str(method.get("space")),
        method.get("candidates"),
        inside.get("name"),
    )


def _phases(runs: Sequence[Run]) -> Check:
    name = "no missing phase"
    missing = {f"{run.label} seed {run.seed}": costs.missing_phases(run) for run in runs}
    listed = [f"{who}: {', '.join(what[:4])}{_more(what)}" for who, what in missing.items() if what]
    why = dict.fromkeys(
        str(reason) for run in runs for reason in (run.result.get("uncounted") or {}).values()
    )
    if listed:
        reasons = f"; why: {'; '.join(why)}" if why else ""
        text = f"not measured, so costs are not compared ({'; '.join(listed)}){reasons}"
        return Check(name, False, text)
    return Check(name, True, f"{len(runs)} rows, every phase with FLOPs and seconds")


def _more(what: Sequence[str]) -> str:
    return f" and {len(what) - 4} more" if len(what) > 4 else ""


def _sums(runs: Sequence[Run]) -> Check:
    name = "phases add up to the run's seconds"
    gaps: dict[str, float] = {}
    for run in runs:
        wall, whole = run.result.get("seconds"), costs.whole_seconds(run)
        if wall and whole is not None:
            gaps[f"{run.label} seed {run.seed}"] = whole / float(wall) - 1
    if not gaps:
        return Check(name, False, "no row says how long it took by the wall clock")
    worst = max(gaps, key=lambda who: abs(gaps[who]))
    gaps = {who: gap if abs(gap) > 5e-4 else 0.0 for who, gap in gaps.items()}  # no minus nought
    wrong = [f"{who} {gap:+.1%}" for who, gap in gaps.items() if abs(gap) > SUM_WITHIN]
    if wrong:
        return Check(name, False, f"more than {SUM_WITHIN:.0%} apart: {', '.join(wrong)}")
    return Check(name, True, f"{len(gaps)} rows; furthest apart: {worst} {gaps[worst]:+.1%}")


def _idle(groups: Sequence[Group]) -> Check:
    """Seconds of new tasks are compared only where all rows were timed in turns on an idle
    machine."""
    name = "new tasks were timed alone on the machine"
    if len(groups) < 2:
        return Check(name, True, "does not apply: there is one row")
    runs = [run for group in groups for run in group.runs]
    problems: dict[str, list[str]] = {}
    for run in runs:
        if problem := costs.timing_problem(run):
            problems.setdefault(problem, []).append(f"{run.label} seed {run.seed}")
    if problems:
        listed = "; ".join(
            f"{text} ({'every row' if len(who) == len(runs) else ', '.join(who)})"
            for text, who in problems.items()
        )
        return Check(name, False, f"no verdict in seconds: {listed}")
    timings = [run.result["timing"] for run in runs]
    others = max(timing["others"] for timing in timings)
    rounds = min(timing["rounds"] for timing in timings)
    why = f"{rounds} rounds in turns; other processes took {others:.1%} of the cores at most"
    return Check(name, True, why)


def _policy(runs: Sequence[Run]) -> Check:
    name = "normalisation policy stated"
    without = [
        f"{run.label} seed {run.seed}" for run in runs if not run.result.get("normalisation")
    ]
    if without:
        return Check(name, False, f"not stated: {', '.join(without)}")
    return Check(name, True, "in every row")
