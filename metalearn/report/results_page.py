"""experiments/results/*.json and a hand-written template -> experiments/RESULTS.md: `make results`.

python -m metalearn.report.results_page experiments
python -m metalearn.report.results_page experiments --add runs/demo demo "make demo" WHY"""

from __future__ import annotations

import argparse
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from metalearn.config.build import build
from metalearn.config.experiment import Experiment, load
from metalearn.report import markdown
from metalearn.report.numbers import NONE, half_width, score
from metalearn.report.recorded.comparison import (
    contrasts_text,
    decision_map_text,
    rows_text,
    sources_text,
)
from metalearn.results.published import (
    comparison_result,
    describe_left_out,
    published_numbers,
    read_results,
    verdict,
)
from metalearn.results.records import Json
from metalearn.storage.files import write_atomic, write_json

TEMPLATE, PAGE = "RESULTS.md.j2", "RESULTS.md"
WIDTH = 100  # columns of prose
CURVE_POINTS = 5  # of a learning curve in its table


def write_page(folder: Path) -> Path:
    """Write RESULTS.md of an `experiments` folder."""
    write_atomic(folder / PAGE, page(folder).encode())
    return folder / PAGE


def page(folder: Path) -> str:
    """Return the text of RESULTS.md."""
    results = read_results(folder / "results")
    templates = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = templates.get_template(TEMPLATE).render(
        results=results,
        published=_published_table(folder, results),
        curves=_curves(results),
        spread=lambda name: _spread(results[name]),
        difference=lambda a, b: _difference(results[a], results[b]),
        comparison=lambda name: rows_text(results[name]),
        contrasts=lambda name: contrasts_text(results[name]),
        decision_map=lambda name, queries=None: decision_map_text(results[name], queries),
        by_source=lambda name: sources_text(results[name]),
        table=lambda name: _table(results[name]),
        schedule=lambda name: _schedule(folder / f"{name}.yaml"),
    )
    return "\n\n".join(map(_wrap, text.split("\n\n")))


def _wrap(block: str) -> str:
    """Wrap a paragraph of prose at 100 columns; a heading, list or table is not changed."""
    if block.lstrip("\n").startswith(("|", "!", "#", "* ", "- ", "```")):
        return block
    lines = textwrap.fill(
        " ".join(block.split()), WIDTH, break_long_words=False, break_on_hyphens=False
    )
    return lines + "\n" * (len(block) - len(block.rstrip("\n")))


def _published_table(folder: Path, results: Mapping[str, Json]) -> str:
    """Return every measured number, and every experiment with a published number that was not
    run."""
    heads = ["experiment", "method", "steps", "published", "measured", "over tasks", "over seeds"]
    heads += ["each seed", "tasks", "normalisation", "schedule", "verdict"]
    cells = published_numbers(results)
    names = {one["experiment"] for one in cells}
    experiments = [one for file in sorted(folder.glob("*.yaml")) for one in _experiments(file)]
    rest = [row for one in experiments if one.name not in names for row in _not_run(one)]
    policies = {one.name: str(getattr(one.model, "norm", "none")) for one in experiments}
    table = _markdown(heads, [_cell(one, policies) for one in cells])
    if not rest:
        return table
    heads = ["experiment", "steps", "published", "training", "why", "command"]
    return f"{table}\nNot run, each one command:\n\n{_markdown(heads, rest)}"


def _curves(results: Mapping[str, Json]) -> str:
    """Return the scores on validation tasks during training, at five of the meta-steps."""
    heads = ["experiment", "method", "validation", *("",) * (CURVE_POINTS - 1)]
    rows = dict[tuple[str, str], list[str]]()
    for one in published_numbers(results):
        if (curve := one.get("validation")) is None:
            continue
        last = len(curve["steps"]) - 1
        places = sorted({round(last * part / (CURVE_POINTS - 1)) for part in range(CURVE_POINTS)})
        points = [
            f"{curve['steps'][place]:,}: {score(curve['values'][place], False)}" for place in places
        ]
        points += [NONE] * (CURVE_POINTS - len(points))
        # an ensemble and its best checkpoint alone have one curve
        rows[one["experiment"], str(curve)] = [one["experiment"], one["label"], *points]
    return _markdown(heads, list(rows.values()))


def _spread(one: Json) -> str:
    """Return the range and the median of the seeds' scores."""
    values = sorted(seed["value"] for seed in one["per_seed"])
    low, middle, high = (
        score(value, False) for value in (values[0], statistics.median(values), values[-1])
    )
    return f"{low} to {high} with median {middle}"


def _difference(a: Json, b: Json) -> str:
    """Return the difference of two accuracies with its 95 % half width, and the published one.

    The half width is that of independent tasks: for the same tasks, it is too wide."""
    half = math.hypot(a["ci95_tasks"], b["ci95_tasks"])
    measured, published = (100 * (a[name] - b[name]) for name in ("value", "published"))
    return f"{measured:+.1f} ± {100 * half:.1f} points (published: {published:+.1f})"


def _experiments(file: Path) -> list[Experiment]:
    """Return the experiments of a file with a published number."""
    return [one for one in load(str(file)).experiments if one.published is not None]


def _not_run(one: Experiment) -> list[list[str]]:
    """Return a row for each published number."""
    assert one.published is not None
    numbers = dict[int | str, float | None](one.published.curve.items())
    numbers = numbers or {one.evaluate.headline: one.published.value}
    pretrains = one.base_method.family == "transfer"
    count = one.run.examples_per_step if pretrains else one.run.tasks_per_step
    batch = f"{count} {'example' if pretrains else 'task'}{'s' * (count != 1)}"
    trained = f"{one.run.meta_steps:,} steps of {batch}"
    training = f"that of {one.start}" if one.start and not one.run.meta_steps else trained
    why = "data not available" if hasattr(one.task, "origin") else "training time"
    return [
        [
            one.name,
            str(step),
            f"{_number(value, one.published.ci95)} ({one.published.source})",
            training,
            why,
            f"not run: `metalearn reproduce {one.name}`",
        ]
        for step, value in numbers.items()
    ]


def _cell(one: Json, policies: Mapping[str, str]) -> list[str]:
    """Return a row; `policies`: the normalisation of experiments, for records without one."""
    policy = one.get("normalisation") or policies.get(one["experiment"], NONE)
    seeds = ", ".join(score(seed["value"], False) for seed in one["per_seed"])
    return [
        one["experiment"],
        one["label"],
        NONE if one["step"] is None else str(one["step"]),
        f"{_number(one['published'], one['published_ci95'])} ({one['source']})",
        f"{one['value']:.4g}{describe_left_out(one)}",
        half_width(one["ci95_tasks"]),
        half_width(one["ci95_seeds"]),
        seeds,
        f"{one['tasks']:,}",
        f"{policy}{', transductive' * (policy == 'query_batch')}",
        ": ".join(filter(None, (one["schedule"], one.get("schedule_why")))),
        f"**{verdict(one)}**",
    ]


def _table(one: Json) -> str:
    rows = [[_text(cell) for cell in row] for row in one["rows"]]
    note = f"\n{one['note']}\n" if one.get("note") else ""
    return _markdown(one["columns"], rows) + note


def _text(cell: str | Mapping[str, Any]) -> str:
    """Format a number with its intervals: over tasks / over seeds."""
    if isinstance(cell, str):
        return cell
    halves = [cell[name] for name in ("ci95_tasks", "ci95_seeds") if cell.get(name) is not None]
    return f"{cell['value']:g}" + (
        f" ± {' / '.join(f'{one:g}' for one in halves)}" if halves else ""
    )


def _schedule(file: Path) -> str:
    """Return what each row of an experiment file is trained and tested on."""
    heads = ("label", "method", "meta-steps", "per step", "test tasks", "trials")
    rows = []
    for one in load(str(file)).experiments:
        method, run = build(one).method, one.run
        trains = method.step is not None and run.meta_steps > 0
        examples = method.traits.consumes == "examples"
        size = f"{run.examples_per_step} examples" if examples else f"{run.tasks_per_step} tasks"
        steps = f"{run.meta_steps}, from {one.start}" if one.start else str(run.meta_steps)
        training = [steps, size] if trains else [f"from {one.start}" if one.start else "none", NONE]
        trials = str(one.budget.trials if one.tune else 0)
        rows.append(
            [one.label, one.base_method.name, *training, str(one.evaluate.episodes), trials]
        )
    return _markdown(heads, rows)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown.table(heads, rows) + "\n"


def _number(value: float | None, half: float | None) -> str:
    return NONE if value is None else f"{value:g}" + (f" ± {half:g}" if half else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    words = ("COMPARISON", "NAME", "COMMAND", "SCHEDULE")
    parser.add_argument("--add", nargs=4, metavar=words, help="store a finished comparison first")
    arguments = parser.parse_args()
    if arguments.add:
        root, name, command, why = arguments.add
        data = comparison_result(Path(root), command, why)
        write_json(arguments.folder / "results" / f"{name}.json", data)
    print(write_page(arguments.folder))


if __name__ == "__main__":
    main()
