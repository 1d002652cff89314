"""A recorded comparison as Markdown: its rows, its contrasts and its decision maps.

The record is a file of `experiments/results/` of the kind `comparison`
(results/published.py)."""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.evaluate.decision.packed import unpack_map
from metalearn.report import markdown, numbers
from metalearn.report.figures.decision import map_text
from metalearn.report.numbers import (
    NONE,
    half_width,
    operations,
    p_value,
    score,
    score_interval,
)
from metalearn.report.render import VERDICTS
from metalearn.results.records import Json

LIKELIHOOD = {"nll": "NLL, nats", "calibration_error": "calibration error, %"}
MAPS = {
    "decision_map": "The cheapest method:",
    "decision_map_free": "The cheapest method without the cost of pretraining by others:",
}
BY_QUERIES = """
New tasks from which on the method with the higher up-front cost has the lower total cost, in FLOPs,
by queries per task, with 95 % intervals. Bold: verdicts by the rules of the record; others are
estimates.
"""


def rows_text(one: Json) -> str:
    """Return the text of a comparison: its command and settings, and its rows, the best first."""
    percent = one["metric"] == "accuracy"
    unit = "accuracy, %" if percent else "squared error"
    has_interval = any(row.get("interval") for row in one["rows"])
    halves = ["95 %, seeds and tasks"] if has_interval else ["over tasks", "over seeds"]
    known = [name for name in LIKELIHOOD if any(row.get(name) is not None for row in one["rows"])]
    heads = ["method", unit, *halves, "each seed", *(LIKELIHOOD[name] for name in known)]
    heads += ["FLOPs before", "FLOPs per task"]
    rows = [_line(row, one, percent, has_interval, known) for row in one["rows"]]
    seeds = f"{len(one['seeds'])} seed{'s' if len(one['seeds']) > 1 else ''}"
    where = f"commit {one['commit'][:7]}" if one.get("commit") else "commit not recorded"
    about = (
        f"`{one['command']}`: {one['task']}; {one['tasks']} test tasks, {seeds}; schedule "
        f"{one['schedule']}: {one['schedule_why']}; {where}."
    )
    failures = "; ".join(one.get("failed_checks") or ())
    checks = f"\nChecks of the report that failed: {failures}.\n" if failures else ""
    return f"{about}\n\n{_markdown(heads, rows)}{checks}"


def _line(
    row: Json, one: Json, percent: bool, has_interval: bool, known: Sequence[str]
) -> list[str]:
    few = f" (first {row['tasks']} tasks)" if row.get("tasks", one["tasks"]) < one["tasks"] else ""
    seeds = [score(value, percent) for value in row["per_seed"] or []]
    scale = 100 if percent else 1
    halves = [half_width(row["ci95_tasks"], scale), half_width(row["ci95_seeds"], scale)]
    if has_interval:  # of a row with too few seeds, that over tasks
        ends = row.get("interval")
        halves = [score_interval(ends, percent, row["per_seed"] or ()) if ends else halves[0]]
    return [
        row["label"] + few,
        score(row["value"], percent),
        *halves,
        ", ".join(seeds) or "not recorded",
        *(_likelihood(row, name) for name in known),
        _flops(row["flops_before"]),
        _flops(row["flops_task"]),
    ]


def _likelihood(row: Json, name: str) -> str:
    """Format the likelihood with the tasks that it leaves out, or the calibration error with its
    floor, that of a calibrated method."""
    if name == "nll":
        left_out, half = row.get("nll_left_out"), row.get("nll_ci95")
        note = f" (without {numbers.share(left_out)} of the tasks)" if left_out else ""
        width = "" if half is None else f" ± {half:.2g}"
        return score(row.get("nll"), False) + width + note
    floor = row.get("calibration_floor")
    note = "" if floor is None else f" (floor {score(floor, True)})"
    return score(row.get("calibration_error"), True) + note


def sources_text(one: Json) -> str:
    """Return the rows of a comparison on the tasks of each source, and their mean ranks."""
    percent, sources = one["metric"] == "accuracy", list(one["rows"][0]["by_source"])
    rows = [
        [
            row["label"],
            *(score(row["by_source"].get(name), percent) for name in sources),
            f"{row['mean_rank']:.1f}" if "mean_rank" in row else NONE,
        ]
        for row in sorted(one["rows"], key=lambda row: float(row.get("mean_rank", 0)))
    ]
    return _markdown(["method", *sources, "mean rank"], rows)


def contrasts_text(one: Json) -> str:
    """Return the contrasts of a comparison and their counts by number of queries, or a sentence
    that there are none."""
    if not one["contrasts"]:
        return "No contrasts were named before this run, so it has no tests.\n"
    scale, unit = (100, "points") if one["metric"] == "accuracy" else (1, "squared error")
    heads = ("contrast", f"difference, {unit}", "95 % interval", "p, Holm", "reading")
    rows = []
    for pair in one["contrasts"]:
        ends = " to ".join(f"{end * scale:+.3g}" for end in pair["ci95"] or ()) or NONE
        apart = NONE if pair["difference"] is None else f"{pair['difference'] * scale:+.3g}"
        p = pair.get("p_holm")
        reading = "no test" if p is None else "distinguished" if p <= 0.05 else "not distinguished"
        reading = "exploratory" if pair.get("exploratory") else reading
        cells = [f"{pair['a']} − {pair['b']}", apart, ends, p_value(p)]
        rows.append([*cells, reading])
    return _markdown(heads, rows) + _by_queries(one)


def _by_queries(one: Json) -> str:
    """Return the counts of contrasts in FLOPs by number of queries per task, if one is finite.

    At the level next to the target; at the other levels if none is finite there, and at every level
    of a record that does not mark one."""
    rows = [row for row in one["break_even"] if row["axis"] == "flops"]
    found = [(row, counts) for row in rows for counts in _counts(row)]
    found = [pair for pair in found if pair[0].get("primary")] or found
    if not found:
        return ""
    sizes = [count["queries"] for count in found[0][1][:-1]]
    lines = []
    for row, counts in found:
        first = counts[0]
        note = "" if first.get("with_given", True) else " (pretraining by others excluded)"
        roles = [first["a"], first["b"] + note, numbers.level(row.get("level"), one["metric"])]
        lines.append([*roles, *(_count(count, first) for count in counts)])
    heads = [f"{size:,} {'query' if size == 1 else 'queries'}" for size in sizes]
    heads = ["higher up-front cost", "against", "level", *heads, "as tested"]
    return f"{BY_QUERIES}\n{_markdown(heads, lines)}"


def _counts(row: Json) -> list[list[Json]]:
    """Return the counts by number of queries, the last one as tested, if one is finite.

    Then those without the cost of pretraining by others, if they differ."""
    found: list[list[Json]] = []
    for given in (True, False):
        by_queries, variants = (
            [one for one in row.get(name, ()) if one.get("with_given", True) == given]
            for name in ("by_queries", "variants")
        )
        sizes = [one for one in by_queries if one["queries"] is not None]
        tested = [one for one in by_queries if one["queries"] is None]  # since rules 9
        tested += [one for one in variants if one["with_answering"] and one["with_tuning"]]
        counts = [*sizes, *tested[:1]]
        is_new = not found or list(map(_cell, counts)) != list(map(_cell, found[0]))
        if sizes and is_new and any(one["tasks"] is not None for one in counts):
            found.append(counts)
    return found


def _cell(one: Json) -> tuple[str, int | None, str]:
    return one["a"], one["tasks"], one["verdict"]


def _count(one: Json, first: Json) -> str:
    """Format a count of tasks or a verdict without one; `first` has the roles of the row."""
    verdict, ends = one["verdict"], one["ci95"]
    text = numbers.tasks(one["tasks"], "never" if ends else NONE)
    if one["tasks"] is not None and ends:
        text += f" ({numbers.interval(ends)})"
    text = text if verdict in ("pays", "undecided") else VERDICTS[verdict]
    text = text if verdict == "undecided" else f"**{text}**"
    return text if one["a"] == first["a"] else f"{text}, roles swapped"


def decision_map_text(one: Json, queries: int | None = None) -> str:
    """Return the maps in FLOPs as text, with as many queries per task as tested or as given.

    Empty for a record without a map."""
    maps = {title: unpack_map(one[name]) for name, title in MAPS.items() if one.get(name)}
    parts = []
    for title, grid in maps.items():
        number = grid["as_tested"] if queries is None else queries
        left_out = [f"{label} ({why})" for label, why in grid.get("left_out", {}).items()]
        notes = f"Left out: {'; '.join(left_out)}. " if left_out else ""
        notes += f"Inconclusive: {grid['unsettled']}." if grid.get("unsettled") else ""
        parts += [title, f"```\n{map_text(grid, number)}\n```", *filter(None, [notes.strip()])]
    return "\n\n".join(parts) + "\n" if parts else ""


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown.table(heads, rows) + "\n"


def _flops(value: float | None) -> str:
    return NONE if value is None else operations(value)
