"""Finished rows -> `comparison.json`: summary, paired differences and checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from metalearn.errors import ConfigError
from metalearn.evaluate import stats
from metalearn.results import costs
from metalearn.results import records as data
from metalearn.results.checks import checks
from metalearn.results.records import Group, Json
from metalearn.results.target import target_of
from metalearn.storage.files import plain, write_json

AUC_AXIS = "log2(1 + steps)"
BOOTSTRAP_SEED = 0
LEAST_TASKS = 5  # that a resample of tasks means anything


def collect(root: Path, *, target: Json | None = None) -> Json:
    """The contents of `comparison.json` for a comparison directory.

    Args:
        root: holds `methods/<label>/seed-<n>/`, each a run directory; rows without a result are
        named by a check. target: what counts as solved ({"metric", "value"}); None: what the
        experiment or validation tasks say.

    Raises:
        ConfigError: no row is finished, or a file is unreadable.
    """
    finished, unfinished = data.run_directories(root)
    if not finished:
        raise ConfigError(
            (str(root), "holds no finished run (methods/<label>/seed-<n>/result.json)")
        )
    groups = data.group(data.load(path) for path in finished)
    return compare(groups, [str(path.relative_to(root)) for path in unfinished], target=target)


def write_comparison(root: Path, *, target: Json | None = None) -> Path:
    """Write `comparison.json` into a comparison directory, atomically and without NaN."""
    write_json(root / "comparison.json", collect(root, target=target))
    return root / "comparison.json"


def compare(
    groups: Sequence[Group], unfinished: Sequence[str] = (), *, target: Json | None = None
) -> Json:
    """Rows, summary, paired differences, break-even and checks of groups that learn the same new
    tasks (schema 1).

    `target`: what counts as solved; by default what the experiment names, else what validation
    tasks say."""
    wanted = target or target_of(groups)
    found = {
        "schema": 1,
        "rows": [run.result for group in groups for run in group.runs],
        "summary": [summary(group) for group in groups],
        "paired": [paired(a, b) for a, b in combinations(groups, 2)],
        "target": wanted,
        "break_even": costs.break_even(groups, wanted),
        "break_even_common": costs.break_even_common(groups, wanted),
        "checks": [check._asdict() for check in checks(groups, unfinished)],
    }
    return dict(plain(found))


def summary(group: Group) -> Json:
    """One label in one line: the headline value with both intervals, the area under the curve, the
    interquartile mean.

    `ci95_tasks` is over tasks, each task's score averaged over seeds first; `ci95_seeds` is the t
    interval over the seeds' values, None for one seed. `auc` is taken over log2(1 + steps),
    `auc_linear` over steps, both divided by the width and of the mean curve that the figures show
    (of a loss, over the tasks that did not diverge where some did); a method without steps has its
    constant."""
    column = group.at_headline()
    curve = data.curve(group)
    heights = [math.nan if value is None else value for value in curve.mean]
    return {
        "label": group.label,
        "metric": group.metric,
        "step": group.first.headline_step if group.uses_steps else None,
        "seeds": [run.seed for run in group.runs],
        "value": group.value(),
        "ci95_tasks": _over_tasks(group, column),
        "ci95_seeds": _over_seeds(group),
        "diverged": group.diverged(),
        "auc": stats.auc(np.log2(1 + np.asarray(curve.steps)), heights),
        "auc_axis": AUC_AXIS,
        "auc_linear": stats.auc(curve.steps, heights),
        "iqm": None
        if column is None
        else stats.iqm(column, -math.inf if group.higher_better else math.inf),
    }


def _over_seeds(group: Group) -> float | None:
    return stats.seeds_ci95([run.result["headline"].get("value") for run in group.runs])


def _over_tasks(group: Group, column: data.Array | None) -> float | None:
    if len(group.runs) == 1 or column is None:  # what the run itself says
        return data.mean([run.result["headline"].get("ci95") for run in group.runs])
    return stats.describe(column.mean(0)).ci95


def paired(a: Group, b: Group) -> Json:
    """Difference a - b at each one's headline step, over the seeds that both have and the same test
    tasks.

    Where one was tested on fewer, over those that both met, which are the first ones.
    """
    entry: Json = {
        "a": a.label,
        "b": b.label,
        "metric": a.metric,
        "difference": None,
        "ci95": None,
        "p": None,
    }
    shared = sorted({run.seed for run in a.runs} & {run.seed for run in b.runs})
    entry |= {"seeds": shared, "why": None}
    if a.metric != b.metric or not shared:
        return entry | {"why": "other metrics" if a.metric != b.metric else "no seed in common"}
    first, second = (
        Group(g.label, [run for run in g.runs if run.seed in shared]).at_headline() for g in (a, b)
    )
    if first is None or second is None or len(first) != len(second) or _prints(a) != _prints(b):
        return entry | {"why": "the rows were not scored on the same test episodes"}
    tasks = min(first.shape[1], second.shape[1])
    entry |= {"tasks": tasks}
    if tasks < LEAST_TASKS:
        return entry | {
            "why": f"{tasks} common tasks are too few for an interval: it takes {LEAST_TASKS}"
        }
    found = stats.paired(first[:, :tasks], second[:, :tasks], BOOTSTRAP_SEED)
    if found.undefined:
        return entry | {"why": f"undefined: the score of {found.undefined} tasks is not finite"}
    return entry | {"difference": found.difference, "ci95": found.ci95, "p": found.p}


def _prints(group: Group) -> set[str]:
    return {str((run.result.get("episodes") or {}).get("fingerprint")) for run in group.runs}
