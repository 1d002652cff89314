"""Run and comparison directories -> one self-contained page."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from metalearn.evaluate.cost_block import Axis
from metalearn.logger import log
from metalearn.report.episodes import sample_tasks
from metalearn.report.figures import FIGURES
from metalearn.report.figures.style import styles, svg
from metalearn.report.matrices import reading
from metalearn.report.numbers import cost
from metalearn.report.questions import QUESTIONS, all_questions
from metalearn.report.render import render, render_text
from metalearn.report.section import Question
from metalearn.report.sections import Section, read_sections
from metalearn.results.cost_checks import TIMED_ALONE, TRAINED_ALONE
from metalearn.results.costs import learning_cost, uses_pretrained_weights
from metalearn.results.design.protocol import describe_support
from metalearn.results.design.tuning import tuned_fields
from metalearn.results.records import Group, Json, Run, mean
from metalearn.results.schema import OF_PRETRAINED, Comparison
from metalearn.storage.environment import checkout, git_commit
from metalearn.storage.files import write_atomic

MOMENTARY = ("argv", "started", "load_average", "clock_mhz")
# a question that the runs cannot answer: one paragraph that says why
EMPTY = re.compile(r'\s*<p class="unanswered">((?!</p>).)*</p>\s*', re.DOTALL)
BEFORE = {
    "tune": "validation",
    "search": "search",
    "pretrain": "pretraining",
    "meta_train": "meta-training",
}


def write_report(
    dirs: Sequence[Path], out: Path, *, title: str | None = None, demonstration: bool = False
) -> Path:
    """Write one HTML page for runs, folders of them, and comparisons, in any mixture.

    The page is self-contained. If a comparison is among `dirs`, its figures are also written to
    `figures/*.svg` next to the page. The same directories and code give the same bytes.

    Args:
        dirs: directories of runs; loose runs of the same new tasks are shown together.
        out: the page to write; its folder is created.
        title: heading; by default the names of the experiments.
        demonstration: say in the first lines that this is a demonstration, not a benchmark.

    Raises:
        ConfigError: directories without a finished run or with unreadable files, all at once."""
    sections = read_sections(dirs)
    runs = [run for section in sections for run in section.runs]
    names = sorted({str(run.result.get("experiment") or run.label) for run in runs})
    entries = []
    for number, section in enumerate(sections):
        mark = f"s{number}" if len(sections) > 1 else ""
        html = _section(section, mark, sections, out.parent)
        entries.append({"mark": mark, "title": section.title, "html": html})
    page = render(
        "report.html.j2",
        title=title or ", ".join(names),
        demonstration=demonstration,
        sections=entries,
    )
    write_atomic(out, page.encode())
    return out


def _section(section: Section, mark: str, sections: Sequence[Section], folder: Path) -> Markup:
    prefix = f"{mark}-" if mark else ""
    figures = draw(section, prefix)
    if section.comparison:
        for name, text in figures.items():
            write_atomic(folder / "figures" / f"{prefix}{name}.svg", text.encode())
    sample = next((tasks for group in section.groups if (tasks := sample_tasks(group))), None)
    if sample and "points" in sample:
        figures["tasks"] = svg(sample["points"], f"{prefix}tasks")
    context = {
        "mark": mark,
        "prefix": prefix,
        "figures": figures,
        "sample": sample,
        **_shared_context(section),
        **_best_row(section),
        **_origin(section.runs),
    }
    for question in QUESTIONS:
        context |= question.data(section, sections)
    questions = [
        _render_question(question, section, sections, context) for question in all_questions()
    ]
    return render("section.html.j2", questions=questions, **context)


def _render_question(
    question: Question, section: Section, sections: Sequence[Section], context: Json
) -> Json:
    """Return the title and the text of a question; a plug-in's error replaces its text."""
    if question in QUESTIONS:
        html = render(f"questions/{question.template}", **context)
        return {"title": question.title, "html": html, "empty": bool(EMPTY.fullmatch(html))}
    try:
        values = question.data(section, sections)
        if question.template:
            html = render_text(question.template, **{**context, **values})
        else:
            html = render("values.html.j2", values=values)
    except Exception as error:
        log.warning(f"the section {question.title!r} of the report failed: {error!r}")
        why = f"{type(error).__name__}: {error}"
        html = render("failed.html.j2", name=question.name, why=why)
    return {"title": question.title, "html": html, "empty": False}


def draw(section: Section, prefix: str = "") -> dict[str, str]:
    """Draw every figure that the section has the numbers for, as standalone SVG, by name."""
    figures = {name: figure((section.groups, section.results)) for name, figure in FIGURES.items()}
    return {name: svg(one, prefix + name) for name, one in figures.items() if one is not None}


def _shared_context(section: Section) -> Json:
    """Return what several templates of a section read."""
    up, first = section.up, section.groups[0].first
    pretrained = any(uses_pretrained_weights(run) for group in section.groups for run in group.runs)
    return {
        "title": section.title,
        "groups": section.groups,
        "results": section.results,
        "lines": section.lines,
        "lacking": [
            name
            for name in Comparison.model_fields
            if name not in section.results and (pretrained or name not in OF_PRETRAINED)
        ],
        "task": {"queries": None, "split": None, **first.task},
        "support": describe_support(first),
        "episodes": {"count": None, "seed": None, "fingerprint": None}
        | (first.result.get("episodes") or {}),
        "colors": {label: style.color for label, style in styles(section.groups).items()},
        "up": up,
        "unit": "points" if up else "squared error",
        "better": "above" if up else "below",
        "deviations": (first.result.get("facts") or {}).get("target_deviations"),
    }


def _best_row(section: Section) -> Json:
    """Return what the first sentence says: the best row, its margins, its cost."""
    ranking = section.ranking
    pairs = {frozenset((pair["a"], pair["b"])): pair for pair in section.results["paired"]}
    labels = [group.label for group, _ in ranking]
    scratch = next((row for row in ranking if row[0].first.family == "scratch"), None)
    failed = {check["name"] for check in section.results["checks"] if not check["passed"]}
    axis: Axis = "flops" if failed & {TIMED_ALONE, TRAINED_ALONE} else "seconds"
    return {
        "ranking": ranking,
        "scratch": scratch,
        "margin": _margin(labels[0], scratch[0].label, pairs) if scratch else None,
        "rival": _margin(labels[0], labels[1], pairs) if len(labels) > 1 else None,
        "cost_axis": axis,
        "up_front": _describe_up_front(ranking[0][0], axis) if ranking else [],
        "flops_each": _learning_flops(ranking[0][0]) if ranking else None,
    }


def _margin(best: str, other: str, pairs: Mapping[frozenset[str], Json]) -> Json | None:
    """Return the paired difference best - other with its interval, or None if it is unknown.

    The best of several means is above another one only if the contrast of the two says so."""
    pair = pairs.get(frozenset((best, other)))
    if pair is None or pair["difference"] is None or pair["ci95"] is None:
        return None
    sign = 1 if pair["a"] == best else -1
    low, high = sorted(sign * end for end in pair["ci95"])
    facts = {"reading": reading(pair), "p_holm": pair.get("p_holm"), "seeds": len(pair["seeds"])}
    return {"low": low, "high": high, "value": sign * pair["difference"], **facts}


def _describe_up_front(group: Group, axis: Axis) -> list[str]:
    words = {**BEFORE, "tune": "tuning and validation"}
    if not tuned_fields(group.first):
        words["tune"] = "validation"
    costs = [(word, group.once(phase, axis)) for phase, word in words.items()]
    return [f"{cost(value, axis)} of {word}" for word, value in costs if value]


def _learning_flops(group: Group) -> float | None:
    """Return the FLOPs of learning one new task up to the headline step, mean over seeds."""
    curves = [(run, learning_cost(run, "flops")) for run in group.runs]
    return mean([None if flops is None else flops[run.headline_point] for run, flops in curves])


def _origin(runs: Sequence[Run]) -> Json:
    """Return commands, commits and environments, each once; paths are relative to the checkout.

    The command, the start time, and the state of the machine at that time are not part of an
    environment."""
    commands: dict[str, None] = {}
    environments: dict[str, list[str]] = {}
    for run in runs:
        argv = run.environment.get("argv")
        if argv:
            line = argv if isinstance(argv, str) else shlex.join(str(word) for word in argv)
            commands[line.replace(f"{checkout()}/", "")] = None
        text = "\n".join(
            f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
            for key, value in run.environment.items()
            if key not in MOMENTARY
        )
        environments.setdefault(text, []).append(run.name)
    entries = list(environments.items()) if any(environments) else []
    trained_by = {str(run.result["git"])[:12]: None for run in runs if run.result.get("git")}
    commits = {"trained_by": list(trained_by), "reported_by": git_commit()[:12]}
    return {"commands": list(commands), "environments": entries, **commits}
