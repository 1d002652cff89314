"""What a report says of searches: against their controls, against noise, and what each part of a
method adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metalearn.errors import ConfigError
from metalearn.evaluate.selection import Noise, noise
from metalearn.report.html import left, row, table
from metalearn.report.tables import NONE, method_name, score, signed
from metalearn.results.cost_checks import candidates, searched, searcher, trials
from metalearn.results.records import Array, Group, Json, Run, mean
from metalearn.storage.files import read_json, read_npz

META = (
    "maml",
    "anil",
    "boil",
    "reptile",
    "meta_sgd",
    "maml_plus_plus",
    "imaml",
    "cavia",
    "meta_nas",
)
# score, truth [R, A]: what each candidate was chosen by, and how good it was on queries
SELECTION = "selection.npz"


def searches(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if any(map(searched, group.runs))]


def controls(groups: Sequence[Group], paired: Sequence[Json]) -> str:
    """Every search beside the mean random architecture, random search, and the tuned fixed
    network.
    """
    up = groups[0].higher_better
    bases = {
        _regime(g.first): g for g in searches(groups) if _random(g) and candidates(g.first) == 1
    }
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
        relative = _over(group, bases.get(_regime(run)), paired)
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
    if not bases:
        missing.append("the mean random architecture (random search with candidates: 1)")
    if not any(_random(group) and candidates(group.first) > 1 for group in searches(groups)):
        missing.append("random search at equal budget")
    if not any(trials(group.first) and not any(map(searched, group.runs)) for group in groups):
        missing.append("a fixed network with tuned hyper-parameters")
    text = (
        f'<p class="note">Controls that this run lacks: {"; ".join(missing)}.</p>'
        if missing
        else ""
    )
    return table(heads, rows, left=(1,)) + text


def _regime(run: Run) -> tuple[str, ...]:
    """What must agree before a row is held against a control: method, space, contained method,
    training tasks.
    """
    method = run.config.get("method") or {}
    inside = {
        key: value for key, value in (method.get("contains") or {}).items() if key != "inner_lr"
    }  # may be tuned
    return (
        str(method.get("name")),
        str(method.get("space")),
        str(inside),
        str(run.config.get("task")),
    )


def _over(group: Group, base: Group | None, paired: Sequence[Json]) -> str:
    """By how many per cent a search differs from its own mean random architecture, on the tasks
    that both met.

    The interval is that of the paired difference, over the architecture's mean.
    """
    own, other = group.at_headline(), None if base is None else base.at_headline()
    if own is None or other is None or base is None or base is group:
        return NONE
    tasks = min(own.shape[1], other.shape[1])
    low, high = float(other[:, :tasks].mean()), float(own[:, :tasks].mean())
    if not low or not np.isfinite([low, high]).all():
        return NONE
    pair = next(
        (entry for entry in paired if {entry["a"], entry["b"]} == {group.label, base.label}), None
    )
    text = f"{100 * (high - low) / low:+.1f} %"
    if pair is not None and pair["ci95"] is not None:
        ends = sorted(
            100 * end / low * (1 if pair["a"] == group.label else -1) for end in pair["ci95"]
        )
        text += f" <small>{ends[0]:+.1f} to {ends[1]:+.1f}</small>"
    return text.replace("-", "−")


def _random(group: Group) -> bool:
    return searcher(group.first) == "random"


class Selection(NamedTuple):
    """The candidates of a row's searches, those of all seeds under each other."""

    group: Group
    score: Array  # [R, A] what they were chosen by
    truth: Array  # [R, A] how good they were on queries, higher is better
    pick: Array  # [R] which was taken
    one_unit: bool  # whether score and truth may be subtracted


def selections(groups: Sequence[Group]) -> list[Selection]:
    """Every row whose runs kept what each candidate was worth."""
    found = []
    for group in groups:
        parts = [arrays for run in group.runs if (arrays := _arrays(run.path / SELECTION))]
        if parts and len({part["score"].shape[1:] for part in parts}) == 1:
            score, truth, pick = (
                np.concatenate([part[name] for part in parts])
                for name in ("score", "truth", "pick")
            )
            one_unit = all(bool(part["one_unit"].all()) for part in parts)
            found.append(Selection(group, score, truth, pick[:, 0].astype(int), one_unit))
    return found


def _arrays(path: Path) -> dict[str, Array]:
    """score, truth, pick and one_unit of selection.npz; a pick that is not told (or -1) is the best
    score.
    """
    if not path.exists():
        return {}
    arrays = {name: np.atleast_2d(value) for name, value in read_npz(path).items()}
    if not {"score", "truth"} <= set(arrays) or arrays["score"].shape != arrays["truth"].shape:
        raise ConfigError((str(path), "should hold score and truth, both [searches, candidates]"))
    best = np.where(np.isfinite(arrays["score"]), arrays["score"], -np.inf).argmax(1, keepdims=True)
    told = arrays.get("pick", np.full(best.shape, -1.0))
    return {
        **arrays,
        "pick": np.where(told >= 0, told, best),
        "one_unit": arrays.get("one_unit", np.ones((1, 1))),
    }


def noise_table(groups: Sequence[Group], found: Sequence[Selection]) -> str:
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
    for one in found:
        seen: Noise = noise(
            list(one.score), list(one.truth), one.pick.tolist(), one_unit=one.one_unit
        )
        numbers = (
            seen.tau,
            seen.spearman,
            seen.regret,
            seen.regret_of_chance,
            seen.gain,
            seen.optimism,
        )
        size = f"{seen.searches} <small>of {seen.candidates}</small>"
        cells = [size, *(NONE if n is None else f"{n:.3g}" for n in numbers)]
        rows.append(row(method_name(one.group, groups), [cell.replace("-", "−") for cell in cells]))
    return table(heads, rows)


def tuning_table(groups: Sequence[Group]) -> str:
    """The best trial's validation score against the test: how much of it was luck; empty without
    tuning.
    """
    up, rows = groups[0].higher_better, []
    for group in groups:
        best = mean([_best_trial(run) for run in group.runs])
        tested = group.value()
        if best is None or tested is None:
            continue
        best = best if up else -best
        gap = (best - tested) * (100 if up else 1)
        cells = [
            str(trials(group.first)),
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


def _best_trial(run: Run) -> float | None:
    record = run.path / "tune" / "trials.json"
    if not record.exists():
        return None
    known = [trial.get("score") for trial in read_json(record)]
    return max((float(value) for value in known if value is not None), default=None)


class Cell(NamedTuple):
    """What a method is made of."""

    start: str
    optimizer: str
    architecture: str


def cell_of(run: Run) -> Cell:
    """Start, optimizer of new tasks, and architecture of a row; a row may say them itself, under
    `factors`.
    """
    said = run.result.get("factors") or {}
    method, model = str(run.result.get("method")), run.config.get("model") or {}
    consumes = run.traits.get("consumes", "nothing")
    pretrained = "pretrained" if consumes == "examples" else "random"
    start = "meta-learned" if method in META or consumes == "episodes" else pretrained
    architecture = str(model.get("name", "fixed"))
    if (run.config.get("method") or {}).get("space"):
        architecture = "drawn at random" if candidates(run) == 1 else "searched"
    return Cell(
        str(said.get("start", start)),
        str(said.get("optimizer", "by hand")),
        str(said.get("architecture", architecture)),
    )


def factors(groups: Sequence[Group], paired: Sequence[Json]) -> str:
    """Pairs of methods that differ in one part alone, and by how much on common tasks; empty where
    there is none.
    """
    up = groups[0].higher_better
    cells = {group.label: cell_of(group.first) for group in groups if group.uses_steps}
    rows = []
    for entry in paired:
        a, b = entry["a"], entry["b"]
        if a not in cells or b not in cells or entry["difference"] is None:
            continue
        differ = [
            name for name in Cell._fields if getattr(cells[a], name) != getattr(cells[b], name)
        ]
        if len(differ) != 1:
            continue
        name = differ[0]
        same = ", ".join(getattr(cells[a], field) for field in Cell._fields if field != name)
        change = f"{getattr(cells[a], name)} instead of {getattr(cells[b], name)}"
        numbers = [
            signed(entry["difference"], up),
            " to ".join(signed(end, up) for end in entry["ci95"]),
        ]
        changed = left(f"{escape(change)}<br><small>{escape(a)} against {escape(b)}</small>")
        rows.append((name, row(escape(name), [changed, left(escape(same)), *numbers])))
    if not rows:
        return ""
    unit = (
        f"{'points' if up else 'squared error'}<small>{'above' if up else 'below'} 0 is "
        f"better</small>"
    )
    heads = ["part", "change<small>methods</small>", "all else the same", unit, "95 % interval"]
    return table(heads, [html for _, html in sorted(rows, key=lambda item: item[0])], left=(1, 2))
