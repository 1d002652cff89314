"""A comparison in Python: its tables, figures and trained runs."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.config.experiment import Plan
from metalearn.errors import ConfigError, did_you_mean
from metalearn.evaluate.cost_block import Axis
from metalearn.report import numbers
from metalearn.report.figures.decision import map_text
from metalearn.report.render import VERDICTS
from metalearn.results import records
from metalearn.results.break_even.decision_map import MAPS
from metalearn.results.comparison import read_comparison, read_request, update_comparison
from metalearn.results.costs import AXES, learning_cost, up_front_cost, uses_pretrained_weights
from metalearn.results.shown import Text, columns, data_frame, html_table
from metalearn.run.trained.load import LoadedRun, load_run

LIKELY = {"nll": "NLL", "calibration_error": "calibration, %"}  # columns next to the metric


class Comparison:
    """The results of a comparison, as in comparison.json."""

    def __init__(self, folder: Path, plan: Plan | None = None, objects: Sequence[Any] = ()) -> None:
        self.folder = folder
        self._keep_alive = (plan, objects)  # what the runs were made of, for `load`
        update_comparison(folder)
        folders, _ = records.run_directories(folder)
        self._groups = records.group(map(records.load, folders))
        contents = read_comparison(folder, self._groups)
        assert contents is not None  # it was brought up to date
        self.data: dict[str, Any] = contents
        order = [str(label) for label in read_request(folder).get("labels") or ()]
        self.data["summary"].sort(key=lambda row: [*order, row["label"]].index(row["label"]))

    @property
    def labels(self) -> list[str]:
        return [str(row["label"]) for row in self.data["summary"]]

    @property
    def report(self) -> Path:
        """The path of the HTML report."""
        return self.folder / "report.html"

    def table(self) -> Text:
        """Return one line per method: the headline metric with its 95 % interval, and the costs.

        The interval is over tasks. Also the negative log-likelihood (nats) and the calibration
        error (%), if known. "without x %" says which fraction of the tasks the former excludes,
        because they diverged or have none."""
        return columns(self._rows())

    def break_even(self) -> Text:
        """Return the break-even count of each pair of methods, as text.

        It is the number of new tasks from which on the method with the higher cost before the
        first task is cheaper in total. "pretraining free": without the cost of the pretraining of
        weights elsewhere, if a method starts from such."""
        head = ["method", "against", "axis", "level", "verdict", "tasks", "why"]
        counts = [_count_of_free_pretraining(row) for row in self.data["break_even"]]
        with_free = any(count is not None for count in counts)
        rows = [[*head[:6], "pretraining free", head[6]] if with_free else head]
        for row, count in zip(self.data["break_even"], counts):
            level = numbers.level(row["level"], str(self.data["target"]["metric"]))
            tasks = numbers.tasks(row["tasks"], "")
            why = row["why"] if row["verdict"] in ("not_reached", "undecided") else ""
            verdict = VERDICTS[row["verdict"]]
            cells = [row["a"], row["b"], row["axis"], level, verdict, tasks]
            rows.append([*cells, *([count or ""] if with_free else []), why or ""])
        none = "no target was set or reached: no break-even count"
        return columns(rows) if len(rows) > 1 else Text(none)

    def decision_map(self, axis: Axis = "flops", *, pretraining: bool = True) -> Text:
        """Return the cheapest method by numbers of new tasks and queries and by target, as text.

        Without `pretraining`, weights that others trained cost nothing. `data["decision_map"]`,
        `data["decision_map_seconds"]` and, if a method starts from such weights,
        `data["decision_map_free"]` and `data["decision_map_seconds_free"]` have the same as
        lists."""
        if axis not in AXES:
            text = f"unknown axis {axis!r}; {did_you_mean(axis, AXES)}"
            raise ConfigError(("decision_map", text))
        names = {key: name for name, key in MAPS.items()}
        runs = [run for group in self._groups for run in group.runs]
        with_others = pretraining or not any(map(uses_pretrained_weights, runs))
        name = names[axis, with_others]
        if name not in self.data:
            return Text(
                f"{name} is not in this comparison.json, which an earlier version wrote: delete "
                "it, and `metalearn report` recomputes it"
            )
        return Text(map_text(self.data[name]))

    def to_pandas(self, name: str = "summary") -> Any:
        """Return a list of comparison.json as a pandas DataFrame: summary, paired, break_even,
        ..."""
        lists = [key for key, rows in self.data.items() if isinstance(rows, list)]
        if name not in lists:
            raise ConfigError(("to_pandas", f"unknown list {name!r}; {did_you_mean(name, lists)}"))
        frame = data_frame(self.data[name], "`data`")
        return frame.set_index("label") if "label" in frame else frame

    def plot(self, name: str = "steps", ax: Any = None) -> Any:
        """Draw a figure of the report: steps, training, flops, seconds, pareto, break-even, ...

        Returns a matplotlib Figure, which a notebook shows; if `ax` is given, draws on it and
        returns it."""
        from metalearn.report.figures import FIGURES, draw

        return draw(name, (self._groups, self.data), ax, list(FIGURES))

    def load(self, label: str, seed: int | None = None) -> LoadedRun:
        """Load the trained run of a method, by default that of its first seed."""
        folders = {run.seed: run.path for g in self._groups if g.label == label for run in g.runs}
        if not folders:
            text = f"no finished method has this label; {did_you_mean(label, self.labels)}"
            raise ConfigError((label, text))
        if seed is not None and seed not in folders:
            raise ConfigError((label, f"has no run of seed {seed}; its seeds are {list(folders)}"))
        return load_run(folders[next(iter(folders)) if seed is None else seed])

    def __repr__(self) -> str:
        return f"{self.table()}\n{self.folder}"

    def _repr_html_(self) -> str:
        return f"{html_table(self._rows())}<p>{html.escape(str(self.report))}</p>"

    def _rows(self) -> list[list[str]]:
        likely = [key for key in LIKELY if any(map(_has(key), self.data["summary"]))]
        head = ["method", "metric", "value", *(LIKELY[key] for key in likely), "step"]
        head += [f"{what}, {axis}" for what in ("up front", "a new task") for axis in AXES]
        rows, groups = [head], {group.label: group for group in self._groups}
        for row in self.data["summary"]:
            group = groups[row["label"]]
            value = numbers.with_ci(row["value"], row["ci95_tasks"], row["metric"] == "accuracy")
            step = "" if row["step"] is None else str(row["step"])
            costs = [numbers.plain_cost(_mean_up_front_cost(group, axis), axis) for axis in AXES]
            costs += [numbers.plain_cost(_cost_per_task(group, axis), axis) for axis in AXES]
            values = [value, *(_format_likelihood(row, key) for key in likely)]
            rows.append([row["label"], row["metric"], *values, step, *costs])
        return rows


def _count_of_free_pretraining(row: Mapping[str, Any]) -> str | None:
    """Return the count without pretraining elsewhere; None if no method has such weights."""
    free = [one for one in row.get("variants") or () if not one.get("with_given", True)]
    if not free:
        return None
    swapped = ", roles swapped" if free[0]["a"] != row["a"] else ""
    return f"{numbers.tasks(free[0]['tasks'], '–')}{swapped}"


def _has(key: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: row.get(key) is not None


def _format_likelihood(row: Mapping[str, Any], key: str) -> str:
    text, left_out = numbers.score(row.get(key), key != "nll"), row.get("nll_left_out")
    excludes_tasks = key == "nll" and row.get(key) is not None and left_out
    return f"{text} without {numbers.share(left_out)}" if excludes_tasks else text


def _mean_up_front_cost(group: records.Group, axis: Axis) -> float | None:
    return records.mean([up_front_cost(run, axis) for run in group.runs])


def _cost_per_task(group: records.Group, axis: Axis) -> float | None:
    """Return the cost of learning one new task up to the headline step."""
    costs = [(run.headline_point, learning_cost(run, axis)) for run in group.runs]
    return records.mean([None if each is None else float(each[at]) for at, each in costs])
