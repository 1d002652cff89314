"""What tuning did in a run, and `tuning` of comparison.json: validation score by trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.results.records import Group, Json, Run, mean

# entries of `tuned` in result.json that are no hyperparameters
_NO_FIELDS = ("headline_step", "on_edge", "from_seed")


class StageTrials(NamedTuple):
    """The trials of one stage of tuning."""

    made: int
    limit: int  # trials that the budget allows
    exhausted: bool  # whether fewer were made because no other value was left to try


def tuned_fields(run: Run) -> Json:
    """Return the hyperparameters that tuning chose, with their values.

    The headline step is not one of them: it is chosen on validation tasks in untuned runs too."""
    values = run.result.get("tuned") or {}
    return {name: value for name, value in values.items() if name not in _NO_FIELDS}


def has_tuned_range(run: Run) -> bool:
    """Return whether a tuned field has a range with ends, not a list of values."""
    spans = run.method_config.get("tune") or {}
    return any(
        not isinstance(spans.get(name), dict) or spans[name].get("values") is None
        for name in tuned_fields(run)
    )


def stage_trials(run: Run) -> list[StageTrials]:
    """Return the trials that were made in each stage; without a record, those of the budget."""
    if not run.method_config.get("tune"):
        return []
    record = run.result.get("tuning") or {}
    if not (stages := record.get("stages")):
        limit = int((run.config.get("budget") or {}).get("trials") or 0)
        return [StageTrials(limit, limit, exhausted=False)]
    counts = [int(stage["trials"]) for stage in stages]
    limits = [int(record.get("trials") or count) for count in counts]
    return [StageTrials(n, limit, exhausted=n < limit) for n, limit in zip(counts, limits)]


def describe_trials(run: Run) -> str:
    """Return the number of trials made in each stage, `2 (all values)` of an exhausted set."""
    counts = [f"{n} (all values)" if end else f"{n}" for n, _, end in stage_trials(run)]
    return " + ".join(counts) or "0"


def seed_of_tuning(run: Run) -> int:
    """Return the seed whose trials chose the values of a run: another one under `budget.once`."""
    seed = (run.result.get("tuning") or {}).get("seed")
    return run.seed if seed is None else int(seed)


def fields_tuned_after_training(run: Run) -> list[str]:
    """Return the tuned fields whose trials were made with the trained meta-parameters.

    Validations during training used their values of the file. Without training there are none:
    a run that is not trained is validated after tuning."""
    steps = [int(line["step"]) for line in run.valid("valid")]
    late = [stage for stage in _stages(run) if stage.get("acts_in") == "new tasks"]
    return [field for stage in late for field in stage["fields"]] if max(steps, default=0) else []


def score_after_training(run: Run) -> float | None:
    """Return the validation score of the values that were tuned after training.

    None if no field was, or if the trials are those of another seed."""
    if not fields_tuned_after_training(run) or seed_of_tuning(run) != run.seed:
        return None
    scores = [s for s in _stages(run)[-1]["scores"] if s is not None]
    return (max if run.metric == "accuracy" else min)(scores, default=None)


def tuning_rows(groups: Sequence[Group]) -> list[Json]:
    """Return the `tuning` rows of comparison.json, if validation and test scores are known.

    A row has the best score on validation tasks after each number of trials, mean over the seeds
    that tuned (`seeds`), and the score on test tasks: `tested` over all seeds, `tested_same_seeds`
    over those that tuned; None if these are not among the runs."""
    rows = []
    for group in groups:
        own_runs = [run for run in group.runs if seed_of_tuning(run) == run.seed]
        series = [_best_so_far(run, group) for run in own_runs or group.runs[:1]]
        test_score = group.value()
        length = max(map(len, series), default=0)
        if test_score is None or not all(series):
            continue
        # a seed that has tried fewer has found no more
        padded_series = [scores + scores[-1:] * (length - len(scores)) for scores in series]
        best = [mean(column) for column in zip(*padded_series)]
        if best[-1] is not None:
            row: Json = {
                "label": group.label,
                "trials": length,
                "best": best[-1],
                "tested": test_score,
            }
            flops = mean([trial_flops(run) for run in group.runs])
            row |= {"best_so_far": best, "flops": flops}
            row["seeds"] = sorted({seed_of_tuning(run) for run in group.runs})
            row["tested_same_seeds"] = Group(group.label, own_runs).value()
            rows.append(row)
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


def trial_flops(run: Run) -> float | None:
    """Return the FLOPs of all trials of a run, or None if those of a stage were not recorded."""
    flops = [stage.get("flops") for stage in _stages(run)]
    known_flops = [float(one) for one in flops if one is not None]
    return sum(known_flops) if len(known_flops) == len(flops) else None
