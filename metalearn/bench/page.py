"""The site's page of benchmarks, generated from the files that `metalearn bench --out` wrote."""

from __future__ import annotations

import textwrap
from pathlib import Path

from metalearn.bench.markdown import NOTES, every_row, facts_line, left_out, machine, ratios
from metalearn.bench.plot import workloads_figure
from metalearn.bench.table import Row
from metalearn.storage.files import read_json

HEAD = """# Benchmarks

Seconds of one step of meta-training beside other packages, measured by `metalearn bench` and drawn
from `experiments/benchmarks/*.json`. A ratio above 1 means that ours is faster. What was changed
to get there, and what did not help, is in `experiments/benchmarks/RESULTS.md`."""


def page(folder: Path) -> tuple[str, dict[str, str]]:
    """Return Markdown of all files of a folder, and the SVG figures that it uses, by path."""
    parts, figures = [HEAD], {}
    for path in sorted(folder.glob("*.json")):
        data = read_json(path)
        figure = f"figures/{path.stem}.svg"
        figures[figure] = workloads_figure(data["rows"])
        parts.append(_section(data, figure))
    return "\n\n".join([*parts, "## How it is measured", NOTES]) + "\n", figures


def _section(data: Row, figure: str) -> str:
    """Render a file: machine and versions, figure, ratios; rows and skipped engines are folded."""
    env, workloads = data["environment"], data["workloads"]
    return "\n\n".join(
        [
            f"## {machine(env)}, {env['started'][:10]}",
            facts_line(env),
            f"![times of the steps, relative to ours]({figure})",
            ratios(data["rows"], workloads),
            _fold("What the workloads are", _sentences(workloads)),
            _fold(f"All {len(data['rows'])} rows", every_row(data["rows"])),
            *([_fold("Left out", left_out(data["skipped"]))] if data["skipped"] else []),
        ]
    )


def _sentences(workloads: Row) -> str:
    return "\n".join(f"- `{name}`: {facts['sentence']}" for name, facts in workloads.items())


def _fold(title: str, content: str) -> str:
    """Return a paragraph that opens when its title is clicked."""
    return f'??? note "{title}"\n\n{textwrap.indent(content, "    ")}'
