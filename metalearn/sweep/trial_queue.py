"""Trials and results of a sweep: one Optuna study in a journal file, one lease per trial.

Every decision (a new trial, one taken over, a result) is made under one lock, so that workers, even
if killed at any moment, lose no trial and run none twice. Trials are identified by their number; a
trial's values by its samples."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.storage.files import write_json
from metalearn.sweep.distributions import Unit
from metalearn.sweep.file import Sweep
from metalearn.sweep.hyperband import should_continue
from metalearn.sweep.leases import Leases, exclusive
from metalearn.sweep.parameters import grid_point

DEATHS = 3  # workers that may die at a trial before it counts as failed


class Trial(NamedTuple):
    """One trial whose lease this worker has."""

    number: int
    values: dict[str, Any]
    study: Any  # Optuna's trial


class _JournalLock:
    """The lock of Optuna's journal, of the same kind as the sweep's.

    A line that a crash or a full disk cut short is removed before the next one is written, which
    it would make unreadable."""

    def __init__(self, path: Path, journal: Path) -> None:
        self._path, self._journal = path, journal

    def acquire(self) -> bool:
        self._context = exclusive(self._path)
        self._context.__enter__()
        content = self._journal.read_bytes() if self._journal.exists() else b""
        if content and not content.endswith(b"\n"):
            with self._journal.open("rb+") as handle:
                handle.truncate(content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._context.__exit__(None, None, None)


class TrialQueue:
    """The trials of one sweep, as one worker sees them."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep, self.folder = sweep, folder
        self._optuna = _import_optuna()
        self.leases = Leases(folder / "claims")
        digest = hashlib.sha256(json.dumps(sweep.data.get("parameters")).encode()).hexdigest()
        self._seed = int(digest[:8], 16)
        (folder / "claims").mkdir(parents=True, exist_ok=True)
        with self.lock():
            self._study = self._open()

    def lock(self) -> Any:
        return exclusive(self.folder / ".sweep.lock")

    def _open(self) -> Any:
        """Open or create the study of the folder's journal."""
        optuna, path = self._optuna, self.folder / "journal.log"
        storages, lock = optuna.storages.journal, _JournalLock(self.folder / ".journal.lock", path)
        lock.acquire()
        lock.release()
        backend = storages.JournalFileBackend(str(path), lock_obj=lock)
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="sweep",
            direction=self.sweep.metric.goal,
            load_if_exists=True,
        )

    def next(self) -> Trial | bool | None:
        """Return the next trial to run.

        None while the last trials run elsewhere, False once the sweep is finished."""
        with self.lock():
            for running in self._trials("RUNNING"):
                if not self.leases.is_free(running.number):
                    continue
                trial = self._optuna.trial.Trial(self._study, running._trial_id)
                if self.leases.take(running.number) < DEATHS:
                    return self._with_values(trial)
                self._tell(trial, None, "failed", f"{DEATHS} processes died in it")
            if self._count_started() < self.sweep.cap and not self._target_reached():
                return self._new()
            return None if self._trials("RUNNING") else False

    def _new(self) -> Trial:
        number = self._count_started()
        if self.sweep.method == "grid" and not self._trials("WAITING"):
            self._study.enqueue_trial(grid_point(self.sweep.parameters, number))
        self._study.sampler = self._sampler(number)
        trial = self._study.ask()
        self.leases.take(trial.number)
        return self._with_values(trial)

    def _with_values(self, trial: Any) -> Trial:
        """Sample a trial's values: the same ones again if a killed worker had sampled them."""
        self._study.sampler = self._sampler(trial.number)
        units = {name: distribution.unit() for name, distribution in self.sweep.parameters.items()}
        samples = {
            name: _suggest(trial, name, unit) for name, unit in units.items() if unit is not None
        }
        return Trial(trial.number, self.sweep.convert_samples(samples), trial)

    def _sampler(self, number: int) -> Any:
        """Return a sampler seeded by the trial's number.

        Random search is therefore the same for any number of workers."""
        seed = (self._seed + number) % 2**32
        if self.sweep.method != "bayes":
            return self._optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant_liar, which keeps workers apart, is marked
            return self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # experimental

    def report(self, trial: Trial, count: int, value: float) -> bool:
        """Record validation number `count` of a trial; returns whether the trial continues."""
        trials = self._study.get_trials(deepcopy=False)
        values = {study_trial.number: study_trial.intermediate_values for study_trial in trials}
        if math.isfinite(value) and count not in values[trial.number]:
            trial.study.report(value, count)
            values[trial.number] = {**values[trial.number], count: value}
        if self.sweep.early is None:
            return True
        sign = self.sweep.metric.sign
        curves = {
            number: {step: sign * value for step, value in curve.items()}
            for number, curve in values.items()
        }
        return should_continue(self.sweep.early, curves, trial.number)

    def finish(self, trial: Trial, value: float | None, state: str, why: str = "") -> None:
        """Record a result, unless another worker has taken the trial over meanwhile."""
        with self.lock():
            if self.leases.is_mine(trial.number):
                self._tell(trial.study, value, state, why)
                self._write()

    def _tell(self, trial: Any, value: float | None, state: str, why: str) -> None:
        states = self._optuna.trial.TrialState
        if state == "failed":
            trial.set_user_attr("failed", why)
        # The sampler sees a failed trial as one pruned before its first validation: the worst.
        end = states.COMPLETE if state == "complete" else states.PRUNED
        self._study.tell(trial, value if state == "complete" else None, state=end)
        self.leases.end(trial.number)

    def give_back(self, trial: Trial) -> None:
        """Leave an unfinished trial to the next worker, which resumes from its checkpoint."""
        with self.lock():
            self.leases.give_back(trial.number)

    def is_done(self) -> bool:
        """Return whether no trial remains to be run."""
        with self.lock():
            exhausted = self._count_started() >= self.sweep.cap or self._target_reached()
            return not self._trials("RUNNING") and exhausted

    def _trials(self, state: str) -> list[Any]:
        wanted_state = self._optuna.trial.TrialState[state]
        return [
            trial for trial in self._study.get_trials(deepcopy=False) if trial.state == wanted_state
        ]

    def _count_started(self) -> int:
        """Return the number of trials that have begun."""
        return len(self._study.get_trials(deepcopy=False)) - len(self._trials("WAITING"))

    def _target_reached(self) -> bool:
        metric = self.sweep.metric
        values = [metric.sign * trial.value for trial in self._trials("COMPLETE")]
        return metric.target is not None and any(
            value <= metric.sign * metric.target for value in values
        )

    def records(self) -> list[dict[str, Any]]:
        """Return the trials that have ended, as in sweep.json."""
        complete, pruned = (self._optuna.trial.TrialState[name] for name in ("COMPLETE", "PRUNED"))
        rows = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state not in (complete, pruned):
                continue
            failed = "failed" in trial.user_attrs
            state = "complete" if trial.state == complete else "failed" if failed else "pruned"
            last = trial.intermediate_values.get(max(trial.intermediate_values, default=0))
            value = trial.value if state == "complete" else last if state == "pruned" else None
            values = self.sweep.convert_samples(trial.params)
            rows.append(
                {"number": trial.number, "parameters": values, "value": value, "state": state}
            )
        return sorted(rows, key=lambda row: int(row["number"]))

    def write(self) -> Path:
        """Write sweep.json with the current trials; returns its path."""
        with self.lock():
            return self._write()

    def _write(self) -> Path:
        rows, metric = self.records(), self.sweep.metric
        best = best_trial(rows, metric.sign)
        path = self.folder / "sweep.json"
        header = {"schema": 1, "metric": {"name": metric.name, "goal": metric.goal}}
        write_json(path, {**header, "best": best and best["number"], "trials": rows})
        return path

    def failures(self) -> dict[int, str]:
        """Return the reasons of failed trials, keyed by trial number."""
        trials = self._study.get_trials(deepcopy=False)
        return {
            trial.number: trial.user_attrs["failed"]
            for trial in trials
            if "failed" in trial.user_attrs
        }


def _import_optuna() -> Any:
    """Import optuna and silence its messages below warnings."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def best_trial(rows: list[dict[str, Any]], sign: float) -> dict[str, Any] | None:
    """Return the best complete trial, or None."""
    complete = [row for row in rows if row["state"] == "complete"]
    return min(complete, key=lambda row: (sign * row["value"], row["number"]), default=None)


def _suggest(trial: Any, name: str, unit: Unit) -> Any:
    if unit.position:
        return trial.suggest_categorical(name, list(range(int(unit.high) + 1)))
    if unit.whole:
        return trial.suggest_int(name, int(unit.low), int(unit.high))
    return trial.suggest_float(name, unit.low, unit.high, log=unit.log)
