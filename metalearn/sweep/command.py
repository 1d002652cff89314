"""`metalearn sweep FILE`: this process is one worker, or the parent of several; any number may
share one folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from metalearn.errors import ConfigError, Stopped
from metalearn.logger import log
from metalearn.machine import cores
from metalearn.report.sweep_page import write_sweep_report
from metalearn.run.loop import signals
from metalearn.sweep.desk import Desk, claim_folder
from metalearn.sweep.file import Sweep, read
from metalearn.sweep.worker import watched, work
from metalearn.tracking.tracker import tell_page

# what a parent gives each of its workers, where the experiment names none
THREADS = "METALEARN_SWEEP_THREADS"


def sweep(
    name: str, workers: int, out: Path | None, wandb: bool, slurm: Sequence[str] | None
) -> None:
    """Run a sweep here, on a cluster, or by W&B's own agents."""
    found = read(name)
    if wandb:
        hand_over(found)
        return
    folder = out or Path("runs") / found.name
    if slurm is not None:
        from metalearn.sweep.slurm import submit

        submit(found, folder, workers, slurm)
        return
    claim_folder(found, folder)
    if workers == 1:
        given = os.environ.get(THREADS, "")
        work(found, folder, int(given) if given.isdigit() and given != "0" else None)
    else:
        _several(found, folder, workers)
    if THREADS not in os.environ:
        print(conclusion(found, folder))
        page = write_sweep_report([folder], folder / "report.html")
        tell_page(watched(found, found.experiment, folder), found.name, folder, page)
        print(f"report: {page}")


def conclusion(found: Sweep, folder: Path) -> str:
    """The best trial in a sentence, and where everything is."""
    desk = Desk(found, folder)
    rows = {row["number"]: row for row in desk.records()}
    counts = {
        state: sum(row["state"] == state for row in rows.values())
        for state in ("complete", "pruned", "failed")
    }
    lines = [
        f"{len(rows)} trials: " + ", ".join(f"{count} {state}" for state, count in counts.items())
    ]
    sign = 1.0 if found.metric.goal == "minimize" else -1.0
    done = [row for row in rows.values() if row["state"] == "complete"]
    if done:
        best = min(done, key=lambda row: (sign * row["value"], row["number"]))
        values = " ".join(f"{key}={value}" for key, value in best["parameters"].items())
        lines.append(
            f"best: trial {best['number']}, {found.metric.name} {best['value']:.6g}, {values}"
        )
    if found.metric.split == "test":
        lines.append(
            "note: this sweep chose on test tasks: the best value is no estimate for new ones; "
            "say valid/..."
        )
    seeds = found.experiment.run.seeds
    if len(seeds) > 1 and "run.seeds" not in found.parameters:
        lines.append(
            f"note: every trial ran seed {seeds[0]} alone, the first of run.seeds {list(seeds)}"
        )
    lines.append(f"sweep: {desk.write()}")
    return "\n".join(lines)


def hand_over(found: Sweep) -> None:
    """Give the same file to W&B's sweep; its agents run the trials."""
    from metalearn.tracking.by_wandb import new_sweep

    # W&B knows the metric by the name that it is logged by.
    metric = {**(found.data.get("metric") or {}), "name": found.metric.name}
    print(new_sweep({**found.data, "metric": metric}, found.program))
    log.info(
        "start as many agents as you like, on any machine that has this project and this "
        "experiment file"
    )


def _several(found: Sweep, folder: Path, workers: int) -> None:
    """Workers as processes of their own. What a killed one left is taken over by the others, or by
    one more.
    """
    share = max(1, cores() // workers)
    environment = {**os.environ, THREADS: str(share)}
    words = [sys.executable, "-m", "metalearn", "sweep", found.file, "--out", str(folder)]
    stopping = threading.Event()

    def start() -> subprocess.Popen[str]:
        made = subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert made.stderr is not None
        threading.Thread(target=_relay, args=(made.stderr,), daemon=True).start()
        return made

    running = [start() for _ in range(workers)]

    def stop() -> None:
        stopping.set()
        for one in running:
            one.send_signal(signal.SIGTERM)

    with signals(stop):
        codes = _wait(running, stop)
        while (
            not stopping.is_set()
            and any(code < 0 for code in codes)
            and not Desk(found, folder).finished()
        ):
            log.info("a worker died before the sweep was done: one more begins")
            running.append(start())
            codes = _wait(running[-1:], stop)
    if stopping.is_set():
        raise Stopped(
            f"stopped by a signal; to go on, give the sweep's command again with --out {folder}"
        )
    wrong = [code for code in codes if code > 0]
    if wrong:
        raise ConfigError(
            (str(folder), f"{len(wrong)} workers ended with exit code {wrong[0]}: see above")
        )


def _wait(running: Sequence[subprocess.Popen[str]], stop: object) -> list[int]:
    try:
        return [one.wait() for one in running]
    except KeyboardInterrupt:
        assert callable(stop)
        stop()
        return [one.wait() for one in running]


def _relay(stream: IO[str]) -> None:
    for line in stream:
        log.info(line.rstrip("\n"))
