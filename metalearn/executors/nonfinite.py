"""Meta-steps whose numbers are not finite.

run.on_nan    raise      the run ends with exit code 3
              skip       such a step changes nothing but the count of steps"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from metalearn.executors.executor import Step
from metalearn.tree import leaves, tree_map
from metalearn.types import MetaState, Metrics

SKIPPED = "skipped"  # the metric that says whether a step was left out


class NotFinite(Exception):
    """Numbers that are not finite, first seen in a step."""

    def __init__(self, step: int, names: Sequence[str]) -> None:
        super().__init__(f"{', '.join(names)} not finite at step {step}")
        self.step = step


def skip_nonfinite(step: Step) -> Step:
    """Return `step` that keeps the old state if the new one, or a metric, is not finite.

    It does not synchronise with the device."""

    def call(state: MetaState, data: Any) -> tuple[MetaState, Metrics]:
        new, metrics = step(state, data)
        ok = all_finite((new.meta, new.opt, metrics))

        def select(after: Any, before: Any) -> Any:
            return None if after is None else torch.where(ok, after, before)

        result = tree_map(select, new, state)
        values = {
            name: torch.where(ok, value, torch.zeros_like(value)) for name, value in metrics.items()
        }
        return result._replace(step=new.step), {**values, SKIPPED: (~ok).to(state.step.dtype)}

    return call


def all_finite(tree: Any) -> torch.Tensor:
    """[] bool."""
    return torch.stack([leaf.isfinite().all() for leaf in leaves(tree)]).all()


def summary(buffer: Sequence[tuple[int, Metrics]]) -> tuple[dict[str, float], list[int]]:
    """(mean metrics of some steps, those that were skipped); NotFinite for other bad numbers.

    Means are over the steps that were not skipped; of no such step they are not finite."""
    columns = {name: torch.stack([metrics[name] for _, metrics in buffer]) for name in buffer[0][1]}
    skipped = columns.get(SKIPPED)
    means = {name: float(values.mean()) for name, values in columns.items()}
    if skipped is not None and means[SKIPPED] > 0:
        kept = 1 - means[SKIPPED]
        means = {n: v if n == SKIPPED else v / kept if kept else math.nan for n, v in means.items()}
    skipped_steps = [
        step
        for (step, _), value in zip(buffer, [] if skipped is None else skipped.tolist())
        if value
    ]
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        finite = torch.stack([columns[name].isfinite() for name in bad]).all(0).tolist()
        first = next((step for (step, _), ok in zip(buffer, finite) if not ok), buffer[0][0])
        raise NotFinite(first, bad)
    return means, skipped_steps


def with_nan_policy(step: Step, on_nan: str) -> Step:
    """`step`, which skips non-finite updates if `on_nan` is skip."""
    return skip_nonfinite(step) if on_nan == "skip" else step
