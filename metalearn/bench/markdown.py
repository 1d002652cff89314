"""Rows as a section of a Markdown file, one per machine; the rest of the file stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from metalearn.bench.contenders import PEERS
from metalearn.bench.table import (
    Row,
    auto_over_best,
    best,
    engine_detail,
    engine_label,
    groups,
    share_of_limit,
    size,
    speedup,
    times,
)
from metalearn.report.markdown import image, replace_section, table
from metalearn.report.numbers import duration

HEAD = """# Benchmarks

Written by `metalearn bench --markdown experiments/benchmarks/RESULTS.md`; the section of a
machine is replaced by its next run, text outside of the marked sections stays.
"""


def write(path: Path, data: dict[str, Any], plots: list[Path]) -> None:
    """Replace the section of the same machine with this run's, or append it."""
    name = f"bench: {machine(data['environment'])}"
    replace_section(path, name, render(data, [image(plot, path) for plot in plots]), HEAD)


def machine(env: Row) -> str:
    """Return the machine of a file: GPU, processor and cores."""
    cpu = f"{env.get('cpu') or env.get('platform', '')}, {env.get('cores')} cores"
    if env.get("device", "cpu") == "cpu":
        return cpu
    return f"{env['device']}{', TF32' if env.get('tf32') else ''}; {cpu}"


def render(data: dict[str, Any], plots: list[str] | None = None) -> str:
    """Render the section: machine, ratios, every row, scaling, memory, skipped engines."""
    parts = [f"## {machine(data['environment'])}", facts_line(data["environment"])]
    parts += plots or []
    if rows := data["rows"]:
        parts += [ratios(rows, data.get("workloads", {})), "### Every row", every_row(rows)]
    if data.get("scaling"):
        parts += ["### Tasks per batch: milliseconds a task", _scaling(data["scaling"])]
    # a file of an earlier version has one row without live tensors
    if isinstance(data.get("memory"), list):
        parts.append(_memory(data["memory"]))
    if data.get("skipped"):
        parts += ["### Left out", left_out(data["skipped"])]
    parts.append(NOTES)
    return "\n\n".join(parts) + "\n"


NOTES = """A step is: sample a batch of tasks, their mean meta-gradient, one Adam step; medians
over rounds in which every engine has its turn, IQR = third minus first quartile. *First step* is
building, compiling (from the compiler's cache where it is warm) and one step. *Gradient error*:
relative distance to the gradient of a float64 loop of `torch.autograd.grad`, of the parameter
where it is largest. Images are random bytes: ours samples them anew in every step, peers get
episodes drawn beforehand; sine waves are sampled by everybody. *Share of limit*: the step's
arithmetic at the rate of one plain convolution, timed in the same rounds, over the step's time.
JAX uses its own threads, all cores, in every workload. Peak: resident memory during steps beyond
what was held before (CUDA: torch's allocator, first step included). Sampling: seconds an episode.
*Auto's total*: a run of 2,000 steps by what auto chose, its trials and compiling included, over
the same by the best executor in the table."""


def facts_line(env: Row) -> str:
    """Return date, commit, versions and command in one line."""
    names = ("torch", "learn2learn", "higher", "torchopt", "jax")
    versions = [f"{name} {env[name]}" for name in names if env.get(name)]
    commit = f"commit {env['git'][:10]}" if env.get("git") else ""
    facts = [env.get("started", "")[:10], commit, f"Python {env.get('python')}"]
    text = "; ".join([*filter(None, facts), *versions])
    return f"{text}. Command: `{_command(env)}`"


def _command(env: Row) -> str:
    return " ".join(
        Path(word).name if word.startswith("/") else word for word in env.get("argv", [])
    )


def ratios(rows: list[Row], facts: dict[str, Row]) -> str:
    """Compare our best time with that of every peer that was timed, one line per workload."""
    peers = [engine for engine in PEERS if best(rows, (engine,))]
    head = ["workload", "tasks", "ours", *peers, "speed over best peer", "share of limit"]
    head.append("auto's total")
    lines = []
    for (workload, tasks), group in groups(rows).items():
        ours = best(group, ("native",))
        fraction = share_of_limit(ours, facts.get(workload, {}))
        our_cell = "–"
        if ours is not None:
            our_cell = f"**{duration(ours['median_seconds'])}** {engine_detail(ours)}".strip()
        peer_cells = [_peer(group, engine) for engine in peers]
        ratio_cell = "–" if speedup(group) is None else f"**{times(speedup(group))}**"
        fraction_cell = "–" if fraction is None else f"{fraction:.0%}"
        total = auto_over_best(group)
        total_cell = "–" if total is None else f"{total:.2f}"
        lines.append(
            [
                f"`{workload}`",
                str(tasks),
                our_cell,
                *peer_cells,
                ratio_cell,
                fraction_cell,
                total_cell,
            ]
        )
    return table(head, lines, left=1)


def _peer(group: list[Row], engine: str) -> str:
    row = best(group, (engine,))
    if row is None:
        return "–"
    return f"{duration(row['median_seconds'])} ({times(speedup(group, (engine,)))})"


def every_row(rows: list[Row]) -> str:
    head = ["workload", "engine", "tasks", "median", "IQR", "rounds", "first step", "peak"]
    head.append("gradient error")
    return table(head, [_cells(row) for row in rows], left=2)


def _cells(row: Row) -> list[str]:
    labels = [f"`{row['workload']}`", engine_label(row), str(row["tasks"])]
    error = "–" if row["gradient_error"] is None else f"{row['gradient_error']:.1e}"
    if row.get("error"):
        return [*labels, f"not timed: {row['error']}", "", "", "", "", error]
    times = [duration(row["median_seconds"]), duration(row["iqr_seconds"]), str(row["rounds"])]
    return [*labels, *times, duration(row["compile_seconds"]), size(row["peak_bytes"]), error]


def _scaling(rows: list[Row]) -> str:
    counts = sorted({row["tasks"] for row in rows})
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        seconds = row.get("median_seconds")
        text = f"{seconds / row['tasks'] * 1e3:.3g}" if seconds else "–"
        lines.setdefault((row["workload"], engine_label(row)), {})[row["tasks"]] = text
    head = ["workload", "engine", *map(str, counts)]
    cells = [
        [f"`{name}`", engine, *(cells_by_count.get(count, "–") for count in counts)]
        for (name, engine), cells_by_count in lines.items()
    ]
    return table(head, cells, left=2)


def _memory(rows: list[Row]) -> str:
    parts = ["### Memory"]
    for row in rows:
        few, many = row["tasks"]
        peaks = " and ".join(size(peak) for peak in row["peak_bytes"])
        ratio = "not measured here" if row["ratio"] is None else f"{row['ratio']:.2f} times"
        live = " and ".join(size(peak) for peak in row["live_bytes"])
        parts.append(
            f"`{row['workload']}`, executor chunk, {row['chunk']} tasks at once: {few} and {many} "
            f"tasks take {peaks} of resident memory: **{ratio}**; of live tensors {live}: "
            f"{row['live_ratio']:.2f} times."
        )
    return "\n\n".join(parts)


def left_out(rows: list[Row]) -> str:
    """Return one line per engine and reason, with its workloads."""
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        names = [f"`{row['workload']}`"] if row.get("workload") else []
        key = str(row["engine"]), re.sub(rf"^{re.escape(str(row['engine']))}:? ", "", row["why"])
        lines[key] = lines.get(key, []) + names
    return "\n".join(
        f"- {', '.join([engine, *names])}: {why}" for (engine, why), names in lines.items()
    )
