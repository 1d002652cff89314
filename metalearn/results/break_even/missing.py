"""Seeds of a row that have no result: they diverged, were ended, or are still trained."""

from __future__ import annotations

from metalearn.results.records import Group


def describe_missing(group: Group) -> str:
    """Return which seeds of a row have no result; empty if all have.

    Without them, what holds for its seeds does not hold for new ones: a seed that diverged has no
    result, although it was paid for."""
    folders = {run.path.parent for run in group.runs if run.path.name.startswith("seed-")}
    missing = sorted(
        int(config.parent.name.removeprefix("seed-"))
        for folder in folders
        for config in folder.glob("seed-[0-9]*/config.yaml")
        if not (config.parent / "result.json").exists()
    )
    seeds = ", ".join(map(str, missing))
    return f"{group.label} has no result of seed {seeds}" if missing else ""
