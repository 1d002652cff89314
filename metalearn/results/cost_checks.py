"""Checks of cost: equal tuning, controls, seeds of searches, phases, sums of seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metalearn.results import costs
from metalearn.results.records import Group, Run
from metalearn.results.searches import candidates, is_control, searched, trials, tuning_flops

SEARCH_SEEDS = 3
NO_SEARCH = "does not apply: no method searched architectures"
SUM_WITHIN = 0.05  # of the run's seconds by the wall clock


class Check(NamedTuple):
    """One named condition, whether it holds, and the numbers behind the verdict."""

    name: str
    passed: bool
    why: str


def check(name: str, wrong: str, fine: str) -> Check:
    """A check that fails where something is `wrong`, and says what."""
    return Check(name, not wrong, wrong or fine)


def owners(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """(value, owner) -> the owners of each value, each once, in their order."""
    found: dict[str, list[str]] = {}
    for value, owner in dict.fromkeys(pairs):
        found.setdefault(value, []).append(owner)
    return found


def in_one_line(found: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in found.items())


def cost_checks(groups: Sequence[Group]) -> list[Check]:
    """Return all cost checks, the most serious first."""
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
    return run.acts_on_new_tasks or not run.method_config.get("start")


def _equal_tuning(groups: Sequence[Group]) -> Check:
    """Equal trials, or equal FLOPs where the budget is in FLOPs."""
    rows = [(run, group.label) for group in groups for run in group.runs]
    tuned = [(run, label) for run, label in rows if tunable(run)]
    if any(tuning_flops(run) is not None for run, _ in rows):
        found = owners((_flops(run), label) for run, label in tuned)
        budgets = in_one_line(dict(sorted(found.items())))
        wrong = f"methods were tuned with unequal compute ({budgets})"
        fine = f"all methods: {next(iter(found), 'none')}"
        return check("equal tuning compute", wrong if len(found) > 1 else "", fine)
    counts = sorted(tuned, key=lambda row: trials(row[0]))
    found = owners((str(trials(run)), label) for run, label in counts)
    wrong = f"methods were tuned with different numbers of trials ({in_one_line(found)})"
    wrong = wrong + _untuned_searches(groups) if len(found) > 1 else ""
    return check("equal tuning trials", wrong, f"all methods: {next(iter(found), 0)}")


def _flops(run: Run) -> str:
    budget = tuning_flops(run)
    return "trials" if budget is None else f"{budget:.3g} FLOPs"


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
    counts = ", ".join(f"{label} {candidates(run) or 'by gradient'}" for label, run in rows.items())
    return (
        f"; searches without a tune: block cannot pass, as the cost of their candidates ({counts}) "
        "counts as search and not as tuning"
    )


def _search_seeds(groups: Sequence[Group]) -> Check:
    """Every seed of a run draws its search anew; a row may say otherwise, where one search served
    all its seeds."""
    name = f"at least {SEARCH_SEEDS} search seeds"
    found = {group.label: _seeds(group) for group in groups if any(map(searched, group.runs))}
    if not found:
        return Check(name, True, NO_SEARCH)
    few = ", ".join(f"{label} {count}" for label, count in found.items() if count < SEARCH_SEEDS)
    wrong = f"another search could give another result: {few}" if few else ""
    return check(name, wrong, f"fewest: {min(found.values())}")


def _seeds(group: Group) -> int:
    return len({run.result.get("search_seed", run.seed) for run in group.runs})


def _random_control(groups: Sequence[Group]) -> Check:
    """Random search with as many candidates stands beside every other searcher (Li & Talwalkar
    2019)."""
    name = "random search beside every searcher"
    rows = {group.label: group.first for group in groups if any(map(searched, group.runs))}
    controls = {_setting(run) for run in rows.values() if is_control(run)}
    others = {label: run for label, run in rows.items() if not is_control(run)}
    if not rows:
        return Check(name, True, NO_SEARCH)
    without = ", ".join(label for label, run in others.items() if _setting(run) not in controls)
    wrong = f"no random search with equal budget and search space: {without}" if without else ""
    return check(
        name, wrong, f"random search: {', '.join(label for label in rows if label not in others)}"
    )


def _setting(run: Run) -> tuple[Any, ...]:
    method, space = run.method_config, str(run.method_config.get("space"))
    inside = (method.get("contains") or {}).get("name")
    return method.get("name"), space, method.get("candidates"), inside


def _phases(runs: Sequence[Run]) -> Check:
    missing = {run.name: what for run in runs if (what := costs.missing_phases(run))}
    rows = "; ".join(f"{who}: {', '.join(what[:4])}{_more(what)}" for who, what in missing.items())
    reasons = [reason for run in runs for reason in (run.result.get("uncounted") or {}).values()]
    why = f"; why: {'; '.join(dict.fromkeys(map(str, reasons)))}" if reasons else ""
    wrong = f"not measured, so costs are not compared ({rows}){why}" if missing else ""
    fine = f"{len(runs)} runs, every phase with FLOPs and seconds"
    return check("no missing phase", wrong, fine)


def _more(what: Sequence[str]) -> str:
    return f" and {len(what) - 4} more" if len(what) > 4 else ""


def _sums(runs: Sequence[Run]) -> Check:
    name = "phases add up to the run's seconds"
    gaps: dict[str, float] = {}
    for run in runs:
        wall, whole = run.result.get("seconds"), costs.whole_seconds(run)
        if wall and whole is not None:
            gaps[run.name] = whole / float(wall) - 1
    if not gaps:
        return Check(name, False, "no run recorded its wall-clock time")
    worst = max(gaps, key=lambda who: abs(gaps[who]))
    gaps = {who: gap if abs(gap) > 5e-4 else 0.0 for who, gap in gaps.items()}  # no minus nought
    wide = ", ".join(f"{who} {gap:+.1%}" for who, gap in gaps.items() if abs(gap) > SUM_WITHIN)
    wrong = f"more than {SUM_WITHIN:.0%} apart: {wide}" if wide else ""
    return check(name, wrong, f"{len(gaps)} runs; largest difference: {worst} {gaps[worst]:+.1%}")


def _idle(groups: Sequence[Group]) -> Check:
    """Seconds of new tasks are compared only where all rows were timed in turns on an idle
    machine."""
    name = "new tasks were timed alone on the machine"
    if len(groups) < 2:
        return Check(name, True, "does not apply: there is one method")
    runs = [run for group in groups for run in group.runs]
    problems = owners((text, run.name) for run in runs if (text := costs.timing_problem(run)))
    if problems:
        rows = {
            text: "all runs" if len(who) == len(runs) else ", ".join(who)
            for text, who in problems.items()
        }
        why = "; ".join(f"{text} ({who})" for text, who in rows.items())
        return Check(name, False, f"no verdict in seconds: {why}")
    timings = [run.result["timing"] for run in runs]
    others = max(timing["others"] for timing in timings)
    rounds = min(timing["rounds"] for timing in timings)
    why = f"{rounds} interleaved rounds; other processes used at most {others:.1%} of the cores"
    return Check(name, True, why)


def _policy(runs: Sequence[Run]) -> Check:
    without = ", ".join(run.name for run in runs if not run.result.get("normalisation"))
    wrong = f"not stated: {without}" if without else ""
    return check("normalisation policy stated", wrong, "in all runs")
