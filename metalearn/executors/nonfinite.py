"""Meta-steps whose numbers are not finite: found, written down with what they learned from, and
dealt with.

run.on_nan    raise      the run ends with exit code 3
              skip       such a step changes nothing but the count of steps
              rollback   back to the newest checkpoint, and on with other tasks in the steps up to
              the bad one

`nan.jsonl` holds a line for each: the step, its metrics, and the seeds of the tasks of that step
and of the one before, whose update may be what spoiled the parameters. Step n (from 1) learns from
`fold_in(seed, "train", number)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metalearn.executors.executor import Draw, Step
from metalearn.rng import fold_in
from metalearn.storage.files import append_lines, cut_lines, read_lines
from metalearn.tree import leaves, tree_map
from metalearn.types import MetaState, Metrics

SKIPPED = "skipped"  # the metric that says whether a step was left out
TRIES = 3  # times that one checkpoint is gone back to
APART = 40  # bits: no run has so many steps, so that the numbers of redrawn tasks are nobody else's


class NotFinite(Exception):
    """Numbers that are not finite, first seen in a step."""

    def __init__(self, step: int, names: Sequence[str]) -> None:
        super().__init__(f"{', '.join(names)} not finite by step {step}")
        self.step = step


class Redrawn(NamedTuple):
    """Steps after `since` up to `until` that learn from other tasks than at first."""

    since: int
    until: int
    attempt: int


def skip_nonfinite(step: Step) -> Step:
    """`step` that keeps the old state where the new one, or a metric, is not finite; no wait for
    the device.
    """

    def call(state: MetaState, data: Any) -> tuple[MetaState, Metrics]:
        new, metrics = step(state, data)
        ok = all_finite((new.meta, new.opt, metrics))

        def chosen(after: Any, before: Any) -> Any:
            return None if after is None else torch.where(ok, after, before)

        kept = tree_map(chosen, new, state)
        shown = {
            name: torch.where(ok, value, torch.zeros_like(value)) for name, value in metrics.items()
        }
        return kept._replace(step=new.step), {**shown, SKIPPED: (~ok).to(state.step.dtype)}

    return call


def all_finite(tree: Any) -> torch.Tensor:
    """[] bool."""
    return torch.stack([leaf.isfinite().all() for leaf in leaves(tree)]).all()


def summary(buffer: Sequence[tuple[int, Metrics]]) -> tuple[dict[str, float], list[int]]:
    """(means of some steps' metrics, those of them that were skipped); NotFinite where a step's
    numbers are not.

    Means are over the steps that were not skipped; of no such step they are not finite.
    """
    columns = {name: torch.stack([metrics[name] for _, metrics in buffer]) for name in buffer[0][1]}
    left_out = columns.get(SKIPPED)
    means = {name: float(values.mean()) for name, values in columns.items()}
    if left_out is not None and means[SKIPPED] > 0:
        share = 1 - means[SKIPPED]
        means = {
            n: v if n == SKIPPED else v / share if share else math.nan for n, v in means.items()
        }
    steps = [
        step
        for (step, _), value in zip(buffer, [] if left_out is None else left_out.tolist())
        if value
    ]
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        finite = torch.stack([columns[name].isfinite() for name in bad]).all(0).tolist()
        first = next((step for (step, _), ok in zip(buffer, finite) if not ok), buffer[0][0])
        raise NotFinite(first, bad)
    return means, steps


class Diary:
    """`nan.jsonl` of a run, and which tasks its steps learn from."""

    def __init__(self, path: Path, seed: int, draw: Draw) -> None:
        self.path, self._seed, self._draw = path, seed, draw
        self.redrawn: list[Redrawn] = []

    def open(self, done: int) -> None:
        """Forget what a resumed run has not yet done."""
        if self.path.exists():
            cut_lines(self.path, done)
        rows = [row for row in read_lines(self.path) if row.get("policy") == "rollback"]
        self.redrawn = [Redrawn(row["step"], row["first_bad"], row["attempt"]) for row in rows]

    def number(self, done: int) -> int:
        """The number of the tasks that the step after `done` learns from."""
        attempts = [one.attempt for one in self.redrawn if one.since <= done < one.until]
        return done + (max(attempts, default=0) << APART)

    def write(self, policy: str, step: int, **more: Any) -> None:
        """A line about a bad step with its tasks' seeds; under rollback `step` is the one that is
        gone back to.
        """
        bad = more.get("first_bad", step)
        batches = [self._batch(n) for n in (bad - 1, bad) if n > 0]
        append_lines(
            self.path,
            [{"step": step, "policy": policy, "seed": self._seed, **more, "batches": batches}],
        )

    def _batch(self, step: int) -> dict[str, Any]:
        number = self.number(step - 1)
        data = self._draw(fold_in(self._seed, "train", number))
        keys = (
            data.info["key"].tolist() if hasattr(data, "info") else None
        )  # a batch of examples has one seed
        return {"step": step, "number": number, "keys": keys}

    def go_back(self, since: int, until: int) -> bool:
        """Write down that the steps after `since` up to `until` are made anew; False where that was
        tried enough.
        """
        tried = sum(one.since == since for one in self.redrawn)
        if tried == TRIES:
            return False
        self.write("rollback", since, first_bad=until, attempt=tried + 1)
        self.redrawn.append(Redrawn(since, until, tried + 1))
        return True


def guarded(step: Step, policy: str) -> Step:
    """`step` under the policy of a run."""
    return skip_nonfinite(step) if policy == "skip" else step
