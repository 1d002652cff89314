"""`metalearn bench`: check the options, measure, show and write."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from metalearn.bench.workloads import Workload, select_workloads
from metalearn.config.sections import Executor
from metalearn.errors import ConfigError, did_you_mean
from metalearn.logger import log
from metalearn.storage.files import read_json, write_atomic, write_json

# repeated here: contenders imports torch
NAMES = ("native", "learn2learn", "higher", "torchopt", "jax", "torch")
# what must agree before rows of two runs share a file
SAME = ("cpu", "cores", "device", "torch", "python", "tf32")


@dataclass(frozen=True)
class BenchOptions:
    """The options of `metalearn bench`."""

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


def measure(options: BenchOptions) -> dict[str, Any]:
    """Measure the workloads; the JSON file is written after each, so that a crash loses one."""
    workloads = _check(options)
    earlier = (
        read_json(options.out) if options.merge and options.out and options.out.exists() else None
    )
    from metalearn.bench.bench import Settings, measure_workload
    from metalearn.bench.measure import Turns
    from metalearn.bench.table import show
    from metalearn.machine import device_of

    settings = Settings(
        device=device_of(options.device),
        threads=options.threads,
        engines=tuple(options.engines or NAMES),
        executors=tuple(options.executors),
        tasks=options.tasks,
        turns=Turns(options.repeats, options.seconds),
        cold=options.cold,
        tf32=options.tf32,
    )
    data = _initial_data(settings.device, earlier, options)
    for workload in workloads:
        outcome = measure_workload(workload, settings)
        _replace_rows(data, "rows", outcome.rows, [workload.name])
        _replace_skipped(data, outcome.rows, outcome.left_out)
        data["workloads"][workload.name] = outcome.facts
        _store(options, data)
    if options.scaling:
        _measure_scaling(options, data, settings)
    show([*data["rows"], *data.get("scaling", [])])
    _write_outputs(options, data)
    return data


def _check(options: BenchOptions) -> list[Workload]:
    """Return the workloads; raises ConfigError with every problem, before anything is written."""
    problems: list[tuple[str, str]] = []
    workloads: list[Workload] = []
    try:
        only_scaling = options.scaling and not options.names
        workloads = [] if only_scaling else select_workloads(list(options.names))
    except ConfigError as error:
        problems += error.problems
    unknown = [name for name in options.engines if name not in NAMES]
    problems += [("--engine", f"{name!r}: {did_you_mean(name, NAMES)}") for name in unknown]
    problems += [
        ("--executor", message) for text in options.executors if (message := _executor_error(text))
    ]
    paths = {"--out": options.out, "--plot": options.plot, "--markdown": options.markdown}
    for option, path in paths.items():
        if path is not None and path.is_dir():
            problems.append((option, f"{path} is a directory: use the name of a file"))
    if options.merge and options.out is None:
        problems.append(("--merge", "needs --out, the file whose results are kept"))
    if options.tf32:
        from metalearn.machine import device_of

        try:
            if not (device := device_of(options.device)).startswith("cuda"):
                text = f"needs a CUDA device (got {device}): omit it, or use --device cuda"
                problems.append(("--tf32", text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return workloads


def _executor_error(executor: str) -> str:
    """Return why NAME or NAME:CHUNK is not an executor; empty if it is one."""
    name, colon, chunk = executor.partition(":")
    if name not in get_args(Executor):
        return f"{name!r}: {did_you_mean(name, get_args(Executor))}"
    is_count = chunk.isdecimal() and int(chunk) >= 1
    if colon and not (is_count and name in ("chunk", "compiled")):
        return f"{executor!r} must be {name}, or chunk:N or compiled:N with N at least 1"
    return ""


def _initial_data(
    device: str, earlier: dict[str, Any] | None, options: BenchOptions
) -> dict[str, Any]:
    """Return an empty result, or the earlier one of the same machine to which rows are added."""
    from metalearn.storage.environment import describe

    environment = describe(device) | _versions() | {"tf32": options.tf32}
    del environment["threads"]  # each workload has its own
    data: dict[str, Any] = {"schema": 1, "environment": environment}
    data |= {"rows": [], "skipped": [], "workloads": {}}
    if earlier is None:
        return data
    # files without the entry are of earlier versions, which had no such option
    measured_with = {"tf32": False} | earlier.get("environment", {})
    differing = [name for name in SAME if measured_with.get(name) != environment[name]]
    if differing:
        text = f"was measured with another {', '.join(differing)}: choose another --out"
        raise ConfigError((str(options.out), text))
    return data | {name: value for name, value in earlier.items() if name != "environment"}


def _versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    versions = {}
    for name in NAMES[1:]:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _replace_rows(
    data: dict[str, Any], section: str, rows: list[dict[str, Any]], names: Sequence[str]
) -> None:
    """Replace earlier rows of the same workloads."""
    data[section] = [row for row in data.get(section, []) if row["workload"] not in names] + rows


def _replace_skipped(
    data: dict[str, Any], rows: list[dict[str, Any]], left_out: list[dict[str, Any]]
) -> None:
    """Replace earlier entries of engines that are measured or left out now."""
    names = {(row["workload"], row["engine"]) for row in (*rows, *left_out)}
    data["skipped"] = [
        row for row in data["skipped"] if (row["workload"], row["engine"]) not in names
    ] + left_out


def _measure_scaling(options: BenchOptions, data: dict[str, Any], settings: Any) -> None:
    from metalearn.bench.scaling import curve, memory
    from metalearn.bench.workloads import IN_CHUNKS, SCALING

    for name in SCALING:
        outcome = curve(name, settings)
        _replace_rows(data, "scaling", outcome.rows, [name])
        _replace_skipped(data, outcome.rows, outcome.left_out)
        _store(options, data)
    data["memory"] = [memory(settings, name) for name in IN_CHUNKS]
    _store(options, data)


def _store(options: BenchOptions, data: dict[str, Any]) -> None:
    if options.out is not None:
        write_json(options.out, data)


def _write_outputs(options: BenchOptions, data: dict[str, Any]) -> None:
    """Write the figures next to --out (or to --plot), and the section of the Markdown file."""
    target = options.plot or (options.out.with_suffix(".svg") if options.out else None)
    plots: list[Path] = []
    if target is not None:
        from metalearn.bench.plot import scaling_figure, workloads_figure

        scaling_path = target.with_name(f"{target.stem}-scaling{target.suffix}")
        for rows, make_figure, path in (
            (data["rows"], workloads_figure, target),
            (data.get("scaling", []), scaling_figure, scaling_path),
        ):
            if any(row.get("median_seconds") for row in rows):
                write_atomic(path, make_figure(rows).encode())
                plots.append(path)
    if options.markdown is not None:
        from metalearn.bench.markdown import write

        write(options.markdown, data, plots)
    written = [path for path in (options.out, *plots, options.markdown) if path is not None]
    if written:
        log.info(f"written: {', '.join(map(str, written))}")
