"""Rows with architecture search or tuning: their candidates, controls, and selection noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.errors import ConfigError
from metalearn.evaluate.breakeven import LEAST_TASKS
from metalearn.evaluate.random_effects import ratio_interval
from metalearn.evaluate.selection import noise
from metalearn.nas import SEARCHERS
from metalearn.results.design.tuning import stage_trials
from metalearn.results.records import Array, Group, Json, Run
from metalearn.storage.files import read_npz

# score, truth [R, A]: what each candidate was chosen by, and how good it was on queries
SELECTION = "selection.npz"


def tuning_trials(run: Run) -> int:
    """Return the number of tuning trials that a run made, in all stages."""
    return sum(stage.made for stage in stage_trials(run))


def tuning_flops(run: Run) -> float | None:
    """Return `budget.flops` of a run with fields to tune; 0 without such fields, None under
    trials."""
    budget: Any = (run.config.get("budget") or {}).get("flops")
    return budget if run.method_config.get("tune") or budget is None else 0.0


def has_search(run: Run) -> bool:
    """Return whether a run has a cost of searching architectures."""
    entry = run.phase("search")
    return bool(entry.get("seconds") or (entry.get("once") or {}).get("seconds"))


def searcher(run: Run) -> str:
    """Return the name of the searcher of a row, or "" if it has none."""
    setting: Any = run.method_config.get("searcher")
    return str(setting.get("name") if isinstance(setting, dict) else setting or "")


def candidate_count(run: Run) -> int:
    """Return how many architectures a row may score."""
    return int(run.method_config.get("candidates") or 0)


def searches(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if any(map(has_search, group.runs))]


def is_control(run: Run) -> bool:
    """Return whether its searcher is the control of the others."""
    kind = SEARCHERS.get(searcher(run))
    return kind is not None and kind.is_control


def controls(groups: Sequence[Group]) -> list[Json]:
    """Return the `controls` rows: the relative difference of a search to a random architecture.

    It is the mean random architecture of the same setting, on common seeds and tasks. The interval
    is Fieller's, so it includes the variance of the random architecture's mean."""
    bases = {
        _regime(group.first): group
        for group in searches(groups)
        if is_control(group.first) and candidate_count(group.first) == 1
    }
    matches = ((group, bases.get(_regime(group.first))) for group in groups)
    return [
        row
        for group, base in matches
        if base is not None and base is not group and (row := _relative_difference(group, base))
    ]


def _regime(run: Run) -> tuple[str, ...]:
    """Return what a row and its control must have in common.

    That is the method, space, contained method and training tasks."""
    method = run.method_config
    inside = {**(method.get("contains") or {})}
    inside.pop("inner_lr", None)  # may be tuned
    facts = (method.get("name"), method.get("space"), inside, run.config.get("task"))
    return tuple(map(str, facts))


def _relative_difference(group: Group, base: Group) -> Json | None:
    seeds = {run.seed for run in group.runs} & {run.seed for run in base.runs}
    own, other = (
        Group(one.label, [run for run in one.runs if run.seed in seeds]).at_headline()
        if seeds
        else None
        for one in (group, base)
    )
    if own is None or other is None or len(own) != len(other):
        return None
    tasks = min(own.shape[1], other.shape[1])
    own, other = own[:, :tasks], other[:, :tasks]
    low, high = float(other.mean()), float(own.mean())
    if not low or not np.isfinite([low, high]).all():
        return None
    ends = ratio_interval(own, other) if tasks >= LEAST_TASKS else None
    ci95 = None if ends is None else [end - 1 for end in ends]
    return {
        "label": group.label,
        "base": base.label,
        "relative": (high - low) / low,
        "ci95": ci95,
        "seeds": len(seeds),
    }


class Selection(NamedTuple):
    """The candidates of a row's searches, with those of all seeds concatenated."""

    group: Group
    score: Array  # [R, A] what they were chosen by
    truth: Array  # [R, A] how good they were on queries, higher is better
    pick: Array  # [R] which was taken
    one_unit: bool  # whether score and truth may be subtracted


def selections(groups: Sequence[Group]) -> list[Selection]:
    """Return every row whose runs recorded the score of each candidate and its value on queries."""
    rows = []
    for group in groups:
        parts = [arrays for run in group.runs if (arrays := _arrays(run.path / SELECTION))]
        if parts and len({part["score"].shape[1:] for part in parts}) == 1:
            names = ("score", "truth", "pick")
            score, truth, pick = (np.concatenate([part[name] for part in parts]) for name in names)
            one_unit = all(bool(part["one_unit"].all()) for part in parts)
            rows.append(Selection(group, score, truth, pick[:, 0].astype(int), one_unit))
    return rows


def _arrays(path: Path) -> dict[str, Array]:
    """Return score, truth, pick and one_unit of selection.npz.

    A missing pick (or -1) is the best score."""
    if not path.exists():
        return {}
    arrays = {name: np.atleast_2d(value) for name, value in read_npz(path).items()}
    if not {"score", "truth"} <= set(arrays) or arrays["score"].shape != arrays["truth"].shape:
        raise ConfigError((str(path), "should hold score and truth, both [searches, candidates]"))
    best = np.where(np.isfinite(arrays["score"]), arrays["score"], -np.inf).argmax(1, keepdims=True)
    pick = arrays.get("pick", np.full(best.shape, -1.0))
    one_unit = arrays.get("one_unit", np.ones((1, 1)))
    return {**arrays, "pick": np.where(pick >= 0, pick, best), "one_unit": one_unit}


def selection_rows(groups: Sequence[Group]) -> list[Json]:
    """Return the `selection` rows: rank correlation, regret and optimism of each search.

    They include every search whose candidates are all known."""
    rows = []
    for group, score, truth, pick, one_unit in selections(groups):
        statistics = noise(list(score), list(truth), pick.tolist(), one_unit=one_unit)
        rows.append({"label": group.label, **statistics._asdict()})
    return rows
