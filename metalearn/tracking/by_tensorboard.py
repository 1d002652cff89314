"""TensorBoard: event files in the run directory, by torch's own writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.component import option
from metalearn.tracking.sink import Json, Sink, SinkOptions, TrackedRun, scalars


class TensorBoard(SinkOptions):
    """Event files for TensorBoard, in the run directory.

    >>> track = {"tensorboard": {"on": True}}
    >>> task = ml.tasks.Sinusoid()
    >>> experiment = ml.experiment(ml.algorithms.MAML(), task=task, run={"track": track})
    >>> experiment.run.track.tensorboard.on
    True
    """

    on: bool = option(False, "Write event files; needs the package tensorboard.")

    def build(self, run: TrackedRun) -> Sink | None:
        return _Events(run) if self.on else None


class _Events:
    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = run.step + 1 if run.step else None  # later steps are logged again
        self._writer: Any = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge_step)

    def rows(self, rows: Sequence[Json]) -> None:
        for row in rows:
            for name, value in scalars(row).items():
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def result(self, result: Json) -> None:
        for metric in ("accuracy", "loss"):
            for step, value in zip(result["test"]["steps"], result["test"].get(metric) or []):
                if value is not None:
                    self._writer.add_scalar(f"test/{metric}", value, step)
        self._writer.add_text("result", str(result["headline"]))

    def page(self, folder: Path, page: Path) -> None:
        pass  # TensorBoard shows no pages

    def close(self) -> None:
        self._writer.close()
