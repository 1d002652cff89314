"""`metalearn recommend`: the cheapest method of a comparison for n new tasks, in a paragraph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

from metalearn.errors import ConfigError
from metalearn.evaluate.decision.totals import CLEAR
from metalearn.report.numbers import amount, level
from metalearn.results import costs, records
from metalearn.results.break_even.recommendation import Question, Recommendation, recommend
from metalearn.results.comparison import collect, read_comparison
from metalearn.results.records import Json

MOST = 10**12


def recommendation(
    root: Path, tasks: str, queries: str | None, target: str | None, axis: str
) -> tuple[Recommendation, Json]:
    """Return (the recommendation, comparison.json); raises ConfigError with every problem."""
    problems: list[tuple[str, str]] = []
    task_count = _parse_integer("--tasks", tasks, 1, problems)
    query_count = None if queries is None else _parse_integer("--queries", queries, 0, problems)
    threshold = None if target is None else _parse_number("--target", target, problems)
    if axis not in costs.AXES:
        problems.append(("--axis", f"must be one of {', '.join(costs.AXES)} (got {axis!r})"))
    comparison, groups = _load_comparison(root, problems)
    default_target = comparison.get("target") if comparison else None
    if comparison and len(groups) < 2:
        text = "contains one method; a recommendation needs at least two"
        problems.append((str(root), text))
    elif comparison and default_target is None:
        text = "the comparison has no target: set evaluate.target, or run it with validation tasks"
        problems.append((str(root), text))
    is_accuracy = (default_target or {}).get("metric") == "accuracy"
    if is_accuracy and threshold is not None and threshold > 1:
        problems.append(("--target", f"is an accuracy and must be <= 1 (got {threshold:g})"))
    chance = groups[0].first.chance if groups else 0.0
    if is_accuracy and threshold is not None and threshold <= chance:
        problems.append(("--target", f"must be above chance, {chance:.3g} (got {threshold:g})"))
    if problems or comparison is None or default_target is None or task_count is None:
        raise ConfigError(*problems)
    question = Question(
        task_count,
        (costs.query_count(groups[0].first) or 1) if query_count is None else query_count,
        float(default_target["value"]) if threshold is None else threshold,
        cast(Any, axis),
    )
    levels = comparison.get("levels") or []
    return recommend(groups, default_target, levels, question), comparison


def _load_comparison(
    root: Path, problems: list[tuple[str, str]]
) -> tuple[Json | None, list[records.Group]]:
    finished, _ = records.run_directories(root) if root.is_dir() else ([], [])
    if not finished:
        text = "contains no finished run: use the directory of a comparison, such as runs/demo"
        problems.append((str(root), text))
        return None, []
    try:
        groups = records.group(map(records.load, finished))
        return read_comparison(root, groups) or collect(root), groups
    except ConfigError as error:
        problems.extend(error.problems)
        return None, []


def _parse_integer(
    place: str, text: str, minimum: int, problems: list[tuple[str, str]]
) -> int | None:
    value = _parse_number(place, text, problems, positive=False)
    if value is not None and (value != int(value) or not minimum <= value <= MOST):
        problems.append((place, f"must be an integer from {minimum} to {MOST:.0e} (got {text})"))
        return None
    return None if value is None else int(value)


def _parse_number(
    place: str, text: str, problems: list[tuple[str, str]], *, positive: bool = True
) -> float | None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (positive and value <= 0):
        problems.append((place, f"must be a {'positive ' * positive}number (got {text!r})"))
        return None
    return value


def paragraph(recommended: Recommendation, comparison: Json) -> str:
    """Return the recommendation in sentences."""
    question, metric = recommended.question, str(comparison["target"]["metric"])
    name = f"a target of {level(question.target, metric)} {metric}"
    setting = f"{question.tasks:,} new tasks with {question.queries:,} queries each at {name}"
    parts = [f"For {setting},"]
    if not recommended.has_totals:
        parts.append("there is no recommendation: the cost of no method is known.")
        return " ".join([*parts, *_failed_checks(comparison), *_left_out(recommended)])
    if recommended.label is None:
        qualifier = " whose cost is known" if recommended.left_out else ""
        parts.append(f"no method{qualifier} solves half of the test tasks.")
        if not recommended.settled:
            why = recommended.unsettled or "by its 95 % interval a method may solve half of them"
            parts.append(f"The data are inconclusive: {why}.")
    else:
        parts += _recommendation_sentences(recommended)
    parts += _caveats(recommended, comparison, metric)
    return " ".join(parts)


def _recommendation_sentences(recommended: Recommendation) -> list[str]:
    axis, total = recommended.question.axis, recommended.total
    assert total is not None and recommended.solved is not None
    interval = ""
    if recommended.interval is not None:
        low, high = (amount(end, axis) for end in recommended.interval)
        interval = f" (95 % interval {low} to {high})"
    name = f"{recommended.label}{_stopped_clause(recommended.step, ',')}"
    parts = [f"{name} is the cheapest: {amount(total, axis)} in total{interval}."]
    if recommended.solved < 1:
        parts.append(
            f"It solves {recommended.solved:.0%} of the test tasks; totals are for "
            f"{recommended.question.tasks:,} solved tasks."
        )
    if recommended.runner_up is not None and recommended.runner_up_total is not None:
        other = amount(recommended.runner_up_total, axis)
        ratio = f", {recommended.runner_up_total / total:.3g} times as much" if total else ""
        name = f"{recommended.runner_up}{_stopped_clause(recommended.runner_up_step)}"
        parts.append(f"The runner-up is {name}: {other}{ratio}.")
    else:
        qualifier = " whose cost is known" if recommended.left_out else ""
        parts.append(f"No other method{qualifier} reaches the target.")
    if not recommended.settled:
        evidence = f"it is the cheapest in {recommended.share:.0%} of the bootstrap samples"
        if recommended.share is not None and recommended.share >= CLEAR:
            evidence = "the 95 % interval of its difference from another method includes 0"
        why = recommended.unsettled or evidence
        parts.append(f"The data are inconclusive: {why}.")
    return parts


def _stopped_clause(step: int | None, end: str = "") -> str:
    return "" if step is None else f", stopped after {step:,} meta-steps{end}"


def _caveats(recommended: Recommendation, comparison: Json, metric: str) -> list[str]:
    parts, border = [], recommended.border
    if border is None:
        parts.append("The recommendation is the same for all task counts and targets of the map.")
    elif border.what == "tasks":
        parts.append(
            f"The recommendation changes at about {max(1, round(border.value)):,} tasks, where "
            f"{border.label} becomes the cheapest."
        )
    else:
        outcome = (
            "no method reaches it" if border.label is None else f"{border.label} is the cheapest"
        )
        value = level(border.value, metric)
        parts.append(f"The recommendation changes at a target of {value}: {outcome}.")
    return [*parts, *_failed_checks(comparison), *_left_out(recommended)]


def _failed_checks(comparison: Json) -> list[str]:
    failed = [check["name"] for check in comparison["checks"] if not check["passed"]]
    return [f"Failed checks: {'; '.join(failed)}."] if failed else []


def _left_out(recommended: Recommendation) -> list[str]:
    return [f"Left out: {label} ({why})." for label, why in recommended.left_out.items()]


def run(root: Path, tasks: str, queries: str | None, target: str | None, axis: str) -> None:
    """Print the paragraph."""
    print(paragraph(*recommendation(root, tasks, queries, target, axis)))
