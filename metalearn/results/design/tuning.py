"""`tuning` of comparison.json: the score on validation tasks against the number of trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metalearn.results.records import Group, Json, Run, mean


def tuning_rows(groups: Sequence[Group]) -> list[Json]:
    """Return the `tuning` rows of comparison.json, if validation and test scores are known.

    A row has the best score on validation tasks after each number of trials, mean over seeds, and
    the score on test tasks."""
    rows = []
    for group in groups:
        test_score, series = group.value(), [_best_so_far(run, group) for run in group.runs]
        length = max(map(len, series), default=0)
        if test_score is None or not all(series):
            continue
        # a seed that has tried fewer has found no more
        padded_series = [scores + scores[-1:] * (length - len(scores)) for scores in series]
        best = [mean(column) for column in zip(*padded_series)]
        if best[-1] is not None:
            row = {"label": group.label, "trials": length, "best": best[-1], "tested": test_score}
            flops = mean([_tuning_flops(run) for run in group.runs])
            rows.append({**row, "best_so_far": best, "flops": flops})
    return rows


def _stages(run: Run) -> list[Json]:
    """Return the trials of fields of training, then of fields of new tasks."""
    stages = (run.result.get("tuning") or {}).get("stages") or []
    return [stage for stage in stages if stage.get("scores")]


def _best_so_far(run: Run, group: Group) -> list[float | None]:
    worst = -np.inf if group.higher_better else np.inf
    scores = [worst if v is None else v for stage in _stages(run) for v in stage["scores"]]
    best = np.maximum if group.higher_better else np.minimum
    return [float(v) if np.isfinite(v) else None for v in best.accumulate(scores or [worst])]


def _tuning_flops(run: Run) -> float | None:
    flops = [stage.get("flops") for stage in _stages(run)]
    known_flops = [float(one) for one in flops if one is not None]
    return sum(known_flops) if len(known_flops) == len(flops) else None
