"""What a page is about: rows that learn the same new tasks, read from directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metalearn.errors import ConfigError
from metalearn.results import records
from metalearn.results.comparison import collect, compare, read_comparison
from metalearn.results.records import Group, Json, Run


@dataclass(frozen=True)
class Section:
    """Rows that learn the same new tasks: one comparison, or loose runs of the same task."""

    title: str
    groups: list[Group]
    results: Json  # comparison.json, or what it would hold
    comparison: bool

    @property
    def up(self) -> bool:
        """Whether more is better."""
        return self.groups[0].higher_better

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def lines(self) -> dict[str, Json]:
        """The summary by label."""
        return {line["label"]: line for line in self.results["summary"]}

    @property
    def ranking(self) -> list[tuple[Group, Json]]:
        """Rows with a defined headline value and their summaries, the best first."""
        rows = [(group, self.lines[group.label]) for group in self.groups]
        return [(group, line) for group, line in rows if line["value"] is not None]


def read_sections(dirs: Sequence[Path]) -> list[Section]:
    """Return one section for each comparison, and one for each task among the loose runs.

    Raises ConfigError for all directories without a finished run or with unreadable files at
    once."""
    problems: list[tuple[str, str]] = []
    sections: list[Section] = []
    loose: dict[str, list[Run]] = {}
    for root in dirs:
        try:
            runs = _runs(root)
            if records.is_comparison(root):
                groups = records.group(runs)
                results = read_comparison(root, groups) or collect(root)
                sections.append(Section(_task_name(runs[0]), groups, results, True))
                continue
        except ConfigError as error:
            problems += error.problems
            continue
        for run in runs:
            loose.setdefault(f"{_task_name(run)} {run.metric}", []).append(run)
    if problems:
        raise ConfigError(*problems)
    for runs in loose.values():
        groups = records.group(runs)
        sections.append(Section(_task_name(runs[0]), groups, compare(groups), False))
    return sections


def _runs(root: Path) -> list[Run]:
    """Return the finished runs at or under a directory."""
    folders, _ = records.run_directories(root)
    if not folders:
        raise ConfigError(
            (
                str(root),
                "contains no finished run: the directory of a finished run has a result.json",
            )
        )
    return [records.load(path) for path in folders]


def _task_name(run: Run) -> str:
    task = run.task
    shots = f"{task.get('shots')}-shot"
    ways = f"{task.get('ways')}-way " if run.metric == "accuracy" else ""
    order = f" by {task['order']}" if task.get("order") else ""
    return f"{ways}{shots} {task.get('source', 'tasks')}{order}"
