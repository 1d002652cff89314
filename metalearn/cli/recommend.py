"""`metalearn recommend`: the cheapest method of a comparison for n new tasks, in a paragraph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

from metalearn.errors import ConfigError
from metalearn.evaluate.decision.totals import CLEAR
from metalearn.report.numbers import amount, level
from metalearn.results import records
from metalearn.results.break_even.recommendation import Question, Recommendation, recommend
from metalearn.results.comparison import collect, read_comparison
from metalearn.results.costs import AXES
from metalearn.results.records import Json

MOST = 10**12


def recommendation(
    root: Path, tasks: str, queries: str | None, target: str | None, axis: str
) -> tuple[Recommendation, Json]:
    """(the answer, comparison.json); ConfigError with everything that is wrong."""
    problems: list[tuple[str, str]] = []
    number = _whole("--tasks", tasks, 1, problems)
    asked = None if queries is None else _whole("--queries", queries, 0, problems)
    wanted = None if target is None else _number("--target", target, problems)
    if axis not in AXES:
        problems.append(("--axis", f"must be one of {', '.join(AXES)} (got {axis!r})"))
    found, groups = _comparison(root, problems)
    known = found.get("target") if found else None
    if found and len(groups) < 2:
        text = "contains one method; a recommendation needs at least two"
        problems.append((str(root), text))
    elif found and known is None:
        text = "the comparison has no target: set evaluate.target, or run it with validation tasks"
        problems.append((str(root), text))
    if known and wanted is not None and known["metric"] == "accuracy" and wanted > 1:
        problems.append(("--target", f"is an accuracy and must be <= 1 (got {wanted:g})"))
    chance = groups[0].first.chance if groups else 0.0
    if known and wanted is not None and known["metric"] == "accuracy" and wanted <= chance:
        problems.append(("--target", f"must be above chance, {chance:.3g} (got {wanted:g})"))
    if problems or found is None or known is None or number is None:
        raise ConfigError(*problems)
    tested = (found.get("decision_map") or {}).get("as_tested", 1)
    question = Question(
        number,
        int(tested) if asked is None else asked,
        float(known["value"]) if wanted is None else wanted,
        cast(Any, axis),
    )
    return recommend(groups, known, found.get("levels") or [], question), found


def _comparison(
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


def _whole(place: str, text: str, least: int, problems: list[tuple[str, str]]) -> int | None:
    value = _number(place, text, problems, positive=False)
    if value is not None and (value != int(value) or not least <= value <= MOST):
        problems.append((place, f"must be an integer from {least} to {MOST:.0e} (got {text})"))
        return None
    return None if value is None else int(value)


def _number(
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


def paragraph(found: Recommendation, comparison: Json) -> str:
    """The answer in sentences."""
    asked, metric = found.question, str(comparison["target"]["metric"])
    name = f"a target of {level(asked.target, metric)} {metric}"
    setting = f"{asked.tasks:,} new tasks with {asked.queries:,} queries each at {name}"
    parts = [f"For {setting},"]
    if found.label is None:
        known = " whose cost is known" if found.left_out else ""
        parts.append(f"no method{known} solves half of the test tasks.")
    else:
        parts += _answer(found)
    parts += _caveats(found, comparison, metric)
    return " ".join(parts)


def _answer(found: Recommendation) -> list[str]:
    axis, total = found.question.axis, found.total
    assert total is not None and found.solved is not None
    ends = ""
    if found.interval is not None:
        low, high = (amount(end, axis) for end in found.interval)
        ends = f" (95 % interval {low} to {high})"
    name = f"{found.label}{_stopped(found.step, ',')}"
    parts = [f"{name} is the cheapest: {amount(total, axis)} in total{ends}."]
    if found.solved < 1:
        parts.append(
            f"It solves {found.solved:.0%} of the test tasks; totals are for "
            f"{found.question.tasks:,} solved tasks."
        )
    if found.runner_up is not None and found.runner_up_total is not None:
        ratio = found.runner_up_total / total if total else math.inf
        other = amount(found.runner_up_total, axis)
        name = f"{found.runner_up}{_stopped(found.runner_up_step)}"
        parts.append(f"The runner-up is {name}: {other}, {ratio:.3g} times as much.")
    else:
        known = " whose cost is known" if found.left_out else ""
        parts.append(f"No other method{known} reaches the target.")
    if not found.settled:
        draws = f"it is the cheapest in {found.share:.0%} of the bootstrap samples"
        if found.share is not None and found.share >= CLEAR:
            draws = "the 95 % interval of its difference from another method includes 0"
        why = found.unsettled or draws
        parts.append(f"The data are inconclusive: {why}.")
    return parts


def _stopped(step: int | None, end: str = "") -> str:
    return "" if step is None else f", stopped after {step:,} meta-steps{end}"


def _caveats(found: Recommendation, comparison: Json, metric: str) -> list[str]:
    parts, border = [], found.border
    if border is None:
        parts.append("The recommendation is the same for all task counts and targets of the map.")
    elif border.what == "tasks":
        parts.append(
            f"The recommendation changes at about {max(1, round(border.value)):,} tasks, where "
            f"{border.label} becomes the cheapest."
        )
    else:
        who = "no method reaches it" if border.label is None else f"{border.label} is the cheapest"
        value = level(border.value, metric)
        parts.append(f"The recommendation changes at a target of {value}: {who}.")
    failed = [check["name"] for check in comparison["checks"] if not check["passed"]]
    if failed:
        parts.append(f"Failed checks: {'; '.join(failed)}.")
    for label, why in found.left_out.items():
        parts.append(f"Left out: {label} ({why}).")
    return parts


def run(root: Path, tasks: str, queries: str | None, target: str | None, axis: str) -> None:
    """Print the paragraph."""
    print(paragraph(*recommendation(root, tasks, queries, target, axis)))
