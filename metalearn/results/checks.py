"""Checks of a comparison; one that fails is shown, never hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from metalearn.results.cost_checks import Check, cost_checks
from metalearn.results.records import Array, Group, Run

SEEDS, EPISODES = 3, 600
DIVERGED = 0.02  # the share of tasks above which a method's numbers are doubtful


def checks(groups: Sequence[Group], unfinished: Sequence[str] = ()) -> list[Check]:
    """All checks, in the order in which a reader should worry."""
    runs = [run for group in groups for run in group.runs]
    return [
        _finished(unfinished),
        _same_task(runs),
        _same_episodes(runs),
        *_new_classes(runs),
        _same_normalisation(groups),
        _chance(runs),
        _diverged(groups),
        _seeds(groups),
        _episodes(runs),
        _edges(groups),
        _both_curves(groups),
        *cost_checks(groups),
    ]


def _finished(unfinished: Sequence[str]) -> Check:
    if unfinished:
        return Check("every row is finished", False, f"not finished: {', '.join(unfinished)}")
    return Check("every row is finished", True, "each run directory holds a result")


def _task(run: Run) -> tuple[Any, ...]:
    task = run.result.get("task") or {}
    names = ("source", "split", "ways", "shots", "queries", "data_sha256", "ranges")
    return tuple(task.get(name) for name in names)


def _same_task(runs: Sequence[Run]) -> Check:
    name = "same new tasks"
    found = sorted({str(_task(run)) for run in runs})
    if len(found) > 1:
        text = f"rows differ in source, split, ways, shots, queries or data: {'; '.join(found)}"
        return Check(name, False, text)
    return Check(name, True, "one source, split, number of ways, shots and queries")


def _same_episodes(runs: Sequence[Run]) -> Check:
    name = "same test episodes"
    prints: dict[str, list[str]] = {}
    counts: dict[int, list[str]] = {}
    for run in runs:
        episodes, who = run.result.get("episodes") or {}, f"{run.label} seed {run.seed}"
        prints.setdefault(str(episodes.get("fingerprint"))[:12], []).append(who)
        counts.setdefault(int(episodes.get("count") or 0), []).append(who)
    if len(prints) > 1:
        return Check(
            name, False, "; ".join(f"{mark}: {', '.join(who)}" for mark, who in prints.items())
        )
    if "None" in prints:
        return Check(name, False, "no row holds a fingerprint of its episodes")
    most = max(counts, default=0)
    fewer = [
        f"the first {count}: {', '.join(who)}"
        for count, who in sorted(counts.items())
        if count < most
    ]
    listed = f"every row: {most} episodes, {next(iter(prints), '')}"
    if fewer:  # episode number t is the same whatever their number
        listed = (
            f"{most} episodes, {next(iter(prints), '')}; pairs are compared on common "
            f"ones ({'; '.join(fewer)})"
        )
    return Check(name, True, listed)


def _same_normalisation(groups: Sequence[Group]) -> Check:
    name = "same normalisation policy"
    policies: dict[str, list[str]] = {}
    for group in groups:
        for policy in sorted({str(run.result.get("normalisation")) for run in group.runs}):
            policies.setdefault(policy, []).append(group.label)
    if len(policies) == 1:
        return Check(name, True, f"every row: {next(iter(policies))}")
    listed = "; ".join(f"{policy}: {', '.join(labels)}" for policy, labels in policies.items())
    return Check(name, False, f"accuracies under different policies are not comparable ({listed})")


def _chance(runs: Sequence[Run]) -> Check:
    """Before any step a method that has not used the support set can only guess: 1/N within 4
    standard errors."""
    name = "step 0 is chance"
    wrong: list[str] = []
    tested = 0
    for run in runs:
        guesses = not run.traits.get("support_at_step_0", False) and run.traits.get(
            "uses_steps", True
        )
        scores = run.scores_of("accuracy")
        if (
            run.metric != "accuracy"
            or not guesses
            or not run.chance
            or 0 not in run.steps
            or scores is None
        ):
            continue
        tested += 1
        problem = _not_chance(scores[:, run.steps.index(0)], run.chance)
        if problem:
            wrong.append(f"{run.label} seed {run.seed}: {problem}")
    if wrong:
        text = f"step 0 should be 1/N and is not, so labels or support leak: {'; '.join(wrong)}"
        return Check(name, False, text)
    if not tested:
        text = "does not apply: no row takes steps from a start that cannot know the classes"
        return Check(name, True, text)
    return Check(name, True, f"{tested} rows start at 1/N, within 4 standard errors")


def _new_classes(runs: Sequence[Run]) -> list[Check]:
    """A check that fails where test tasks have training classes; none where classes are new."""
    same = sorted(
        {run.label for run in runs if (run.result.get("facts") or {}).get("same_classes")}
    )
    if not same:
        return []
    text = f"test tasks have the classes of training, in new images: {', '.join(same)}"
    return [Check("test classes are new", False, text)]


def _not_chance(scores: Array, chance: float) -> str | None:
    average = float(scores.mean())
    error = float(scores.std(ddof=1) / math.sqrt(scores.size)) if scores.size > 1 else math.inf
    if math.isfinite(average) and abs(average - chance) <= 4 * error + 1e-6:
        return None
    return f"{average:.4f} instead of {chance:.4f}, standard error {error:.4f}"


def _diverged(groups: Sequence[Group]) -> Check:
    name = "few tasks diverged"
    shares = {group.label: group.diverged() for group in groups}
    unknown = [label for label, share in shares.items() if share is None]
    listed = ", ".join(f"{label} {share:.2%}" for label, share in shares.items() if share)
    if unknown:
        return Check(
            name, False, f"not measured: {', '.join(unknown)}" + (f"; {listed}" if listed else "")
        )
    worst = max((share or 0.0 for share in shares.values()), default=0.0)
    if worst > DIVERGED:
        text = f"above {DIVERGED:.0%} of the test tasks at the headline step: {listed}"
        return Check(name, False, text)
    return Check(name, True, f"at the headline step: {listed or 'none'}")


def _seeds(groups: Sequence[Group]) -> Check:
    few = [f"{group.label} {len(group.runs)}" for group in groups if len(group.runs) < SEEDS]
    name = f"at least {SEEDS} seeds"
    if few:
        text = f"how much another seed would change is not known well: {', '.join(few)}"
        return Check(name, False, text)
    return Check(name, True, f"fewest: {min((len(group.runs) for group in groups), default=0)}")


def _episodes(runs: Sequence[Run]) -> Check:
    fewest = min(
        (int((run.result.get("episodes") or {}).get("count") or 0) for run in runs), default=0
    )
    text = f"fewest in a row: {fewest}"
    return Check(f"at least {EPISODES} test episodes", fewest >= EPISODES, text)


def _edges(groups: Sequence[Group]) -> Check:
    """A tuned value at the end of its range says that the range, not the tuning, chose it."""
    name = "tuned values inside their range"
    tuned = [run for group in groups for run in group.runs if run.result.get("tuned")]
    edges = [_edge(run, key) for run in tuned for key in run.result["tuned"].get("on_edge") or []]
    if edges:
        text = f"on the edge, so a wider range may do better: {'; '.join(edges)}"
        return Check(name, False, text)
    if not tuned:
        return Check(name, True, "does not apply: no row was tuned")
    return Check(name, True, f"{len(tuned)} tuned rows, none on the edge of a range")


def _edge(run: Run, key: str) -> str:
    span = ((run.config.get("method") or {}).get("tune") or {}).get(key)
    limits = f" of {span.get('min')} to {span.get('max')}" if isinstance(span, dict) else ""
    return f"{run.label} seed {run.seed} {key} {_short(run.result['tuned'].get(key))}{limits}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _both_curves(groups: Sequence[Group]) -> Check:
    """A method that learns across tasks shows what it loses between tasks that it trained on and
    new ones."""
    name = "train-task against validation-task curves"
    missing: list[str] = []
    gaps: list[str] = []
    for group in groups:
        found = gap(group)
        if found is not None:
            amount = f"{found * 100:+.1f} points" if group.higher_better else f"{found:+.3f}"
            gaps.append(f"{group.label} {amount}")
        elif group.first.traits.get("consumes", "nothing") != "nothing":
            missing.append(group.label)
    listed = "no method learns across tasks"
    if gaps:
        listed = f"training minus validation tasks at the end: {', '.join(gaps)}"
    if missing:
        return Check(
            name, False, f"not recorded: {', '.join(missing)}" + (f"; {listed}" if gaps else "")
        )
    return Check(name, True, listed)


def gap(group: Group) -> float | None:
    """Training minus validation tasks at the last point of both, mean over seeds; or None."""
    gaps: list[float] = []
    for run in group.runs:
        series = [
            {line["step"]: line.get(run.metric) for line in run.valid(split)}
            for split in ("train", "valid")
        ]
        both = [
            step
            for step in series[0]
            if series[0][step] is not None and series[1].get(step) is not None
        ]
        if not both:
            return None
        gaps.append(float(series[0][max(both)] or 0.0) - float(series[1][max(both)] or 0.0))
    return float(np.mean(gaps)) if gaps and np.isfinite(gaps).all() else None
