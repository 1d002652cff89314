"""One worker of a sweep: takes a trial, runs it in its run directory, brings the result; until
nothing is left.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError, Diverged, Stopped
from metalearn.logger import log, prefixed
from metalearn.run.loop import signals
from metalearn.run.run import run_one
from metalearn.storage.files import read_lines
from metalearn.storage.lock import Busy
from metalearn.sweep.desk import Desk, Trial
from metalearn.sweep.file import Metric, Sweep
from metalearn.tracking.tracker import group_of, grouped

WAIT = 0.5  # seconds between two looks for work while others are busy


class Pruned(Exception):
    """A trial that is behind: it ends here, saved."""


def work(sweep: Sweep, folder: Path, threads: int | None = None) -> None:
    """Run trials until all of the sweep's are done, by whomever; Stopped after a signal."""
    desk = Desk(sweep, folder)
    while (trial := desk.next()) is not False:
        if isinstance(trial, Trial) and _run(desk, trial, threads):
            continue
        with signals(lambda: _stopped(folder)):
            time.sleep(WAIT)
    desk.write()


def _stopped(folder: Path) -> None:
    raise Stopped(
        f"stopped by a signal; to go on, give the sweep's command again with --out {folder}"
    )


def _run(desk: Desk, trial: Trial, threads: int | None) -> bool:
    """One trial, whatever becomes of it; a signal, or a fault in the program, gives it back
    unfinished.

    False where its run directory is held by a process that was taken for dead and is not: it is
    given back too."""
    told = f"trial {trial.number}"
    drawn = {
        name: trial.values[name]
        for name, spread in desk.sweep.parameters.items()
        if spread.latent() is not None
    }
    values = ", ".join(f"{name}={value!r}" for name, value in drawn.items())
    log.info(f"{told}: {values or 'nothing varies'}")
    try:
        with desk.claims.beating(trial.number):
            value = _value(desk, trial, threads)
    except Busy as error:
        log.info(f"{told}: {error}")
        desk.give_back(trial)
        return False
    except Pruned:
        log.info(f"{told}: behind the others, ended early")
        desk.tell(trial, None, "pruned")
    except (Diverged, ConfigError) as error:
        log.info(f"{told} failed: {error}")
        desk.tell(trial, None, "failed", str(error))
    except (OSError, KeyboardInterrupt):  # a full disk, a lost file server: not the trial's fault
        desk.give_back(trial)
        raise
    except Exception as error:  # whatever a setting made the program do must not end the others
        text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        log.info(f"{told} failed: {text}")
        desk.tell(trial, None, "failed", text)
    except BaseException:
        desk.give_back(trial)
        raise
    else:
        state = "complete" if math.isfinite(value) else "failed"
        desk.tell(trial, value if state == "complete" else None, state, "its value is not finite")
        log.info(f"{told}: {desk.sweep.metric.name} {value:.6g}")
    return True


def _value(desk: Desk, trial: Trial, threads: int | None) -> float:
    """Run, or continue, the trial's run directory; the sweep's metric."""
    experiment = desk.sweep.trial(trial.values)
    if threads is not None and experiment.run.threads is None:
        experiment = experiment.replace(run=experiment.run.model_copy(update={"threads": threads}))
    experiment = watched(desk.sweep, experiment, desk.folder)
    folder = desk.folder / "trials" / str(trial.number)
    metric = desk.sweep.metric

    def judge(metrics: Path) -> None:
        looks = looks_of(metrics, metric)
        if not desk.look(trial, len(looks), looks[-1]):
            raise Pruned

    with prefixed(f"trial {trial.number}"):
        result = run_one(experiment, folder, judge=judge if metric.split == "valid" else None)
    return value_of(folder, result, metric)


def watched(sweep: Sweep, experiment: Any, folder: Path) -> Any:
    """The trial shown in the sweep's group, in the project that the sweep file names, without lines
    of its own.
    """
    named = {
        key: sweep.data[key]
        for key in ("project", "entity")
        if isinstance(sweep.data.get(key), str)
    }
    experiment = grouped(experiment, group_of(sweep.name, folder), **named)
    track = experiment.run.track
    quiet = track.model_copy(update={"terminal": track.terminal.model_copy(update={"on": False})})
    return experiment.replace(run=experiment.run.model_copy(update={"track": quiet}))


def looks_of(metrics: Path, metric: Metric) -> list[float]:
    """The metric at every look at validation tasks so far; NaN where it is not finite."""
    rows = [
        row
        for row in read_lines(metrics)
        if row.get("kind") == "valid" and row.get("split") == "valid"
    ]
    found = [row.get(metric.of) for row in rows]
    return [math.nan if value is None else float(value) for value in found]


def value_of(folder: Path, result: dict[str, Any], metric: Metric) -> float:
    """The metric of a finished run: at its best look (its last one under checkpoint: last), or at
    the test.
    """
    if metric.split == "test":
        steps, step = result["test"]["steps"], result["headline"]["step"]
        value = (result["test"][metric.of] or [])[steps.index(step)]
        return math.nan if value is None else float(value)
    looks = looks_of(folder / "metrics.jsonl", metric)
    if result["checkpoint"] == "last":
        return looks[-1] if looks else math.nan
    finite = [value for value in looks if math.isfinite(value)]
    best = min if metric.goal == "minimize" else max
    return best(finite) if finite else math.nan
