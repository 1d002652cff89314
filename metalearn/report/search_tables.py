"""What a report says of searches: against their controls, against noise, and what each part of a
method adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from metalearn.report.figures.axes import by_label
from metalearn.report.html import left, row, table
from metalearn.report.tables import NONE, method_name, score, signed
from metalearn.results.records import Group, Json
from metalearn.results.searches import (
    candidates,
    is_random,
    searched,
    searcher,
    searches,
    trials,
)


def controls(groups: Sequence[Group], compared: Json) -> str:
    """Every search beside the mean random architecture, random search, and the tuned fixed
    network.
    """
    up = groups[0].higher_better
    known = by_label(compared, "controls")
    better = f"<small>architecture, relative; {'above' if up else 'below'} 0 is better</small>"
    heads = [
        "method",
        "searcher",
        "candidates",
        "tuning trials",
        "accuracy, %" if up else "squared error",
        f"over mean random{better}",
    ]
    rows = []
    for group in groups:
        run, value = group.first, group.value()
        relative = _over(known.get(group.label))
        cells = [
            left(
                escape(
                    searcher(run) or ("by gradient" if searched(run) else "none: a fixed network")
                )
            ),
            str(candidates(run) or NONE),
            str(trials(run)),
            score(value, up),
            relative,
        ]
        rows.append(row(method_name(group, groups), cells))
    missing = []
    if not any(is_random(g) and candidates(g.first) == 1 for g in searches(groups)):
        missing.append("the mean random architecture (random search with candidates: 1)")
    if not any(is_random(group) and candidates(group.first) > 1 for group in searches(groups)):
        missing.append("random search at equal budget")
    if not any(trials(group.first) and not any(map(searched, group.runs)) for group in groups):
        missing.append("a fixed network with tuned hyper-parameters")
    text = (
        f'<p class="note">Controls that this run lacks: {"; ".join(missing)}.</p>'
        if missing
        else ""
    )
    return table(heads, rows, left=(1,)) + text


def _over(control: Json | None) -> str:
    if control is None:
        return NONE
    text = f"{100 * control['relative']:+.1f} %"
    if control["ci95"] is not None:
        low, high = control["ci95"]
        text += f" <small>{100 * low:+.1f} to {100 * high:+.1f}</small>"
    return text.replace("-", "−")


def noise_table(groups: Sequence[Group], compared: Json) -> str:
    """Rank correlation, regret and optimism of every search whose candidates are all known."""
    heads = [
        "method",
        "searches<small>candidates each</small>",
        "Kendall’s τ<small>score, queries</small>",
        "Spearman’s ρ<small>the same</small>",
        "regret<small>best − pick</small>",
        "regret of chance<small>best − mean</small>",
        "gain<small>pick − mean</small>",
        "optimism<small>score − queries</small>",
    ]
    rows = []
    known = by_label(compared, "selection")
    names = ("tau", "spearman", "regret", "regret_of_chance", "gain", "optimism")
    for group in groups:
        if group.label not in known:
            continue
        one = known[group.label]
        size = f"{one['searches']} <small>of {one['candidates']}</small>"
        numbers = [one[name] for name in names]
        cells = [size, *(NONE if n is None else f"{n:.3g}" for n in numbers)]
        rows.append(row(method_name(group, groups), [cell.replace("-", "−") for cell in cells]))
    return table(heads, rows)


def tuning_table(groups: Sequence[Group], compared: Json) -> str:
    """The best trial's validation score against the test: how much of it was luck; empty without
    tuning.
    """
    up, rows = groups[0].higher_better, []
    known = by_label(compared, "tuning")
    for group in groups:
        if group.label not in known:
            continue
        best, tested = known[group.label]["best"], known[group.label]["tested"]
        gap = (best - tested) * (100 if up else 1)
        cells = [
            str(known[group.label]["trials"]),
            score(best, up),
            score(tested, up),
            f"{gap:+.3g}".replace("-", "−"),
        ]
        rows.append(row(method_name(group, groups), cells))
    if not rows:
        return ""
    unit, better = ("points", "higher") if up else ("squared error", "lower")
    heads = [
        "method",
        "trials",
        f"best trial<small>on validation tasks, {better} is better</small>",
        "then tested<small>on test tasks</small>",
        f"difference<small>{unit}</small>",
    ]
    note = (
        '<p class="note">Tuning chooses by noisy scores too: the best of many trials looks '
        "better than it is. "
        "Validation and test classes differ, which is in the difference as well.</p>"
    )
    return table(heads, rows) + note


def factors(groups: Sequence[Group], compared: Json) -> str:
    """Pairs of methods that differ in one part alone, and by how much on common tasks; empty where
    there is none.
    """
    up = groups[0].higher_better
    rows = []
    for one in compared.get("factors") or []:
        names = f"{escape(one['a'])} against {escape(one['b'])}"
        change = f"{escape(one['to'])} instead of {escape(one['from'])}<br><small>{names}</small>"
        ends = " to ".join(signed(end, up) for end in one["ci95"])
        same = left(escape(", ".join(one["same"])))
        cells = [left(change), same, signed(one["difference"], up), ends]
        rows.append(row(escape(one["part"]), cells))
    if not rows:
        return ""
    unit = (
        f"{'points' if up else 'squared error'}<small>{'above' if up else 'below'} 0 is "
        f"better</small>"
    )
    heads = ["part", "change<small>methods</small>", "all else the same", unit, "95 % interval"]
    return table(heads, rows, left=(1, 2))
