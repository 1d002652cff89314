"""Controls that stand beside every architecture search, whether or not the file names them.

Li & Talwalkar 2019 (arXiv:1902.07638) and Yang et al. 2020 (arXiv:1912.12522): a search is worth
what it finds beyond random search with the same budget, beyond a network drawn at random, and
beyond the field's network with tuned hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metalearn.config.experiment import Experiment, Plan
from metalearn.config.sections import TuneRange
from metalearn.nas import PerTaskNAS, SharedNAS
from metalearn.nas.searchers.random_search import RandomSearch
from metalearn.transfer import Scratch

RATES = TuneRange(min=0.003, max=3, distribution="log_uniform")  # of the tuned fixed network


def with_controls(plan: Plan) -> tuple[Plan, list[str]]:
    """The comparison with the controls that it lacks, and a sentence for each of them."""
    if not plan.comparison:
        return plan, []
    rows, notes = list(plan.experiments), []
    for one in plan.experiments:
        if not isinstance(one.method, (PerTaskNAS, SharedNAS)) or one.found is not None:
            continue  # no search, or none that is still to come
        for label, searcher, candidates, what in (
            (
                f"{one.label}_random",
                RandomSearch(),
                one.method.candidates,
                "random search with as many candidates",
            ),
            (f"{one.label}_mean", RandomSearch(), 1, "the mean random architecture"),
        ):
            method = one.method.model_copy(update={"searcher": searcher, "candidates": candidates})
            if any(_same(row, one, method) for row in rows):
                continue
            rows.insert(rows.index(one) + 1, one.replace(label=_free(label, rows), method=method))
            notes.append(f"beside {one.label}: {what}, added")
    fixed = _tuned_network(rows)
    if fixed is not None:
        rows.append(fixed)
        notes.append(
            "beside the searches: the fixed network from scratch, its step size tuned, added"
        )
    return Plan(**{**plan.__dict__, "experiments": tuple(rows)}), notes


def _searches(row: Experiment) -> bool:
    return isinstance(row.method, (PerTaskNAS, SharedNAS))


def _same(row: Experiment, one: Experiment, method: Any) -> bool:
    """Whether a row is `one` with another search method: the same tasks, training, contained
    method, test.
    """
    return bool(
        row.method == method
        and row.replace(label="", method=None) == one.replace(label="", method=None)
    )


def _free(label: str, rows: Sequence[Experiment]) -> str:
    taken = {row.label for row in rows}
    while label in taken:
        label += "_"
    return label


def _tuned_network(rows: Sequence[Experiment]) -> Experiment | None:
    """Scratch with tuning, where the file has no such row and there are trials to tune with."""
    like = next((row for row in rows if _searches(row)), None)
    if (
        like is None
        or like.budget.trials == 0
        or any(row.tune and isinstance(row.method, Scratch) for row in rows)
    ):
        return None
    widest = max(
        rows, key=lambda row: row.evaluate.episodes
    )  # not the few tasks that a search is tested on
    run = like.run.model_copy(update={"meta_steps": 0, "validate": widest.run.validate})
    changes: dict[str, Any] = {
        "contains": None,
        "found": None,
        "start": None,
        "tune": {"inner_lr": RATES},
    }
    changes["evaluate"] = widest.evaluate
    return like.replace(label=_free("scratch_tuned", rows), method=Scratch(), run=run, **changes)
