"""Control methods that are added to every architecture search, whether or not the file names them.

Those of the method itself (`MethodComponent.controls`), and the field's network with tuned
hyper-parameters (Yang et al. 2020, arXiv:1912.12522)."""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.component import MethodComponent
from metalearn.config.experiment import Experiment, Plan
from metalearn.config.registry import METHODS
from metalearn.config.sections import TuneRange

RATES = TuneRange(min=0.003, max=3, distribution="log_uniform")  # of the tuned fixed network


def with_controls(plan: Plan) -> tuple[Plan, list[str]]:
    """Return the comparison with the controls that it lacks, and a sentence for each of them."""
    if not plan.comparison:
        return plan, []
    rows, notes = list(plan.experiments), []
    for one in plan.experiments:
        if one.found is not None:
            continue  # its search has already been made
        for suffix, (what, method) in one.method.controls.items():
            if any(_is_control(row, one, method) for row in rows):
                continue
            label = _free_label(f"{one.label}_{suffix}", rows)
            rows.insert(rows.index(one) + 1, one.replace(label=label, method=method))
            notes.append(f"added for {one.label}: {what}")
    network = _tuned_network(rows)
    if network is not None:
        rows.append(network)
        what = f"the fixed network ({network.method.name}) with a tuned step size"
        notes.append(f"added for the searches: {what}")
    return Plan(**{**plan.__dict__, "experiments": tuple(rows)}), notes


def _is_control(row: Experiment, one: Experiment, method: MethodComponent) -> bool:
    """Return whether a row is `one` with another search method, and the rest is equal."""
    return bool(
        row.method == method
        and row.replace(label="", method=None) == one.replace(label="", method=None)
    )


def _free_label(label: str, rows: Sequence[Experiment]) -> str:
    labels = {row.label for row in rows}
    while label in labels:
        label += "_"
    return label


def _tuned_network(rows: Sequence[Experiment]) -> Experiment | None:
    """Return the fixed network with tuning if the file has no such row and has tuning trials."""
    like = next((row for row in rows if row.method.controls), None)
    if (
        like is None
        or not like.budget.tunes
        or any(row.tune and row.method.controls_searches for row in rows)
    ):
        return None
    method = next(kind(name=name) for name, kind in METHODS.items() if kind.controls_searches)
    # the test of the other methods: that of a search may have fewer tasks
    widest = max(rows, key=lambda row: row.evaluate.episodes)
    return like.replace(
        label=_free_label(f"{method.name}_tuned", rows),
        method=method,
        contains=None,
        found=None,
        start=None,
        tune={"inner_lr": RATES},
        evaluate=widest.evaluate,
        run=like.run.model_copy(update={"meta_steps": 0, "validate": widest.run.validate}),
    )
