"""Sweeps from Python: `ml.sweep(file)`, with the semantics of `metalearn sweep`."""

from __future__ import annotations

import html
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from metalearn.errors import ConfigError, did_you_mean
from metalearn.report.figures.axes import drawing_on
from metalearn.report.sweep_page import FIGURES, read_sweep, write_sweep_report
from metalearn.results.shown import Text, columns, data_frame, html_table
from metalearn.run.trained.load import LoadedRun, load_run
from metalearn.storage.files import read_json, write_atomic
from metalearn.sweep.command import run_sweep
from metalearn.sweep.file import Sweep, read
from metalearn.sweep.request import claim_folder
from metalearn.sweep.trial_queue import TrialQueue, best_trial


class SweepResult:
    """The trials of a sweep, as stored in sweep.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data: dict[str, Any] = read_json(folder / "sweep.json")
        self._sign = 1.0 if self.data["metric"]["goal"] == "minimize" else -1.0

    @property
    def trials(self) -> list[dict[str, Any]]:
        """One mapping per trial: number, parameters, value, state."""
        return list(self.data["trials"])

    @property
    def best(self) -> dict[str, Any]:
        """The best complete trial; raises ConfigError if every trial failed."""
        trial = best_trial(self.trials, self._sign)
        if trial is None:
            raise ConfigError((str(self.folder), "this sweep has no complete trial"))
        return trial

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.folder / "report.html"

    def load(self, number: int | None = None) -> LoadedRun:
        """Load the trained run of a trial, by default of the best one."""
        run_dir = self.folder / "trials" / str(self.best["number"] if number is None else number)
        return load_run(run_dir)

    def table(self) -> Text:
        """Return a text table with one line per trial, the best first."""
        return columns(self._rows())

    def to_pandas(self) -> Any:
        """Return a DataFrame with one row per trial and its parameters as columns."""
        rows = [{**trial, **trial["parameters"]} for trial in self.trials]
        return data_frame(rows, "`trials`").drop(columns="parameters").set_index("number")

    def plot(self, name: str = "history", ax: Any = None) -> Any:
        """Plot a figure of the report: history, curves, importance, parallel.

        Returns a matplotlib Figure, which a notebook shows; with `ax`, plots into it."""
        if name not in FIGURES:
            raise ConfigError(("plot", f"unknown figure {name!r}; {did_you_mean(name, FIGURES)}"))
        with nullcontext() if ax is None else drawing_on(ax):
            figure = FIGURES[name](read_sweep(self.folder))
        if figure is None:
            raise ConfigError(("plot", f"this sweep has too few trials for the figure {name}"))
        return figure if ax is None else ax

    def __repr__(self) -> str:
        return f"{self.table()}\n{self.folder}"

    def _repr_html_(self) -> str:
        return f"{html_table(self._rows())}<p>{html.escape(str(self.report))}</p>"

    def _rows(self) -> list[list[str]]:
        names = list(dict.fromkeys(key for trial in self.trials for key in trial["parameters"]))
        rows = [["trial", str(self.data["metric"]["name"]), "state", *names]]
        scored = [trial for trial in self.trials if trial["value"] is not None]
        unscored = [trial for trial in self.trials if trial["value"] is None]
        for trial in [*sorted(scored, key=lambda trial: self._sign * trial["value"]), *unscored]:
            value = "–" if trial["value"] is None else f"{trial['value']:.6g}"
            cells = [str(trial["parameters"].get(name, "")) for name in names]
            rows.append([str(trial["number"]), value, trial["state"], *cells])
        return rows


def sweep(
    file: str | Path | Mapping[str, Any], *, workers: int = 1, out: str | Path | None = None
) -> SweepResult:
    """Run a hyperparameter sweep and return its trials. Finished trials are reused.

    file: a sweep file in W&B's schema, as a path, the name of a shipped one, or a mapping, whose
        `program` may be a mapping as well: the content of an experiment file.
    workers: the number of processes that run the trials; 1: this process only.

    Raises ConfigError with all problems before anything is written, and if the folder holds
    another sweep; Stopped after a signal.

    >>> program = ml.experiment(
    ...     ml.algorithms.MAML(),
    ...     task=ml.tasks.Sinusoid(shots=4),
    ...     model=ml.models.MLP(sizes=(8,)),
    ...     meta_steps=2,
    ...     episodes=4,
    ...     steps=(0, 1),
    ...     executor="vmap",
    ... ).resolved()
    >>> rates = {"method.inner_lr": {"values": [0.01, 0.1]}}
    >>> file = {"program": program, "method": "grid", "parameters": rates}
    >>> result = ml.sweep(file, out="runs/swept")
    >>> len(result.trials)
    2
    """
    if isinstance(file, Mapping):
        name = str(file.get("name") or "sweep")
        folder = Path("runs") / name if out is None else Path(out)
        config = _write_and_claim(dict(file), name, folder)
    else:
        config = read(str(file))
        folder = Path("runs") / config.name if out is None else Path(out)
    run_sweep(config, folder, workers)
    TrialQueue(config, folder).write()
    write_sweep_report([folder], folder / "report.html")
    return SweepResult(folder)


def _write_and_claim(data: dict[str, Any], name: str, folder: Path) -> Sweep:
    """Store and read the sweep of a mapping; an error restores the folder."""
    paths = [folder / ".experiment.yaml", folder / ".sweep.yaml"]
    contents = [path.read_bytes() if path.is_file() else None for path in paths]
    absent = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        config = read(str(_write_sweep_file(data, name, folder)))
        claim_folder(config, folder)
    except ConfigError as error:
        for path, content in zip(paths, contents, strict=True):
            if content is None:
                path.unlink(missing_ok=True)
            else:
                write_atomic(path, content)
        for parent in absent:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        places = [place.removeprefix(f"{paths[1]}: ") for place, _ in error.problems]
        texts = [text for _, text in error.problems]
        raise ConfigError(*zip(places, texts, strict=True)) from None
    return config


def _write_sweep_file(data: dict[str, Any], name: str, folder: Path) -> Path:
    """Write the sweep file of a mapping, hidden in the folder, so that workers can read it."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(data.get("program"), Mapping):
        program = folder / ".experiment.yaml"
        write_atomic(program, yaml.safe_dump(dict(data["program"]), sort_keys=False).encode())
        data["program"] = str(program)
    path = folder / ".sweep.yaml"
    write_atomic(path, yaml.safe_dump({**data, "name": name}, sort_keys=False).encode())
    return path
