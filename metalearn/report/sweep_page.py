"""A sweep's folder -> one self-contained page: the best trial, what mattered, every trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError
from metalearn.report.figures import curves
from metalearn.report.figures.sweep import (
    Swept,
    curves_figure,
    history_figure,
    importance_figure,
    parallel_figure,
    word,
)
from metalearn.report.html import left, page, plot, row, table
from metalearn.storage.files import read_json, read_lines, write_atomic
from metalearn.storage.schema import SweepFile, checked

FEWEST = 6  # complete trials that importance is told of
SEED = 0


def is_sweep(folder: Path) -> bool:
    return (folder / "sweep.json").is_file()


def write_sweep_report(folders: Sequence[Path], out: Path) -> Path:
    """Write one page for the folders of one sweep or several; the same folders give the same bytes.

    Raises ConfigError where a file of theirs is unreadable.
    """
    found = [read_swept(folder) for folder in folders]
    title = ", ".join(swept.name for swept in found)
    parts = [f"<h1>Which settings learn best?</h1>\n<p class='meta'>{escape(title)}</p>"]
    for place, (folder, swept) in enumerate(zip(folders, found)):
        parts.append(_section(folder, swept, f"w{place}", several=len(found) > 1))
    parts.append(
        "<footer>Made by <code>metalearn report</code> from the folder of a sweep.</footer>"
    )
    write_atomic(out, page(title, "\n".join(parts)).encode())
    return out


def read_swept(folder: Path) -> Swept:
    """The sweep of a folder; trials that are under way are not in it."""
    data = checked(SweepFile, read_json(folder / "sweep.json"), folder / "sweep.json")
    metric, trials = data["metric"], data["trials"]
    split, _, name = metric["name"].partition("/")
    curves: dict[int, list[tuple[int, float]]] = {}
    for trial in trials:
        rows = (
            read_lines(folder / "trials" / str(trial["number"]) / "metrics.jsonl")
            if split == "valid"
            else []
        )
        looks = [(row.get("step"), row.get(name)) for row in rows if row.get("split") == "valid"]
        numbers = [
            (at, float(value))
            for at, value in looks
            if type(at) is int and isinstance(value, (int, float))
        ]
        if numbers:
            curves[trial["number"]] = numbers
    swept = Swept(
        folder.resolve().name, metric["name"], metric["goal"], data["best"], trials, curves
    )
    return Swept(**{**swept.__dict__, "importance": importance(swept)})


def importance(swept: Swept) -> dict[str, float]:
    """Shares of the variance by functional ANOVA of a random forest (Hutter et al. 2014); empty
    with too few trials.
    """
    done = [
        trial
        for trial in swept.trials
        if trial["state"] == "complete" and trial["value"] is not None
    ]
    names = swept.varied
    if len(done) < FEWEST or len({trial["value"] for trial in done}) < 2 or not names:
        return {}
    try:
        import optuna
        import sklearn  # noqa: F401  what Optuna's forest is made of
    except ImportError:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spread = {
        name: _distribution(optuna, [trial["parameters"].get(name) for trial in swept.trials])
        for name in names
    }
    study = optuna.create_study()
    for trial in done:
        values = {name: _drawn(spread[name], trial["parameters"].get(name)) for name in names}
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=spread, value=trial["value"])
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in found.items()}


def _distribution(optuna: Any, values: Sequence[Any]) -> Any:
    if all(type(value) in (int, float) for value in values):
        low, high = float(min(values)), float(max(values))
        return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 20)
    return optuna.distributions.CategoricalDistribution(sorted({word(value) for value in values}))


def _drawn(distribution: Any, value: Any) -> Any:
    return float(value) if hasattr(distribution, "low") else word(value)


def _section(folder: Path, swept: Swept, mark: str, *, several: bool) -> str:
    parts = [f"<h2>{escape(swept.name)}</h2>"] if several else []
    parts += [_answer(folder, swept), _notes(swept)]
    drawn = [
        (
            history_figure,
            "history",
            "Every trial's value in order, and the best so far; far-off values lie outside.",
        ),
        (
            curves_figure,
            "curves",
            f"{swept.metric} at every look at validation tasks; dotted: ended early.",
        ),
        (
            importance_figure,
            "importance",
            "What mattered: shares of the variance of the "
            "values, by functional ANOVA. "
            "Of few trials it is a hint, no finding.",
        ),
        (
            parallel_figure,
            "parallel",
            f"Every finished trial as a line through its parameters; {_colours(swept)}",
        ),
    ]
    for draw, name, caption in drawn:
        parts.append(_plot(draw, swept, f"{mark}-{name}", caption))
    parts += ["<h3>Every trial</h3>", _table(swept)]
    return "\n".join(part for part in parts if part)


def _colours(swept: Swept) -> str:
    better = "small" if swept.goal == "minimize" else "large"
    return f"{swept.metric}, on the last axis, is better when {better}. The thick line is the best."


def _plot(draw: Callable[[Swept, Any], Any], swept: Swept, name: str, caption: str) -> str:
    if not swept.valued:
        return ""
    drawn = [draw(swept, size) for size in (curves.WIDE, curves.NARROW)]
    if drawn[0] is None:
        return ""
    wide, narrow = (curves.svg(figure, f"{name}-{place}") for place, figure in enumerate(drawn))
    described = escape(caption, quote=True)
    return plot(curves.inline(wide, described), curves.inline(narrow, described), escape(caption))


def _answer(folder: Path, swept: Swept) -> str:
    best = next((trial for trial in swept.trials if trial["number"] == swept.best), None)
    if best is None:
        return '<p class="answer">No trial is complete yet.</p>'
    values = "<br>".join(
        f"<code>{escape(key)}={escape(word(value))}</code>"
        for key, value in best["parameters"].items()
    )
    run = escape(str(Path("trials") / str(best["number"])))
    said = f"Trial {best['number']} is the best: {escape(swept.metric)} {word(best['value'])}."
    return (
        f'<p class="answer">{said}<br>{values}</p>\n<p>Its run directory: <code>{run}</code>.</p>'
    )


def _notes(swept: Swept) -> str:
    counts = {
        state: sum(trial["state"] == state for trial in swept.trials)
        for state in ("complete", "pruned", "failed")
    }
    text = (
        f"{len(swept.trials)} trials: {counts['complete']} complete, {counts['pruned']} "
        f"ended early, "
    )
    text += f"{counts['failed']} failed."
    if swept.metric.startswith("test"):
        text += " This sweep chose on test tasks: its best value is no estimate for new ones."
    else:
        text += (
            " The best of many noisy values looks better than it is: the test in its run "
            "directory is the estimate."
        )
    return f'<p class="note">{escape(text)}</p>'


def _table(swept: Swept) -> str:
    names = list(dict.fromkeys(name for trial in swept.trials for name in trial["parameters"]))
    sign = 1.0 if swept.goal == "minimize" else -1.0
    worst = [trial for trial in swept.trials if trial["value"] is None]
    ranked = sorted(
        (t for t in swept.trials if t["value"] is not None), key=lambda t: sign * t["value"]
    )
    ranked.sort(key=lambda trial: trial["state"] != "complete")
    rows = []
    for trial in [*ranked, *worst]:
        value = "–" if trial["value"] is None else word(float(trial["value"]))
        cells = [value, left(escape(trial["state"]))]
        cells += [escape(word(trial["parameters"].get(name))) for name in names]
        rows.append(
            row(str(trial["number"]), cells, "best" if trial["number"] == swept.best else "")
        )
    return table(["trial", escape(swept.metric), "state", *map(escape, names)], rows, left=(2,))


def split_kinds(dirs: Sequence[Path]) -> bool:
    """Whether all of the folders are sweeps; ConfigError where some are."""
    sweeps = [folder for folder in dirs if is_sweep(folder)]
    if sweeps and len(sweeps) != len(dirs):
        text = "is a sweep, others are not: a page of their own each"
        raise ConfigError(*((str(folder), text) for folder in sweeps))
    return bool(sweeps)
