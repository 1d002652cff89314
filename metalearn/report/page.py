"""Run and comparison directories -> one self-contained page that answers: how fast is a new task
learned?
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from metalearn.errors import ConfigError
from metalearn.evaluate.accounts import Axis
from metalearn.report import questions, tables
from metalearn.report.episodes import episodes
from metalearn.report.figures import cost, curves
from metalearn.report.figures.axes import by_label
from metalearn.report.html import details, page, plot
from metalearn.results import records
from metalearn.results.comparison import compare, read_comparison
from metalearn.results.records import Group, Json, Run
from metalearn.results.schema import Comparison
from metalearn.storage.files import write_atomic


@dataclass(frozen=True)
class Section:
    """Rows that learn the same new tasks: one comparison, or loose runs of the same task."""

    title: str
    groups: list[Group]
    found: Json  # comparison.json, or what it would hold
    comparison: bool


def write_report(
    dirs: Sequence[Path], out: Path, *, title: str | None = None, demonstration: bool = False
) -> Path:
    """Write one HTML page for run directories, folders of them, and comparison directories, in any
    mixture.

    The page needs nothing beside it. Where a comparison is among `dirs`, its figures are also
    written to `figures/*.svg` beside the page. The same directories give the same bytes.

    Args:
        dirs: where the runs are; loose runs of the same new tasks are shown together.
        out: the page to write; its folder is made.
        title: heading; by default the names of the experiments.
        demonstration: say in the first lines that this is a demonstration, not a benchmark.

    Raises:
        ConfigError: directories without a finished run or with unreadable files, all at once.
    """
    sections = read_sections(dirs)
    names = sorted({str(run.result.get("experiment") or run.label) for run in _all_runs(sections)})
    heading = title or ", ".join(names)
    body = [_header(heading, demonstration, sections)]
    for number, section in enumerate(sections):
        body.append(
            _section(section, f"s{number}" if len(sections) > 1 else "", out.parent, sections)
        )
    body.append(
        "<footer>Made by <code>metalearn report</code> from finished run directories.</footer>"
    )
    write_atomic(out, page(heading, "\n".join(body)).encode())
    return out


def read_sections(dirs: Sequence[Path]) -> list[Section]:
    """One section for each comparison, and one for each task among the loose runs."""
    problems: list[tuple[str, str]] = []
    sections: list[Section] = []
    loose: dict[str, list[Run]] = {}
    for root in dirs:
        finished, unfinished = records.run_directories(root)
        if not finished:
            problems.append((str(root), "holds no finished run: a run directory has a result.json"))
            continue
        try:
            runs = [records.load(path) for path in finished]
        except ConfigError as error:
            problems += error.problems
            continue
        if records.is_comparison(root):
            names = [str(path.relative_to(root)) for path in unfinished]
            groups = records.group(runs)
            found = read_comparison(root, groups) or compare(groups, names)
            sections.append(Section(_task_name(runs[0]), groups, found, True))
            continue
        for run in runs:
            loose.setdefault(f"{_task_name(run)} {run.metric}", []).append(run)
    if problems:
        raise ConfigError(*problems)
    for runs in loose.values():
        groups = records.group(runs)
        sections.append(Section(_task_name(runs[0]), groups, compare(groups), False))
    return sections


def _all_runs(sections: Sequence[Section]) -> list[Run]:
    return [run for section in sections for group in section.groups for run in group.runs]


def _task_name(run: Run) -> str:
    task = run.result.get("task") or {}
    shots = f"{task.get('shots')}-shot"
    ways = f"{task.get('ways')}-way " if run.metric == "accuracy" else ""
    return f"{ways}{shots} {task.get('source', 'tasks')}"


def _header(heading: str, demonstration: bool, sections: Sequence[Section]) -> str:
    parts = []
    if demonstration:
        parts.append(
            '<p class="demo"><strong>This is a demonstration, not a benchmark:</strong> '
            "training is short and the test "
            "is small, so that it ends in minutes. The numbers show that everything runs; they "
            "rank no methods.</p>"
        )
    parts.append(f"<h1>How fast is a new task learned?</h1>\n<p class='meta'>{escape(heading)}</p>")
    parts.append("<p class='meta sideways'>Tables scroll sideways.</p>")
    if len(sections) > 1:
        links = ", ".join(
            f'<a href="#s{n}">{escape(section.title)}</a>' for n, section in enumerate(sections)
        )
        parts.append(f"<p>On this page: {links}.</p>")
    return "\n".join(parts)


def _section(section: Section, mark: str, folder: Path, sections: Sequence[Section]) -> str:
    groups, found, several = section.groups, section.found, len(sections) > 1
    draw = _Drawer(mark, folder if section.comparison else None)
    up = groups[0].higher_better
    parts = [f'<h2 id="{mark}">{escape(section.title)}</h2>'] if several else []
    parts += [_absent(found)]
    parts += [
        f'<p class="meta">{_protocol(section)}</p>',
        f'<p class="answer">{tables.answer(groups, found)}</p>',
        questions.checklist(found, mark),
        questions.heading(1, mark),
        draw(curves.steps_figure, (groups, found), "steps", _steps_caption(groups, found)),
        draw(cost.flops_figure, (groups, found), "flops", _cost_caption(groups, found, "flops")),
        draw(
            cost.seconds_figure,
            (groups, found),
            "seconds",
            _cost_caption(groups, found, "seconds"),
        ),
        "<h3>Results</h3>",
        tables.headline(groups, found),
    ]
    if found["paired"]:
        parts += ["<h3>Paired differences</h3>", _paired_note(), tables.differences(found, up)]
    parts += ["<h3>Every point of the curves</h3>", tables.points(groups, found)]
    training = draw(curves.training_figure, (groups, found), "training", _training_caption(groups))
    parts += [
        "<h3>Training tasks against validation tasks</h3>",
        training or f"<p>{_no_curves(groups)}</p>",
    ]
    shapes = [(other.title, other.groups) for other in sections]
    parts.append(questions.rest(groups, found, draw, shapes, mark))
    shown = next((html for html in map(episodes, groups) if html), "")
    parts += ["<h2>Sample test tasks</h2>", shown] if shown else []
    parts += ["<h2>How to get these numbers again</h2>", _commands(groups), _environment(groups)]
    parts += [
        "<h3>Every run</h3>",
        tables.run_table(groups),
        "<h3>Configurations</h3>",
        _configs(groups),
    ]
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class _Drawer:
    """Draws a figure in both sizes, and beside the page too where there is a folder."""

    mark: str
    folder: Path | None

    def __call__(
        self, draw: Callable[[Any, Any], Figure | None], what: Any, name: str, caption: str
    ) -> str:
        name = f"{self.mark}-{name}" if self.mark else name
        drawn = [draw(what, size) for size in (curves.WIDE, curves.NARROW)]
        if drawn[0] is None or drawn[1] is None:
            return ""
        wide, narrow = (
            curves.svg(figure, f"{name}-{n}")
            for n, figure in enumerate(drawn)
            if figure is not None
        )
        if self.folder is not None:
            write_atomic(self.folder / "figures" / f"{name}.svg", wide.encode())
        described = escape(caption.split(". ")[0], quote=True)
        return plot(
            curves.inline(wide, described), curves.inline(narrow, described), escape(caption)
        )


def _absent(found: Json) -> str:
    """What a comparison.json of an earlier version does not hold."""
    absent = [name for name in Comparison.model_fields if name not in found]
    if not absent:
        return ""
    text = (
        "This comparison.json was written by an earlier version and does not hold "
        f"{', '.join(absent)}: what is made of them is left out. Delete comparison.json, and "
        "metalearn report computes it again from the run directories."
    )
    if found.get("rules") is None:
        text += (
            " Its intervals are percentile bootstraps over seeds and tasks, which are too narrow "
            "with few seeds, and its verdicts were decided without intervals of shares."
        )
    return f'<p class="unanswered">{text}</p>'


def _protocol(section: Section) -> str:
    run = section.groups[0].first
    task, tested = run.result.get("task") or {}, run.result.get("episodes") or {}
    queries = task.get("queries")
    asked = (
        f", {queries} quer{'y' if queries == 1 else 'ies'} per class"
        if run.metric == "accuracy"
        else (f", {queries} queries" if queries else "")
    )
    return escape(
        f"{section.title}{asked}; {tested.get('count')} test tasks from the "
        f"{task.get('split')} split, the same for "
        f"every method (episode seed {tested.get('seed')}, fingerprint "
        f"{str(tested.get('fingerprint'))[:12]})."
    )


def _steps_caption(groups: Sequence[Group], found: Json) -> str:
    what = "Accuracy" if groups[0].higher_better else "Squared error"
    text = (
        f"{what} on query examples of new tasks against the number of gradient steps on "
        f"their support sets. "
    )
    text += "Bands: 95 % intervals over test tasks"
    if any(len(group.runs) > 1 for group in groups):
        text += ", scores averaged over seeds first; thin lines: single seeds"
    text += ". The axis is logarithmic above 1 step."
    if any(not group.uses_steps for group in groups):
        text += " Methods that take no steps are horizontal lines."
    drawn = by_label(found, "curves")
    converged = [label for label, line in drawn.items() if line["converged_only"]]
    if converged:
        text += (
            f" Tasks that diverged are left out of the line of {', '.join(converged)}; "
            f"their share is in the tables."
        )
    return text


def _cost_caption(groups: Sequence[Group], found: Json, axis: Axis) -> str:
    what = "Accuracy" if groups[0].higher_better else "Squared error"
    spent = "the time" if axis == "seconds" else "the FLOPs"
    text = (
        f"{what} against {spent} that one new task takes. Learning it up to a point, search "
        f"included, and answering "
        "its queries once"
    )
    text += (
        "; per task, inside a batch of tasks"
        if axis == "seconds"
        else "; matrix products and convolutions"
    )
    text += (
        ". Bands: 95 % intervals over seeds and tasks. A method that takes no steps is one "
        "point. What was spent "
    )
    text += "before any new task is not in it: see questions 5 and 10."
    drawn = by_label(found, "cost_curves", axis)
    missing = [group.label for group in groups if group.label not in drawn]
    return text + (f" Not measured: {', '.join(missing)}." if missing else "")


def _training_caption(groups: Sequence[Group]) -> str:
    text = (
        "The same method, during its training, on tasks made of training classes and of "
        "validation classes. "
    )
    if not groups[0].higher_better:
        text = "The same method, during its training, on training tasks and on validation tasks. "
    text += (
        "The distance between the lines is what does not carry over to new tasks; bands: "
        "95 % over tasks."
    )
    without = [group.label for group in groups if not any(run.valid("valid") for run in group.runs)]
    return text + (f" Without such curves: {', '.join(without)}." if without else "")


def _no_curves(groups: Sequence[Group]) -> str:
    learns = [
        group.label
        for group in groups
        if group.first.traits.get("consumes", "nothing") != "nothing"
    ]
    if learns:
        return escape(f"Not recorded for {', '.join(learns)}.")
    return "No method here learns across tasks, so there is nothing to compare."


def _paired_note() -> str:
    return (
        '<p class="note">Mean difference over the same test tasks, each method at its headline '
        "step. Intervals: "
        "95 %, for new seeds and new tasks (two-way random effects, Satterthwaite’s degrees of "
        "freedom); with one seed for new tasks of these trained networks only. p is two-sided, "
        "needs 3 seeds, and is given for contrasts, which were chosen before the run, corrected "
        "for their number by Holm’s method; all other pairs are estimates.</p>"
    )


def _commands(groups: Sequence[Group]) -> str:
    lines: dict[str, None] = {}
    for run in (run for group in groups for run in group.runs):
        argv = run.environment.get("argv")
        if argv:
            lines[argv if isinstance(argv, str) else shlex.join(str(word) for word in argv)] = None
    if not lines:
        return "<p>The command was not recorded.</p>"
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _environment(groups: Sequence[Group]) -> str:
    """One block for each environment, the command and the time of the start left out."""
    blocks: dict[str, list[str]] = {}
    for run in (run for group in groups for run in group.runs):
        kept: Json = {
            key: value for key, value in run.environment.items() if key not in ("argv", "started")
        }
        text = "\n".join(
            f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
            for key, value in kept.items()
        )
        blocks.setdefault(text, []).append(f"{run.label} seed {run.seed}")
    if not any(blocks):
        return "<p>The environment was not recorded.</p>"
    if len(blocks) == 1:
        return details(
            "environment of every run", f"<pre>{escape(next(iter(blocks)))}</pre>", opened=True
        )
    return "\n".join(
        details(f"environment of {escape(', '.join(who))}", f"<pre>{escape(text)}</pre>")
        for text, who in blocks.items()
    )


def _configs(groups: Sequence[Group]) -> str:
    return "\n".join(
        details(
            f"{escape(group.label)}, seed {run.seed}",
            f"<pre>{escape(run.config_text or 'not recorded')}</pre>",
        )
        for group in groups
        for run in group.runs
    )
