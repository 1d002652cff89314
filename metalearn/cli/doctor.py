"""`metalearn doctor`: versions, device, optional parts, data; what is missing and how to get it.

Nothing here raises: every check is made apart from the others, and what a check meets is its
finding. Other people's packages are looked up without running them; only torch is imported, for the
device."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["ok", "missing", "warning"]


class Finding(NamedTuple):
    """One line of the report: missing stops metalearn, a warning does not."""

    name: str
    state: State
    sentence: str


# Distribution -> what it is for. Without a core part nothing runs; without one of the others a
# sentence says so.
CORE = {
    "torch": "everything",
    "numpy": "data and results",
    "pydantic": "experiment files",
    "PyYAML": "experiment files",
    "typer": "the command line",
    "rich": "the command line",
    "pillow": "images",
}
OPTIONAL = {
    "matplotlib": "reports and the glyphs task",
    "optuna": "sweeps and tuning",
    "scikit-learn": "linear baselines",
    "wandb": "logging to Weights & Biases",
    "higher": "cross-checks of gradients",
    "scipy": "learn2learn",
    "requests": "learn2learn",
    "tqdm": "learn2learn",
    "submitit": "sweeps on SLURM",
    "tensorboard": "event files for TensorBoard",
}
OLDEST_TORCH = (2, 11)
SAME_FOLDER = (
    "metalearn",
    "parallel-metalearn",
)  # other people's distributions that install a folder `metalearn`
# Data set -> its prepared file (a pattern), and what is said where the file is not there (None:
# nothing).
PREPARED: dict[str, tuple[str, State, str | None]] = {
    "omniglot": ("omniglot28.npz", "warning", "not prepared: metalearn data prepare omniglot"),
    "glyphs": ("glyphs*", "ok", "not drawn yet; the first use draws it, in under a minute"),
    "cifar100": ("cifar100_jpeg95.npz", "ok", None),
}
INSTALL = "run `make setup`, or: pip install"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Iterable[Finding]:
    enough = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} on {platform.platform()}"
    yield (
        Finding("python", "ok", text)
        if enough
        else Finding("python", "missing", f"{text}; 3.11 or newer is needed")
    )


def _packages() -> Iterable[Finding]:
    tables: tuple[tuple[dict[str, str], State], ...] = ((CORE, "missing"), (OPTIONAL, "warning"))
    for table, state in tables:
        for name, purpose in table.items():
            version = _version(name)
            if version is None:
                yield Finding(name, state, f"not installed; needed for {purpose}: {INSTALL} {name}")
            else:
                yield Finding(name, "ok", version)


def _torch() -> Iterable[Finding]:
    if _version("torch") is None:
        return
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        yield Finding(
            "torch version",
            "missing",
            f"{torch.__version__}, older than {oldest}: {INSTALL} torch==2.13.0",
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    yield Finding(
        "cpu", "ok", f"{cores} cores, torch uses {threads} threads (OMP_NUM_THREADS changes it)"
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield Finding(
                f"cuda:{index}", "ok", f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
            )
    else:
        built = (
            f"this torch is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "this torch has no CUDA"
        )
        yield Finding("cuda", "ok", f"no device, so everything runs on the CPU ({built})")


def _compiler() -> Iterable[Finding]:
    use = (
        "torch.compile (the executors `compiled` and `compiled_loop`) and the set-up of learn2learn"
    )
    named = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    found = next((path for name in named if name and (path := shutil.which(name))), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if found is None:
        hint = "install g++ or clang, for example the package build-essential"
        yield Finding(
            "compiler", "warning", f"no C++ compiler on the PATH; needed by {use}: {hint}"
        )
    elif not header.is_file():
        hint = (
            f"install the headers of Python "
            f"{sys.version_info.major}.{sys.version_info.minor} (python3-dev)"
        )
        yield Finding(
            "compiler", "warning", f"{found}, but Python.h is not there; needed by {use}: {hint}"
        )
    else:
        yield Finding("compiler", "ok", found)


def _learn2learn() -> Iterable[Finding]:
    if importlib.util.find_spec("learn2learn") is None:
        yield Finding(
            "learn2learn",
            "warning",
            "not installed; needed for cross-checks of gradients and for speed comparisons, "
            "nothing else: "
            "make -B setup (builds it, with a C compiler)",
        )
        return
    absent = [name for name in ("torchvision", "gym") if importlib.util.find_spec(name) is None]
    note = (
        f"; the torch-only part is used, since its full import needs {' and '.join(absent)}, "
        f"which metalearn does not"
        if absent
        else ""
    )
    yield Finding("learn2learn", "ok", f"{_version('learn2learn') or 'version unknown'}{note}")


def _data() -> Iterable[Finding]:
    from metalearn.tasks import store

    root, cache = store.data_root(), store.cache_root()
    if not os.environ.get("METALEARN_DATA", "").strip():
        yield Finding("METALEARN_DATA", "ok", f"not set, so data live in {root}")
    elif root.is_dir():
        derived = (
            "" if cache == root else f"; read-only, so what is derived from it lives in {cache}"
        )
        yield Finding("METALEARN_DATA", "ok", f"{root}{derived}")
    else:
        yield Finding(
            "METALEARN_DATA", "warning", f"{root} is not a folder; make it, or name another"
        )
    for name, (pattern, state, absent) in PREPARED.items():
        there = sorted({*root.glob(pattern), *cache.glob(pattern)})
        if there:
            yield Finding(f"data {name}", "ok", str(there[0]))
        elif absent:
            yield Finding(f"data {name}", state, absent)


def _folder() -> Iterable[Finding]:
    used = Path(__file__).resolve().parents[1]
    here = Path.cwd() / "metalearn"
    if (here / "types.py").is_file() and here.resolve() != used:
        yield Finding(
            "metalearn",
            "warning",
            f"{used} is in use, not {here}: pip install -e . makes it the one in use",
        )
    else:
        yield Finding(
            "metalearn",
            "ok",
            f"{_version('metalearn-lab') or 'not installed, run from its folder'}, {used}",
        )
    experiments = used.parent / "experiments"
    if experiments.is_dir():
        yield Finding("experiments", "ok", str(experiments))
    else:
        yield Finding(
            "experiments",
            "warning",
            f"no folder {experiments}, so experiments are named by file only: use a checkout "
            f"and pip install -e .",
        )


def _clash() -> Iterable[Finding]:
    for name in SAME_FOLDER:
        version = _version(name)
        if version is not None:
            yield Finding(
                f"package {name}",
                "warning",
                f"{name} {version} is another project, which installs the same folder "
                f"`metalearn` over this one: "
                f"pip uninstall -y {name}; then pip install --force-reinstall --no-deps -e .",
            )


CHECKS: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
    ("python", _python),
    ("metalearn", _folder),
    ("package clash", _clash),
    ("packages", _packages),
    ("torch", _torch),
    ("compiler", _compiler),
    ("learn2learn", _learn2learn),
    ("data", _data),
)


def report() -> list[Finding]:
    """Every finding as (name, "ok" | "missing" | "warning", sentence); missing stops metalearn, a
    warning does not.
    """
    findings: list[Finding] = []
    for name, check in CHECKS:
        try:
            findings.extend(check())
        except Exception as error:  # a broken installation is what the doctor is called for
            state: State = "missing" if name in CORE else "warning"
            findings.append(
                Finding(name, state, f"could not be checked: {type(error).__name__}: {error}")
            )
    return findings


def healthy(findings: Iterable[tuple[str, str, str]]) -> bool:
    """Whether the core works: nothing in the state "missing"."""
    return all(state != "missing" for _, state, _ in findings)


def lines(findings: Iterable[tuple[str, str, str]] | None = None) -> list[str]:
    """The findings as lines of text, the verdict last."""
    rows = list(report() if findings is None else findings)
    width = max(len(name) for name, _, _ in rows)
    verdict = (
        "metalearn can run"
        if healthy(rows)
        else "metalearn cannot run until what is missing is there"
    )
    count = sum(state == "warning" for _, state, _ in rows)
    verdict += f"; {count} warning{'s' if count != 1 else ''} above" if count else ""
    return [f"{state:<8}{name:<{width}}  {sentence}" for name, state, sentence in rows] + [
        f"{verdict}."
    ]
