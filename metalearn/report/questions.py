"""The ten questions of a page, each with its template and what the template reads.

A question that the runs cannot answer says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from metalearn.report.points import curve_points
from metalearn.report.sections import Section
from metalearn.report.shift import across, settings
from metalearn.report.work import BEFORE
from metalearn.results.factors import family_of
from metalearn.results.records import Json
from metalearn.results.searches import candidates, is_control, searched, searches, trials

FAMILIES = {
    "transfer": "plain transfer",
    "searched": "architecture search",
    "scratch": "training from scratch",
}


def _nothing(section: Section, sections: Sequence[Section]) -> Json:
    return {}


class Question(NamedTuple):
    """A section of the page."""

    title: str
    template: str
    data: Callable[[Section, Sequence[Section]], Json] = _nothing


def _speed(section: Section, sections: Sequence[Section]) -> Json:
    groups = section.groups
    learns = [g.label for g in groups if g.first.traits.get("consumes", "nothing") != "nothing"]
    heads = [run.result["headline"] for run in section.runs]
    validated = {run.label for run in section.runs if run.valid("valid")}
    return {
        "curve_points": curve_points(groups, section.found),
        "several_seeds": any(len(group.runs) > 1 for group in groups),
        "most_tasks": max(group.tested_on for group in groups),
        "published": any(head.get("published") is not None for head in heads),
        "learners": learns,
        "without_validation": [g.label for g in groups if g.first.label not in validated],
    }


def _search(section: Section, sections: Sequence[Section]) -> Json:
    """Searches, and the controls that a page on them needs and these rows do not hold."""
    found = searches(section.groups)
    random = [candidates(group.first) for group in found if is_control(group.first)]
    fixed = [group for group in section.groups if not any(map(searched, group.runs))]
    lacking = {
        "the mean random architecture (random search with candidates: 1)": 1 not in random,
        "random search at equal budget": not any(count > 1 for count in random),
        "a fixed network with tuned hyper-parameters": not any(trials(g.first) for g in fixed),
    }
    return {"searches": found, "lacking_controls": [name for name in lacking if lacking[name]]}


def _equal_compute(section: Section, sections: Sequence[Section]) -> Json:
    groups = section.groups
    found = {
        "searched" if any(map(searched, group.runs)) else family_of(group.first) for group in groups
    }
    rows = (section.found.get("equal_compute") or {"rows": []})["rows"]
    columns = [
        [value for value in column if value is not None]
        for column in zip(*(row["values"] for row in rows))
    ]
    best = max if section.up else min
    return {
        "lacking_families": [words for name, words in FAMILIES.items() if name not in found],
        "best_at_budget": [best(column, default=None) for column in columns],
    }


def _settings(section: Section, sections: Sequence[Section]) -> Json:
    return {"settings": settings(sections)}


def _shift(section: Section, sections: Sequence[Section]) -> Json:
    return {"shifted": across(section.groups)}


def _cost(section: Section, sections: Sequence[Section]) -> Json:
    devices = {str(group.first.environment.get("device") or "") for group in section.groups}
    timings = [run.result["timing"] for run in section.runs if run.result.get("timing")]
    return {"before": BEFORE, "devices": sorted(devices - {""}), "timings": timings}


def _noise(section: Section, sections: Sequence[Section]) -> Json:
    """The numbers of trials that have a column: powers of two below the most."""
    most = max((row["trials"] for row in section.found.get("tuning") or []), default=0)
    return {"tuning_points": [2**power for power in range(12) if 2**power < most]}


QUESTIONS = (
    Question("How fast is a new task learned, with the same labels?", "speed.html.j2", _speed),
    Question("What share of tasks reaches the target within a budget?", "target.html.j2"),
    Question("Is architecture search worth its compute?", "search.html.j2", _search),
    Question(
        "Which way is best at the same total compute?", "equal_compute.html.j2", _equal_compute
    ),
    Question("After how many new tasks is an up-front cost repaid?", "break_even.html.j2"),
    Question("What adds how much: start, optimizer or architecture?", "parts.html.j2"),
    Question("Did a search find anything, or only select noise?", "noise.html.j2", _noise),
    Question("How does the ranking change with shots and ways?", "settings.html.j2", _settings),
    Question("Does it survive a shift to other tasks?", "shift.html.j2", _shift),
    Question("What did all of it cost, and can the comparison be trusted?", "cost.html.j2", _cost),
)
