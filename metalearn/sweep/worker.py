"""One worker of a sweep: take a trial, run it in its run directory, record the result; repeat."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError, Diverged, Stopped
from metalearn.logger import log, prefixed
from metalearn.run.run import run_one
from metalearn.run.signals import signals
from metalearn.storage.lock import Busy
from metalearn.sweep.file import Sweep
from metalearn.sweep.metric import validations, value_of
from metalearn.sweep.trial_queue import Trial, TrialQueue
from metalearn.tracking.tracker import group_name, with_wandb_group

WAIT = 0.5  # seconds between two requests for a trial while others run the last ones


class Pruned(Exception):
    """A trial that early termination ends; its run directory is saved."""


def work(sweep: Sweep, folder: Path, threads: int | None = None) -> None:
    """Run trials until all workers have completed the sweep; raises Stopped after a signal."""
    queue = TrialQueue(sweep, folder)
    while (trial := queue.next()) is not False:
        if isinstance(trial, Trial) and _run(queue, trial, threads):
            continue
        with signals(lambda: _stop(folder)):
            time.sleep(WAIT)
    queue.write()


def _stop(folder: Path) -> None:
    raise Stopped(f"stopped by a signal; to continue, repeat the command with --out {folder}")


def _run(queue: TrialQueue, trial: Trial, threads: int | None) -> bool:
    """Run one trial and record its result; after a signal or a machine fault it is given back.

    Returns False if a process that was taken for dead still locks its run directory; the trial is
    then also given back."""
    with prefixed(f"trial {trial.number}"):
        log.info(_describe_values(queue.sweep, trial))
        try:
            with queue.leases.heartbeat(trial.number):
                value = _evaluate_trial(queue, trial, threads)
        except Busy as error:
            log.info(str(error))
            queue.give_back(trial)
            return False
        except Pruned:
            log.info("stopped early (worse than other trials)")
            queue.finish(trial, None, "pruned")
        except (OSError, KeyboardInterrupt):  # a full disk, a lost file server
            queue.give_back(trial)
            raise
        except Exception as error:  # one setting that breaks the program must not end the others
            _fail(queue, trial, _reason(error))
        except BaseException:
            queue.give_back(trial)
            raise
        else:
            _complete(queue, trial, value)
        return True


def _describe_values(sweep: Sweep, trial: Trial) -> str:
    """Return the trial's values of the parameters that vary between trials, as text."""
    varying = [
        name for name, distribution in sweep.parameters.items() if distribution.unit() is not None
    ]
    values = ", ".join(f"{name}={trial.values[name]!r}" for name in varying)
    return values or "nothing varies"


def _reason(error: Exception) -> str:
    if isinstance(error, (Diverged, ConfigError)):
        return str(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _fail(queue: TrialQueue, trial: Trial, why: str) -> None:
    log.info(f"failed: {why}")
    queue.finish(trial, None, "failed", why)


def _complete(queue: TrialQueue, trial: Trial, value: float) -> None:
    if not math.isfinite(value):
        _fail(queue, trial, "the value is not finite")
        return
    log.info(f"{queue.sweep.metric.name} {value:.6g}")
    queue.finish(trial, value, "complete")


def _evaluate_trial(queue: TrialQueue, trial: Trial, threads: int | None) -> float:
    """Run, or resume, the trial's run directory and return the sweep's metric."""
    experiment = queue.sweep.trial(trial.values)
    if threads is not None and experiment.run.threads is None:
        experiment = experiment.replace(run=experiment.run.model_copy(update={"threads": threads}))
    experiment = with_group(queue.sweep, experiment, queue.folder)
    folder = queue.folder / "trials" / str(trial.number)
    metric = queue.sweep.metric

    def on_validation(metrics: Path) -> None:
        values = validations(metrics, metric)
        if not queue.report(trial, len(values), values[-1]):
            raise Pruned

    result = run_one(
        experiment, folder, on_validation=on_validation if metric.split == "valid" else None
    )
    return value_of(folder, result, metric)


def with_group(sweep: Sweep, experiment: Any, folder: Path) -> Any:
    """Return the experiment logged in the sweep's group and project, without terminal output."""
    wandb_options = {
        key: sweep.data[key]
        for key in ("project", "entity")
        if isinstance(sweep.data.get(key), str)
    }
    experiment = with_wandb_group(experiment, group_name(sweep.name, folder), **wandb_options)
    track = experiment.run.track
    quiet = track.model_copy(update={"terminal": track.terminal.model_copy(update={"on": False})})
    return experiment.replace(run=experiment.run.model_copy(update={"track": quiet}))
