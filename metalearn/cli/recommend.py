"""`metalearn recommend`: the cheapest method of a comparison for n new tasks, in a paragraph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

from metalearn.errors import ConfigError
from metalearn.evaluate.decision.totals import CLEAR
from metalearn.report.numbers import amount, level
from metalearn.results import costs, records
from metalearn.results.break_even.counts import UNPUBLISHED
from metalearn.results.break_even.recommendation import (
    Border,
    Question,
    Recommendation,
    recommend,
)
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
    tasks, queries = _count(question.tasks, "new task"), _count(question.queries, "query")
    parts = [f"For {tasks} with {queries} each at {name},", *_answer(recommended, metric)]
    parts += _left_out(recommended)
    if recommended.free is not None:
        names = ", ".join(recommended.pretrained)
        parts.append(f"Without the cost of pretraining by others ({names}),")
        parts += [*_answer(recommended.free, metric), *_left_out(recommended.free)]
    return " ".join([*parts, *_failed_checks(comparison)])


def _answer(recommended: Recommendation, metric: str) -> list[str]:
    """Return the sentences after "For ...,": the method, its total, and where that changes."""
    if not recommended.has_totals:
        return ["there is no recommendation: the cost of no method is known."]
    if recommended.label is not None:
        sentences = _recommendation_sentences(recommended)
    else:
        qualifier = " whose cost is known" if recommended.left_out else ""
        sentences = [f"no method{qualifier} solves half of the test tasks."]
        if not recommended.settled:
            why = recommended.unsettled or "by its 95 % interval a method may solve half of them"
            sentences.append(f"The data are inconclusive: {why}.")
    return [*sentences, *_border_sentences(recommended, metric)]


def _count(number: int, noun: str) -> str:
    plural = "queries" if noun == "query" else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


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
        solved = _count(recommended.question.tasks, "solved task")
        share = f"{recommended.solved:.0%}"
        parts.append(f"It solves {share} of the test tasks; totals are for {solved}.")
    if recommended.runner_up is not None and recommended.runner_up_total is not None:
        other = amount(recommended.runner_up_total, axis)
        times = recommended.runner_up_total / total if total else 0.0
        size = f"{times:.3g}" if times < 1000 else f"{float(f'{times:.3g}'):,.0f}"
        ratio = f", {size} times as much" if total else ""
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


def _border_sentences(recommended: Recommendation, metric: str) -> list[str]:
    if not recommended.borders:
        return [
            "The recommendation is the same for other numbers of tasks and queries, and at "
            "the other targets of the map."
        ]
    known = " whose cost is known" if recommended.left_out else ""
    places = "; ".join(_describe_border(border, metric, known) for border in recommended.borders)
    return [f"The recommendation changes {places}."]


def _describe_border(border: Border, metric: str, known: str) -> str:
    """Say where another method is the cheapest; `known` restricts "no method" if some are not."""
    if border.what == "target":
        value = level(border.value, metric)
        outcome = f"which no method{known} reaches"
        if border.label is not None:
            outcome = f"where {border.label} is the cheapest"
        return f"at a target of {value}, {outcome}"
    number = round(border.value)
    each = _count(number, "task") if border.what == "tasks" else f"{_count(number, 'query')} each"
    return f"at {each}, where {border.label} becomes the cheapest"


def _failed_checks(comparison: Json) -> list[str]:
    failed = [check["name"] for check in comparison["checks"] if not check["passed"]]
    return [f"Failed checks: {'; '.join(failed)}."] if failed else []


def _left_out(recommended: Recommendation) -> list[str]:
    whys = recommended.left_out
    unpublished = [label for label, why in whys.items() if why == UNPUBLISHED.format(label)]
    others = [f"{label} ({why})" for label, why in whys.items() if label not in unpublished]
    sentences = [f"Left out: {', '.join(others)}."] if others else []
    if unpublished:
        names = ", ".join(unpublished)
        sentences.append(f"Left out, as the cost of their pretraining was not published: {names}.")
    return sentences


def run(root: Path, tasks: str, queries: str | None, target: str | None, axis: str) -> None:
    """Print the paragraph."""
    print(paragraph(*recommendation(root, tasks, queries, target, axis)))
