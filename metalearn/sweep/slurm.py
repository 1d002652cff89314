"""Workers of a sweep as cluster jobs, through submitit; they share only the sweep's folder."""

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
    """The command of a job; a preempted job is queued again and resumes."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def __call__(self) -> int:
        return subprocess.run(self.command, check=False).returncode

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(config: Sweep, folder: Path, workers: int, job_options: Sequence[str]) -> list[Any]:
    """Submit `workers` jobs; `cluster=local` runs them on this machine. Returns submitit's jobs."""
    options = dict(_option(text) for text in job_options)
    try:
        import submitit
    except ImportError as error:
        why = "needs the package submitit: pip install submitit"
        raise ConfigError(("--slurm", why)) from error
    cluster = options.pop("cluster", None)

    def executor_in(log_folder: Path) -> Any:
        executor = submitit.AutoExecutor(folder=log_folder, cluster=cluster)
        executor.update_parameters(
            name=config.name, **{_submitit_name(key): value for key, value in options.items()}
        )
        return executor

    try:
        with tempfile.TemporaryDirectory() as temporary:  # fails before anything is written
            executor_in(Path(temporary))
    except (
        Exception
    ) as error:  # a missing sbatch, an unknown cluster, an unknown key: of many types
        text = f"{' '.join(str(error).split())}; use cluster=local on a machine without SLURM"
        raise ConfigError(("--slurm", text)) from error
    claim_folder(config, folder)
    executor = executor_in(folder / "jobs")
    command = [sys.executable, "-m", "metalearn", "sweep", str(Path(config.file).resolve())]
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


def _submitit_name(key: str) -> str:
    """Return submitit's own option names unchanged; others get the prefix of SLURM options."""
    own_keys = (
        "timeout_min",
        "mem_gb",
        "nodes",
        "cpus_per_task",
        "gpus_per_node",
        "tasks_per_node",
        "stderr_to_stdout",
    )
    return key if key in own_keys or key.startswith(("slurm_", "local_")) else f"slurm_{key}"
