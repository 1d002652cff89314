"""Checks of a comparison; one that fails is shown, never hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from metalearn.results.break_even.solved import starts_at_chance
from metalearn.results.break_even.target import check_target, validation_tasks
from metalearn.results.cost_checks import Check, check, cost_checks, group_owners, join_owners
from metalearn.results.design.tuning import has_tuned_range, tuned_fields
from metalearn.results.records import Array, Group, Json, Run

SEEDS, EPISODES = 3, 600
GAP_TASKS = 10  # validation tasks below which no difference from training tasks is shown
DIVERGED = 0.02  # fraction of the tasks above which a method's numbers are doubtful


def checks(
    groups: Sequence[Group], unfinished: Sequence[str] = (), target: Json | None = None
) -> list[Check]:
    """Return all checks, the most serious first; `target` as of `choose_target`."""
    runs = [run for group in groups for run in group.runs]
    return [
        _check_finished(unfinished),
        _check_same_task(runs),
        _check_same_episodes(runs),
        *_check_new_classes(runs),
        *_check_new_rows(runs),
        *_check_pools(runs),
        _check_same_normalisation(groups),
        _check_chance(runs),
        _check_diverged(groups),
        _check_seeds(groups),
        _check_episodes(runs),
        check_target(groups, target),
        _check_edges(groups),
        _check_both_curves(groups),
        *cost_checks(groups),
    ]


def _check_finished(unfinished: Sequence[str]) -> Check:
    wrong = f"not finished: {', '.join(unfinished)}" if unfinished else ""
    return check("every row is finished", wrong, "each run directory contains a result")


def _task_facts(run: Run) -> tuple[Any, ...]:
    names = ("source", "split", "ways", "shots", "queries", "order", "data_sha256", "ranges")
    return tuple(run.task.get(name) for name in names)


def _check_same_task(runs: Sequence[Run]) -> Check:
    tasks = sorted({str(_task_facts(run)) for run in runs})
    fields = "source, split, ways, shots, queries, order or data"
    wrong = f"methods differ in {fields}: {'; '.join(tasks)}"
    fine = "one source, split, number of ways, shots and queries"
    return check("same new tasks", wrong if len(tasks) > 1 else "", fine)


def _check_same_episodes(runs: Sequence[Run]) -> Check:
    name = "same test episodes"
    prints = group_owners((_fingerprint(run), run.name) for run in runs)
    if len(prints) > 1:
        return Check(name, False, join_owners(prints))
    if "None" in prints:
        return Check(name, False, "no run has a fingerprint of its episodes")
    most = max((run.episodes for run in runs), default=0)
    short = sorted((run for run in runs if run.episodes < most), key=lambda run: run.episodes)
    fewer = group_owners((f"the first {run.episodes}", run.name) for run in short)
    text = f"{most} episodes, {next(iter(prints), '')}"
    # episode number t is the same whatever their number
    common = f"{text}; pairs are compared on common ones ({join_owners(fewer)})"
    return Check(name, True, common if fewer else f"all methods: {text}")


def _fingerprint(run: Run) -> str:
    return str((run.result.get("episodes") or {}).get("fingerprint"))[:12]


def _check_same_normalisation(groups: Sequence[Group]) -> Check:
    policies = group_owners(
        (policy, group.label) for group in groups for policy in group.normalisations
    )
    wrong = f"accuracies under different policies are not comparable ({join_owners(policies)})"
    fine = f"all methods: {next(iter(policies), '')}"
    return check("same normalisation policy", "" if len(policies) == 1 else wrong, fine)


def _check_chance(runs: Sequence[Run]) -> Check:
    """Check that methods which do not use the support set at step 0 start at chance.

    It is 1/N, within 4 standard errors."""
    name = "step 0 is chance"
    wrong: list[str] = []
    count = 0
    for run in runs:
        scores = run.scores_of("accuracy")
        guesses = starts_at_chance(run) and run.metric == "accuracy" and run.chance
        if not guesses or 0 not in run.steps or scores is None:
            continue
        count += 1
        if problem := _chance_problem(scores[:, run.steps.index(0)], run.chance):
            wrong.append(f"{run.name}: {problem}")
    if wrong:
        text = f"accuracy at step 0 is not 1/N, so labels or support leak: {'; '.join(wrong)}"
        return Check(name, False, text)
    if not count:
        text = "does not apply: no method starts from an initialization without class information"
        return Check(name, True, text)
    return Check(name, True, f"{count} runs start at 1/N, within 4 standard errors")


def _check_new_classes(runs: Sequence[Run]) -> list[Check]:
    """Return a check that fails if test tasks have training classes; no check if classes are
    new."""
    same = {run.label for run in runs if (run.result.get("facts") or {}).get("same_classes")}
    text = f"test tasks have the training classes, with new images: {', '.join(sorted(same))}"
    return [Check("test classes are new", False, text)] if same else []


def _check_new_rows(runs: Sequence[Run]) -> list[Check]:
    """Return a check that fails if rows of the test are rows of training; no check if none are."""
    counts = [(run.result.get("facts") or {}).get("test_rows_in_training") or 0 for run in runs]
    if not (most := max(counts, default=0)):
        return []
    text = f"{most} rows of the test split are in the training split as well"
    return [Check("test rows are new", False, text)]


def _check_pools(runs: Sequence[Run]) -> list[Check]:
    """Return a check that fails if test tasks repeat groups or sets of classes.

    No check if they are all different, or if their number is unknown."""
    pools = [(run, (run.result.get("facts") or {}).get("test_pool")) for run in runs]
    small = [(run.episodes, pool, run) for run, pool in pools if pool and pool < run.episodes]
    if not small:
        return []
    episodes, pool, run = max(small, key=lambda one: one[:2])
    text = f"{episodes} episodes are of {pool} different groups or sets of classes: intervals over "
    text += "tasks hold for new tasks of these, not of others"
    if order := (run.result.get("task") or {}).get("order"):
        text += f"; their support rows are always the first by {order}"
    return [Check("test tasks are of different groups or classes", False, text)]


def _chance_problem(scores: Array, chance: float) -> str | None:
    average = float(scores.mean())
    error = float(scores.std(ddof=1) / math.sqrt(scores.size)) if scores.size > 1 else math.inf
    if math.isfinite(average) and abs(average - chance) <= 4 * error + 1e-6:
        return None
    return f"{average:.4f} instead of {chance:.4f}, standard error {error:.4f}"


def _check_diverged(groups: Sequence[Group]) -> Check:
    name = "few tasks diverged"
    shares = {group.label: group.diverged() for group in groups}
    unknown = [label for label, share in shares.items() if share is None]
    listing = ", ".join(f"{label} {share:.2%}" for label, share in shares.items() if share)
    if unknown:
        text = f"not measured: {', '.join(unknown)}"
        return Check(name, False, f"{text}; {listing}" if listing else text)
    worst = max((share or 0.0 for share in shares.values()), default=0.0)
    wrong = f"above {DIVERGED:.0%} of the test tasks at the headline step: {listing}"
    return check(
        name, wrong if worst > DIVERGED else "", f"at the headline step: {listing or 'none'}"
    )


def _check_seeds(groups: Sequence[Group]) -> Check:
    few = [f"{group.label} {len(group.runs)}" for group in groups if len(group.runs) < SEEDS]
    wrong = f"the variation over seeds is not well known: {', '.join(few)}"
    fine = f"fewest: {min((len(group.runs) for group in groups), default=0)}"
    return check(f"at least {SEEDS} seeds", wrong if few else "", fine)


def _check_episodes(runs: Sequence[Run]) -> Check:
    fewest = min((run.episodes for run in runs), default=0)
    text = f"fewest in a run: {fewest}"
    return Check(f"at least {EPISODES} test episodes", fewest >= EPISODES, text)


def _check_edges(groups: Sequence[Group]) -> Check:
    """Check that no tuned value is at the end of its range, where the range chose it.

    The range of a headline step that validation tasks chose ends with the curve."""
    name = "tuned values inside their range"
    tuned_runs = [run for group in groups for run in group.runs if tuned_fields(run)]
    ranged_runs = [run for run in tuned_runs if has_tuned_range(run)]
    edges = [text for group in groups for text in _describe_edges(group)]
    last = group_owners(
        (f"headline step {run.headline_step}, the last of the curve", group.label)
        for group in groups
        for run in group.runs
        if _ends_at_last_step(run)
    )
    edges += [join_owners({text: labels}) for text, labels in last.items()]
    if edges:
        text = f"on the edge, so a wider range may be better: {'; '.join(edges)}"
        return Check(name, False, text)
    if not tuned_runs:
        return Check(name, True, "does not apply: no method was tuned")
    if not ranged_runs:
        return Check(name, True, "does not apply: no method was tuned within a range")
    text = f"runs tuned within a range: {len(ranged_runs)}, none on its edge"
    return Check(name, True, text)


def _ends_at_last_step(run: Run) -> bool:
    """Return whether validation tasks chose the last of several steps of a curve."""
    chosen = (run.result.get("tuned") or {}).get("headline_step")
    takes_steps = bool(run.traits.get("uses_steps", True)) and len(run.steps) > 1
    return takes_steps and chosen is not None and int(chosen) == run.steps[-1]


def _describe_edges(group: Group) -> list[str]:
    """Return the tuned values of a method at the end of their range, each once for its seeds."""
    seeds: dict[str, list[int]] = {}
    for run in group.runs:
        tuned = run.result.get("tuned") or {}
        for key in tuned.get("on_edge") or []:
            span = (run.method_config.get("tune") or {}).get(key)
            limits = f" of {span.get('min')} to {span.get('max')}" if isinstance(span, dict) else ""
            seeds.setdefault(f"{key} {_format_value(tuned.get(key))}{limits}", []).append(run.seed)
    return [
        f"{group.label} {text}"
        if len(owners) == len(group.runs)
        else f"{group.label} seed{'s' * (len(owners) > 1)} {', '.join(map(str, owners))} {text}"
        for text, owners in seeds.items()
    ]


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_both_curves(groups: Sequence[Group]) -> Check:
    """Check that a method which learns across tasks has scores on training and validation tasks."""
    name = "train-task against validation-task curves"
    missing: list[str] = []
    gaps: dict[str, list[str]] = {}
    for group in groups:
        points = gap(group)
        if points is not None:
            amount = f"{points * 100:+.1f} points" if group.higher_better else f"{points:+.3f}"
            count = validation_tasks(group)["tasks"]
            is_known = count is None or count >= GAP_TASKS
            tasks = "" if count is None else f" over {count} tasks"
            text = f"{group.label} {amount}" if is_known else group.label
            gaps.setdefault(tasks if is_known else f"{tasks}, too few to show", []).append(text)
        elif group.first.traits.get("consumes", "nothing") != "nothing":
            missing.append(group.label)
    listed = "; ".join(f"{', '.join(texts)}{tasks}" for tasks, texts in gaps.items())
    gap_text = f"training minus validation tasks at the end: {listed}"
    if missing:
        text = f"not recorded: {', '.join(missing)}"
        return Check(name, False, f"{text}; {gap_text}" if gaps else text)
    return Check(name, True, gap_text if gaps else "no method learns across tasks")


def gap(group: Group) -> float | None:
    """Return training minus validation tasks at the last common point, mean over seeds, or None."""
    gaps: list[float] = []
    for run in group.runs:
        train, valid = (
            {
                line["step"]: line[run.metric]
                for line in run.valid(split)
                if line.get(run.metric) is not None
            }
            for split in ("train", "valid")
        )
        both = train.keys() & valid.keys()
        if not both:
            return None
        gaps.append(float(train[max(both)]) - float(valid[max(both)]))
    return float(np.mean(gaps)) if gaps and np.isfinite(gaps).all() else None
