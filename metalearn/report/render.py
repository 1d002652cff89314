"""Templates -> HTML: the environment of all pages, with autoescape and the filters of numbers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from metalearn.report import numbers
from metalearn.report.figures.style import inline
from metalearn.report.matrices import describe_basis, reading
from metalearn.report.work import gradient_steps_before, work
from metalearn.results.cost_checks import applies
from metalearn.results.design.tuning import describe_trials, seed_of_tuning, tuned_fields
from metalearn.results.records import Group, Json, Run
from metalearn.results.searches import candidate_count, has_search, searcher

NUMBERS = (
    *("duration", "amount", "cost", "plain_cost", "score", "above", "plus", "signed", "share"),
    "compiling",
    *("score_interval", "difference_interval"),
    *("percent", "level", "tasks", "interval", "count", "gibibytes", "kilojoules", "word"),
)
LEAST_SOLVED = 10  # tasks, over all seeds, for a cost of a solved task
MOST_NAMED = 6  # labels in a sentence
VERDICTS = {
    **{verdict: verdict for verdict in ("pays", "always", "never")},
    "not_reached": "not reached",
    "undecided": "undecided",
    "same": "the same",
}


def render(template: str, **context: Any) -> Markup:
    """Render a template of this package; a name that its context lacks is an error."""
    return Markup(environment().get_template(template).render(context))


def render_text(template: str, **context: Any) -> Markup:
    """Render a template that is passed as text, such as that of a plug-in's section."""
    return Markup(environment().from_string(template).render(context))


@functools.cache
def environment() -> Environment:
    templates = Environment(
        loader=PackageLoader("metalearn.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {name: getattr(numbers, name) for name in NUMBERS}
    templates.filters |= {
        "p_value": numbers.p_value,
        "ci": numbers.with_ci,
        "candidates": candidate_count,
        "trials": describe_trials,
    }
    templates.filters |= {"searcher": _searcher, "tuned": _format_tuned, "work": work}
    templates.filters |= {"steps_before": gradient_steps_before, "once": _once, "each": _each}
    templates.filters |= {"squeeze": _squeeze, "inline": _inline, "by_label": _by_label}
    templates.filters |= {
        "entries": _entries,
        "unnamed": _labels_without_row,
        "by_verdict": _by_verdict,
    }
    templates.filters |= {"of_contrasts": _of_contrasts, "first_sentence": _first_sentence}
    templates.filters |= {"breakable": _breakable}
    templates.tests["applicable"] = applies
    templates.filters |= {"verdict": VERDICTS.__getitem__, "contrasts_first": _contrasts_first}
    templates.filters |= {
        "reading": reading,
        "basis": describe_basis,
        "few_solved": few_solved,
        "named": named,
    }
    return templates


def few_solved(one: Json, group: Group) -> str:
    """Return how many tasks a method solved if they are too few for a cost per solved task."""
    count = round(one["share"] * group.test_tasks * len(group.runs))
    return f"{count} solved" if count < LEAST_SOLVED else ""


def named(labels: Sequence[str], groups: Sequence[Group]) -> str:
    """Return labels as a list, or as a count of the methods if there are many."""
    if len(labels) == len(groups) > 1:
        return "all methods"
    if len(labels) > MOST_NAMED:
        return f"{len(labels)} of {len(groups)} methods"
    return ", ".join(labels)


def _squeeze(text: str) -> Markup:
    """Join the lines of an escaped text, without blanks before punctuation."""
    return Markup(re.sub(r" (?=[.,;])", "", " ".join(escape(text).split())))


def _breakable(label: str) -> Markup:
    """Return a label that a narrow column may break after its underscores."""
    return Markup("_<wbr>").join(label.split("_"))


def _inline(svg: str, caption: Markup) -> Markup:
    """Return an SVG in the page, described by its caption's first sentence."""
    return Markup(inline(svg, str(escape(caption.striptags().split(". ")[0]))))


def _first_sentence(caption: Markup) -> tuple[Markup, Markup]:
    """Return a caption's first sentence, and the rest."""
    head, dot, rest = str(caption).partition(". ")
    return Markup(head + dot.strip()), Markup(rest.strip())


def _entries(results: Json, name: str) -> list[Json]:
    """Return one list of comparison.json; empty if it is missing."""
    return list(results.get(name) or [])


def _by_label(rows: Iterable[Json]) -> dict[str, Json]:
    return {row["label"]: row for row in rows}


def _labels_without_row(groups: Sequence[Group], rows: Iterable[Json]) -> list[str]:
    """Return the labels that have no row."""
    labels = {row["label"] for row in rows}
    return [group.label for group in groups if group.label not in labels]


def _by_verdict(rows: Sequence[Json]) -> list[Json]:
    order = list(VERDICTS)
    return sorted(rows, key=lambda row: order.index(row["verdict"]))


def _of_contrasts(rows: Iterable[Json], is_contrast: bool) -> list[Json]:
    """Return break-even rows with verdicts, or those without.

    In files without contrasts all have one."""
    return [row for row in rows if row.get("contrast", True) == is_contrast]


def _contrasts_first(pairs: Sequence[Json]) -> list[Json]:
    return sorted(pairs, key=lambda pair: not pair.get("contrast"))


def _once(phase: str, group: Group, name: str) -> float | None:
    return group.once(phase, name)


def _each(phase: str, group: Group, name: str) -> float | None:
    return group.each(phase, name)


def _searcher(group: Group) -> str:
    run = group.first
    return searcher(run) or ("by gradient" if has_search(run) else "none: a fixed network")


def _format_tuned(run: Run) -> str:
    """Format the chosen fields, without the headline step, which has its own column.

    A check names those on an edge."""
    parts = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in tuned_fields(run).items()
    ]
    if parts and (seed := seed_of_tuning(run)) != run.seed:
        parts[-1] += f" (by seed {seed})"
    return ", ".join(parts) or numbers.NONE
