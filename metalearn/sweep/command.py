"""`metalearn sweep FILE`: this process is one worker, or the parent of several.

Any number of commands may share one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from metalearn.config.plugins import as_options, loaded
from metalearn.errors import ConfigError, Stopped
from metalearn.logger import log
from metalearn.machine import cores
from metalearn.report.sweep_page import write_sweep_report
from metalearn.run.signals import signals
from metalearn.sweep.file import Sweep, read
from metalearn.sweep.request import claim_folder
from metalearn.sweep.trial_queue import TrialQueue, best_trial
from metalearn.sweep.worker import with_group, work
from metalearn.tracking.tracker import log_page

# what a parent gives each of its workers, where the experiment names none
THREADS = "METALEARN_SWEEP_THREADS"


def sweep(
    name: str, workers: int, out: Path | None, wandb: bool, slurm: Sequence[str] | None
) -> bool:
    """Run a sweep here, on a cluster, or with W&B's agents; returns False if all trials failed."""
    config = read(name)
    if wandb:
        register_with_wandb(config)
        return True
    folder = out or Path("runs") / config.name
    if slurm is not None:
        from metalearn.sweep.slurm import submit

        submit(config, folder, workers, slurm)
        return True
    run_sweep(config, folder, workers)
    if THREADS in os.environ:
        return True  # the parent concludes
    print(conclusion(config, folder))
    page = write_sweep_report([folder], folder / "report.html")
    log_page(with_group(config, config.experiment, folder), config.name, folder, page)
    print(f"report: {page}")
    return any(row["state"] != "failed" for row in TrialQueue(config, folder).records())


def run_sweep(config: Sweep, folder: Path, workers: int) -> None:
    """Run the remaining trials of a sweep, in this process or in several."""
    claim_folder(config, folder)
    if workers == 1:
        threads = os.environ.get(THREADS, "")
        work(config, folder, int(threads) if threads.isdigit() and threads != "0" else None)
    else:
        _Workers(config, folder, workers).run()


def conclusion(config: Sweep, folder: Path) -> str:
    """Return the counts of trials, the best trial, notes, and the path of sweep.json as text."""
    queue, metric = TrialQueue(config, folder), config.metric
    rows = queue.records()
    states = [row["state"] for row in rows]
    counts = (f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed"))
    lines = [f"{len(rows)} trials: {', '.join(counts)}"]
    if best := best_trial(rows, metric.sign):
        values = " ".join(f"{key}={value}" for key, value in best["parameters"].items())
        lines.append(f"best: trial {best['number']}, {metric.name} {best['value']:.6g}, {values}")
    if metric.split == "test":
        lines.append(
            "note: this sweep selected on test tasks, so the best value is biased: use a metric "
            "valid/..."
        )
    seeds = config.experiment.run.seeds
    if len(seeds) > 1 and "run.seeds" not in config.parameters:
        text = f"note: every trial used only seed {seeds[0]}, the first of run.seeds {list(seeds)}"
        lines.append(text)
    return "\n".join([*lines, f"sweep: {queue.write()}"])


def register_with_wandb(config: Sweep) -> None:
    """Register the file as a sweep of W&B, whose agents run the trials."""
    from metalearn.tracking.by_wandb import new_sweep

    # W&B knows the metric by the name that it is logged by.
    metric = {**(config.data.get("metric") or {"goal": "minimize"}), "name": config.metric.name}
    print(new_sweep({**config.data, "metric": metric}, config.program))
    log.info(
        "start agents with this command, on machines that have this project and experiment file"
    )


class _Workers:
    """Workers as processes; the trials of a killed one are taken over."""

    def __init__(self, config: Sweep, folder: Path, workers: int) -> None:
        self._sweep, self._folder, self._count = config, folder, workers
        self._running: list[subprocess.Popen[str]] = []
        self._stopping = False

    def run(self) -> None:
        """Start the workers and wait for all.

        Raises Stopped after a signal, ConfigError if a worker ends with an error."""
        with signals(self._stop):
            for _ in range(self._count):
                self._start()
            codes = self._wait(self._running)
            while not self._stopping and min(codes) < 0 and not self._is_done():
                log.info("a worker died before the end of the sweep: starting another one")
                codes = self._wait([self._start()])
        if self._stopping:
            text = f"stopped by a signal; to continue, repeat the command with --out {self._folder}"
            raise Stopped(text)
        if wrong := [code for code in codes if code > 0]:
            text = f"{len(wrong)} workers ended with exit code {wrong[0]}: see above"
            raise ConfigError((str(self._folder), text))

    def _is_done(self) -> bool:
        return TrialQueue(self._sweep, self._folder).is_done()

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "metalearn", "sweep", self._sweep.file]
        worker = subprocess.Popen(
            [*command, "--out", str(self._folder), *as_options(loaded())],
            env={**os.environ, THREADS: str(max(1, cores() // self._count))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert worker.stderr is not None
        threading.Thread(target=_relay, args=(worker.stderr,), daemon=True).start()
        self._running.append(worker)
        return worker

    def _stop(self) -> None:
        self._stopping = True
        for worker in self._running:
            worker.send_signal(signal.SIGTERM)

    def _wait(self, workers: Sequence[subprocess.Popen[str]]) -> list[int]:
        try:
            return [worker.wait() for worker in workers]
        except KeyboardInterrupt:
            self._stop()
            return [worker.wait() for worker in workers]


def _relay(stream: IO[str]) -> None:
    for line in stream:
        log.info(line.rstrip("\n"))
