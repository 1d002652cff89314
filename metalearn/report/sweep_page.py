"""A sweep's folder -> one self-contained page: the best trial, what mattered, every trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from metalearn.errors import ConfigError
from metalearn.report.figures.style import svg
from metalearn.report.figures.sweep import (
    SweepData,
    curves_figure,
    history_figure,
    importance_figure,
    parallel_figure,
)
from metalearn.report.numbers import word
from metalearn.report.render import render
from metalearn.storage.files import read_json, read_lines, write_atomic
from metalearn.storage.schema import SweepFile, check_schema

Json = dict[str, Any]
FIGURES: dict[str, Callable[[SweepData], Figure | None]] = {
    "history": history_figure,
    "curves": curves_figure,
    "importance": importance_figure,
    "parallel": parallel_figure,
}
FEWEST = 6  # complete trials for which importance is estimated
SEED = 0


def is_sweep(folder: Path) -> bool:
    return (folder / "sweep.json").is_file()


def write_sweep_report(folders: Sequence[Path], out: Path) -> Path:
    """Write one page for the folders of one sweep or several; the same folders give the same bytes.

    Raises ConfigError if one of their files is unreadable."""
    sweep_data = [read_sweep(folder) for folder in folders]
    title = ", ".join(swept.name for swept in sweep_data)
    sweeps = [_view(swept, f"w{place}") for place, swept in enumerate(sweep_data)]
    write_atomic(out, render("sweep.html.j2", title=title, sweeps=sweeps).encode())
    return out


def read_sweep(folder: Path) -> SweepData:
    """Return the sweep of a folder, without running trials."""
    data = check_schema(SweepFile, read_json(folder / "sweep.json"), folder / "sweep.json")
    metric, trials = data["metric"], data["trials"]
    split, _, name = metric["name"].partition("/")
    curves: dict[int, list[tuple[int, float]]] = {}
    for trial in trials:
        if split == "valid":
            rows = read_lines(folder / "trials" / str(trial["number"]) / "metrics.jsonl")
        else:
            rows = []
        validations = [
            (row.get("step"), row.get(name)) for row in rows if row.get("split") == "valid"
        ]
        numbers = [
            (at, float(value))
            for at, value in validations
            if type(at) is int and isinstance(value, (int, float))
        ]
        if numbers:
            curves[trial["number"]] = numbers
    swept = SweepData(
        folder.resolve().name, metric["name"], metric["goal"], data["best"], trials, curves
    )
    return SweepData(**{**swept.__dict__, "importance": importance(swept)})


def importance(swept: SweepData) -> dict[str, float]:
    """Return fractions of the variance by functional ANOVA of a forest; empty with too few trials.

    Hutter et al. 2014."""
    complete = [
        trial
        for trial in swept.trials
        if trial["state"] == "complete" and trial["value"] is not None
    ]
    names = swept.varied_parameters
    if len(complete) < FEWEST or len({trial["value"] for trial in complete}) < 2 or not names:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {
        name: _distribution(optuna, [trial["parameters"].get(name) for trial in swept.trials])
        for name in names
    }
    study = optuna.create_study()
    for trial in complete:
        values = {
            name: _trial_value(distributions[name], trial["parameters"].get(name)) for name in names
        }
        study.add_trial(
            optuna.trial.create_trial(
                params=values, distributions=distributions, value=trial["value"]
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in shares.items()}


def _distribution(optuna: Any, values: Sequence[Any]) -> Any:
    if all(type(value) in (int, float) for value in values):
        low, high = float(min(values)), float(max(values))
        return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 20)
    return optuna.distributions.CategoricalDistribution(sorted({word(value) for value in values}))


def _trial_value(distribution: Any, value: Any) -> Any:
    return float(value) if hasattr(distribution, "low") else word(value)


def _view(swept: SweepData, mark: str) -> Json:
    """Return what the template reads of one sweep."""
    figures = {name: draw(swept) for name, draw in FIGURES.items()} if swept.scored_trials else {}
    states = [trial["state"] for trial in swept.trials]
    return {
        "swept": swept,
        "best": next((trial for trial in swept.trials if trial["number"] == swept.best), None),
        "counts": {state: states.count(state) for state in ("complete", "pruned", "failed")},
        "figures": {
            name: svg(figure, f"{mark}-{name}")
            for name, figure in figures.items()
            if figure is not None
        },
        "names": list(
            dict.fromkeys(name for trial in swept.trials for name in trial["parameters"])
        ),
        "ranked": _rank_trials(swept),
    }


def _rank_trials(swept: SweepData) -> list[Json]:
    """Return the best first; unfinished trials after the complete ones, those without a value
    last."""
    sign = 1.0 if swept.goal == "minimize" else -1.0

    def place(trial: Json) -> tuple[bool, bool, float]:
        value = trial["value"]
        return value is None, trial["state"] != "complete", sign * (value or 0.0)

    return sorted(swept.trials, key=place)


def split_kinds(dirs: Sequence[Path]) -> bool:
    """Return whether all of the folders are sweeps. Raises ConfigError if only some are."""
    sweeps = [folder for folder in dirs if is_sweep(folder)]
    if sweeps and len(sweeps) != len(dirs):
        text = "is a sweep, others are not: a page of their own each"
        raise ConfigError(*((str(folder), text) for folder in sweeps))
    return bool(sweeps)
