"""Workers of a sweep as cluster jobs, through submitit; they share the folder and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn.config.overrides import split
from metalearn.config.plugins import as_options, loaded
from metalearn.errors import ConfigError
from metalearn.logger import log
from metalearn.sweep.file import Sweep
from metalearn.sweep.request import claim_folder


class Worker:
    """What a job runs; a preempted job is queued again and continues."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def __call__(self) -> int:
        return subprocess.run(self.command, check=False).returncode

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(found: Sweep, folder: Path, workers: int, job_options: Sequence[str]) -> list[Any]:
    """Submit `workers` jobs; `cluster=local` runs them on this machine. Returns submitit's jobs."""
    options = dict(_option(text) for text in job_options)
    try:
        import submitit
    except ImportError as error:
        why = "needs the package submitit: pip install submitit"
        raise ConfigError(("--slurm", why)) from error
    cluster = options.pop("cluster", None)

    def executor_in(place: Path) -> Any:
        made = submitit.AutoExecutor(folder=place, cluster=cluster)
        made.update_parameters(
            name=found.name, **{_submitit(key): value for key, value in options.items()}
        )
        return made

    try:
        with tempfile.TemporaryDirectory() as elsewhere:  # refused before anything is written
            executor_in(Path(elsewhere))
    except (
        Exception
    ) as error:  # a missing sbatch, an unknown cluster, a key that is none: of many types
        text = f"{' '.join(str(error).split())}; use cluster=local on a machine without SLURM"
        raise ConfigError(("--slurm", text)) from error
    claim_folder(found, folder)
    executor = executor_in(folder / "jobs")
    command = [sys.executable, "-m", "metalearn", "sweep", str(Path(found.file).resolve())]
    command += as_options(loaded())
    jobs = [
        executor.submit(Worker([*command, "--out", str(folder.resolve())])) for _ in range(workers)
    ]
    print(
        f"jobs: {' '.join(str(job.job_id) for job in jobs)}\nsweep: {folder}\nreport: "
        f"metalearn report {folder}"
    )
    log.info(f"their logs are in {folder / 'jobs'}; repeat the command to add workers")
    return jobs


def _option(text: str) -> tuple[str, Any]:
    path, value = split(text)
    return ".".join(path), value


def _submitit(key: str) -> str:
    """submitit's own names as they are; others are SLURM's."""
    own = (
        "timeout_min",
        "mem_gb",
        "nodes",
        "cpus_per_task",
        "gpus_per_node",
        "tasks_per_node",
        "stderr_to_stdout",
    )
    return key if key in own or key.startswith(("slurm_", "local_")) else f"slurm_{key}"
