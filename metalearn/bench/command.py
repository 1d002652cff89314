"""`metalearn bench`: its words checked at once, then everything measured, shown and written."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from metalearn.bench.workloads import Workload, chosen
from metalearn.config.sections import Executor
from metalearn.errors import ConfigError, did_you_mean
from metalearn.logger import log
from metalearn.storage.files import read_json, write_atomic, write_json

NAMES = (
    "native",
    "learn2learn",
    "higher",
    "torchopt",
    "jax",
    "torch",
)  # here too: that list needs torch imported
SAME = (
    "cpu",
    "cores",
    "device",
    "torch",
    "python",
)  # what must agree before rows of two runs stand in one file


@dataclass(frozen=True)
class Words:
    """What was typed."""

    names: Sequence[str] = ()
    out: Path | None = None
    plot: Path | None = None
    markdown: Path | None = None
    repeats: int = 15
    seconds: float = 60.0
    device: str = "cpu"
    threads: int | None = None
    tasks: int | None = None
    engines: Sequence[str] = ()
    executors: Sequence[str] = ()
    scaling: bool = False
    merge: bool = False
    cold: bool = False
    tf32: bool = False


def bench(words: Words) -> dict[str, Any]:
    """Measure what was asked for; the JSON file is written anew after every workload, so an end by
    force loses one.
    """
    workloads = _check(words)
    earlier = read_json(words.out) if words.merge and words.out and words.out.exists() else None
    from metalearn.bench.bench import Settings, measured
    from metalearn.bench.measure import Turns
    from metalearn.bench.table import show
    from metalearn.machine import device_of

    settings = Settings(
        device=device_of(words.device),
        threads=words.threads,
        engines=tuple(words.engines or NAMES),
        executors=tuple(words.executors),
        tasks=words.tasks,
        turns=Turns(words.repeats, words.seconds),
        cold=words.cold,
        tf32=words.tf32,
    )
    data = _begin(settings.device, earlier, words)
    for workload in workloads:
        outcome = measured(workload, settings)
        _add(data, "rows", outcome.rows, [workload.name])
        _say_skipped(data, outcome.left_out)
        data["workloads"][workload.name] = outcome.facts
        _store(words, data)
    if words.scaling:
        _scale(words, data, settings)
    show([*data["rows"], *data.get("scaling", [])])
    _draw(words, data)
    return data


def _check(words: Words) -> list[Workload]:
    """The workloads; ConfigError with everything that is wrong, before torch is imported or a file
    is written.
    """
    problems: list[tuple[str, str]] = []
    workloads: list[Workload] = []
    try:
        workloads = chosen(list(words.names)) if words.names or not words.scaling else []
    except ConfigError as error:
        problems += error.problems
    executors = get_args(Executor)
    problems += [
        ("--engine", f"{name!r}: {did_you_mean(name, NAMES)}")
        for name in words.engines
        if name not in NAMES
    ]
    for text in words.executors:
        name, _, chunk = text.partition(":")
        if name not in executors:
            problems.append(("--executor", f"{name!r}: {did_you_mean(name, executors)}"))
        elif ":" in text and (
            not chunk.isdecimal() or int(chunk) < 1 or name not in ("chunk", "compiled")
        ):
            problems.append(
                (
                    "--executor",
                    f"{text!r} should be {name}, or chunk:N or compiled:N with N at least 1",
                )
            )
    for option, path in (
        ("--out", words.out),
        ("--plot", words.plot),
        ("--markdown", words.markdown),
    ):
        if path is not None and path.is_dir():
            problems.append((option, f"{path} is a folder: name a file"))
    if words.merge and words.out is None:
        problems.append(("--merge", "needs --out, the file whose rows are kept"))
    if problems:
        raise ConfigError(*problems)
    return workloads


def _begin(device: str, earlier: dict[str, Any] | None, words: Words) -> dict[str, Any]:
    """An empty result, or the earlier one of the same machine to which rows are added."""
    from metalearn.storage.environment import describe

    environment = describe(device) | _versions() | {"tf32": words.tf32}
    del environment["threads"]  # each workload has its own
    data: dict[str, Any] = {
        "schema": 1,
        "environment": environment,
        "rows": [],
        "skipped": [],
        "workloads": {},
    }
    if earlier is None:
        return data
    other = [name for name in SAME if earlier.get("environment", {}).get(name) != environment[name]]
    if other:
        raise ConfigError(
            (str(words.out), f"was measured with another {', '.join(other)}: give another --out")
        )
    return data | {
        name: value for name, value in earlier.items() if name not in ("environment", "schema")
    }


def _versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {}
    for name in NAMES[1:]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _add(
    data: dict[str, Any], place: str, rows: list[dict[str, Any]], names: Sequence[str]
) -> None:
    """The rows, in the place of earlier ones of the same workloads."""
    data[place] = [row for row in data.get(place, []) if row["workload"] not in names] + rows


def _say_skipped(data: dict[str, Any], left_out: list[dict[str, Any]]) -> None:
    names = {(row["workload"], row["engine"]) for row in left_out}
    data["skipped"] = [
        row for row in data["skipped"] if (row["workload"], row["engine"]) not in names
    ] + left_out


def _scale(words: Words, data: dict[str, Any], settings: Any) -> None:
    from metalearn.bench.scaling import curve, memory
    from metalearn.bench.workloads import IN_CHUNKS, SCALING

    for name in SCALING:
        outcome = curve(name, settings)
        _add(data, "scaling", outcome.rows, [name])
        _say_skipped(data, outcome.left_out)
        _store(words, data)
    data["memory"] = [memory(settings, name) for name in IN_CHUNKS]
    _store(words, data)


def _store(words: Words, data: dict[str, Any]) -> None:
    if words.out is not None:
        write_json(words.out, data)


def _draw(words: Words, data: dict[str, Any]) -> None:
    """The pictures beside --out (or where --plot says), and the section of the Markdown file."""
    target = words.plot or (words.out.with_suffix(".svg") if words.out else None)
    plots: list[Path] = []
    if target is not None:
        from metalearn.bench.plot import scaling_figure, workloads_figure

        for rows, draw, path in (
            (data["rows"], workloads_figure, target),
            (
                data.get("scaling", []),
                scaling_figure,
                target.with_name(f"{target.stem}-scaling{target.suffix}"),
            ),
        ):
            if any(row.get("median_seconds") for row in rows):
                write_atomic(path, draw(rows).encode())
                plots.append(path)
    if words.markdown is not None:
        from metalearn.bench.markdown import write

        write(words.markdown, data, plots)
    written = [path for path in (words.out, *plots, words.markdown) if path is not None]
    if written:
        log.info(f"written: {', '.join(map(str, written))}")
