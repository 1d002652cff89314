"""One run: an experiment with one seed in its directory; immutable, stages return another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metalearn.config.build import Parts, rebuild
from metalearn.config.experiment import Experiment
from metalearn.distributed.ranks import ALONE, Ranks
from metalearn.evaluate.ledger import CostLedger, Entry
from metalearn.storage.files import append_lines, write_yaml
from metalearn.tracking.tracker import Tracker


@dataclass(frozen=True)
class Job:
    """What the stages of a run work on; cost is written to its ledger."""

    experiment: Experiment
    folder: Path
    parts: Parts  # built of the experiment
    ledger: CostLedger
    ranks: Ranks = ALONE
    planned: bool = False  # whether config.yaml says how steps are executed
    request: Mapping[str, Any] = field(default_factory=dict)  # as of run.directory.request
    # cost of the run that it starts from, by phase
    started: Mapping[str, Entry] = field(default_factory=dict)
    tracker: Tracker | None = None  # None: a trial of tuning
    trial: bool = False  # of tuning: only validation tasks are scored
    # of a sweep: called with metrics.jsonl after every validation, raises to end the trial
    on_validation: Callable[[Path], None] | None = None

    @property
    def seed(self) -> int:
        return self.experiment.run.seeds[0]

    @property
    def title(self) -> str:
        return f"{self.experiment.label} seed {self.seed}"

    @property
    def phase(self) -> str:
        return "pretrain" if self.parts.method.traits.consumes == "examples" else "meta_train"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def with_experiment(self, experiment: Experiment) -> Job:
        """Return the run with another experiment on the same tasks, and write config.yaml."""
        parts = rebuild(self.parts, experiment)
        self.ranks.on_rank0(lambda: write_yaml(self.folder / "config.yaml", experiment.resolved()))
        return replace(self, experiment=experiment, parts=parts)

    def record(self, rows: list[dict[str, Any]]) -> None:
        """Append to metrics.jsonl, then call the loggers, whose time is set-up."""
        self.ranks.on_rank0(lambda: append_lines(self.metrics, rows))
        if self.tracker is not None:
            with self.ledger.span("setup"):
                self.tracker.rows(rows)


def wall_seconds(*ledgers: CostLedger) -> float:
    """Return the wall-clock seconds of a run, each of which is in one phase of one ledger."""
    spent = [entry["seconds"] for ledger in ledgers for entry in ledger.totals().values()]
    return sum(seconds for seconds in spent if seconds == seconds)
