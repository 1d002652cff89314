"""What rows with architecture search or tuning chose from: their facts, controls, and noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metalearn.errors import ConfigError
from metalearn.evaluate.selection import noise
from metalearn.nas import SEARCHERS
from metalearn.results.records import Array, Group, Json, Run
from metalearn.storage.files import read_npz

# score, truth [R, A]: what each candidate was chosen by, and how good it was on queries
SELECTION = "selection.npz"


def trials(run: Run) -> int:
    """Tuning trials of a run: `budget.trials` where it had fields to tune."""
    trials = (run.config.get("budget") or {}).get("trials")
    return int(trials or 0) if run.method_config.get("tune") else 0


def tuning_flops(run: Run) -> float | None:
    """`budget.flops` of a run that had fields to tune; 0 without such fields, None under trials."""
    budget: Any = (run.config.get("budget") or {}).get("flops")
    return budget if run.method_config.get("tune") or budget is None else 0.0


def searched(run: Run) -> bool:
    """Whether anything was spent on searching architectures."""
    entry = run.phase("search")
    return bool(entry.get("seconds") or (entry.get("once") or {}).get("seconds"))


def searcher(run: Run) -> str:
    """The name of the searcher of a row, "" where it has none."""
    found: Any = run.method_config.get("searcher")
    return str(found.get("name") if isinstance(found, dict) else found or "")


def candidates(run: Run) -> int:
    """How many architectures a row may score."""
    return int(run.method_config.get("candidates") or 0)


def searches(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if any(map(searched, group.runs))]


def is_control(run: Run) -> bool:
    """Whether its searcher is the one that others have to beat."""
    kind = SEARCHERS.get(searcher(run))
    return kind is not None and kind.is_control


def controls(groups: Sequence[Group], paired: Sequence[Json]) -> list[Json]:
    """The `controls` rows: by what share a search differs from a random architecture.

    Its own mean random architecture, on the tasks that both met.

    The interval is that of the paired difference, over the architecture's mean."""
    bases = {
        _regime(group.first): group
        for group in searches(groups)
        if is_control(group.first) and candidates(group.first) == 1
    }
    found = ((group, bases.get(_regime(group.first))) for group in groups)
    return [
        row
        for group, base in found
        if base is not None and base is not group and (row := _over(group, base, paired))
    ]


def _regime(run: Run) -> tuple[str, ...]:
    """What must agree before a row is held against a control: method, space, contained method,
    training tasks."""
    method = run.method_config
    inside = {**(method.get("contains") or {})}
    inside.pop("inner_lr", None)  # may be tuned
    facts = (method.get("name"), method.get("space"), inside, run.config.get("task"))
    return tuple(map(str, facts))


def _over(group: Group, base: Group, paired: Sequence[Json]) -> Json | None:
    own, other = group.at_headline(), base.at_headline()
    if own is None or other is None:
        return None
    tasks = min(own.shape[1], other.shape[1])
    low, high = float(other[:, :tasks].mean()), float(own[:, :tasks].mean())
    if not low or not np.isfinite([low, high]).all():
        return None
    row: Json = {"label": group.label, "base": base.label, "relative": (high - low) / low}
    row["ci95"], names = None, {group.label, base.label}
    pair = next((entry for entry in paired if {entry["a"], entry["b"]} == names), None)
    if pair is not None and pair["ci95"] is not None:
        sign = 1 if pair["a"] == group.label else -1
        row["ci95"] = sorted(sign * end / low for end in pair["ci95"])
    return row


class Selection(NamedTuple):
    """The candidates of a row's searches, those of all seeds under each other."""

    group: Group
    score: Array  # [R, A] what they were chosen by
    truth: Array  # [R, A] how good they were on queries, higher is better
    pick: Array  # [R] which was taken
    one_unit: bool  # whether score and truth may be subtracted


def selections(groups: Sequence[Group]) -> list[Selection]:
    """Every row whose runs recorded the score of each candidate and how good it was."""
    found = []
    for group in groups:
        parts = [arrays for run in group.runs if (arrays := _arrays(run.path / SELECTION))]
        if parts and len({part["score"].shape[1:] for part in parts}) == 1:
            names = ("score", "truth", "pick")
            score, truth, pick = (np.concatenate([part[name] for part in parts]) for name in names)
            one_unit = all(bool(part["one_unit"].all()) for part in parts)
            found.append(Selection(group, score, truth, pick[:, 0].astype(int), one_unit))
    return found


def _arrays(path: Path) -> dict[str, Array]:
    """score, truth, pick and one_unit of selection.npz; a pick that is missing (or -1) is the best
    score."""
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
    """The `selection` rows: rank correlation, regret and optimism of each search.

    Of every search whose candidates are all known."""
    rows = []
    for group, score, truth, pick, one_unit in selections(groups):
        found = noise(list(score), list(truth), pick.tolist(), one_unit=one_unit)
        rows.append({"label": group.label, **found._asdict()})
    return rows
