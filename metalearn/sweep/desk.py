"""Where workers get their trials and bring their results: one Optuna study in a journal file, one
claim a trial.

Everything that decides (a new trial, a taken-over one, a result) happens under one lock, so that no
number of workers, killed at any moment, loses a trial or makes one twice. A trial is known by its
number; its values by what was drawn."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.errors import ConfigError
from metalearn.run.tune import import_optuna
from metalearn.storage.files import plain, read_json, write_json
from metalearn.sweep.claims import Claims, alone
from metalearn.sweep.file import Sweep, grid_point
from metalearn.sweep.hyperband import goes_on
from metalearn.sweep.spread import Latent

DEATHS = 3  # processes that a trial may take with it; then it has failed
REQUEST = "sweep-request.json"


class Trial(NamedTuple):
    """One trial that this worker has claimed."""

    number: int
    values: dict[str, Any]
    study: Any  # Optuna's trial


class _Lock:
    """Optuna's journal under the same kind of lock as everything else: a killed process holds
    nothing.

    A line that a crash or a full disk tore is cut off before the next one is written, which it
    would spoil."""

    def __init__(self, path: Path, journal: Path) -> None:
        self._path, self._journal = path, journal

    def acquire(self) -> bool:
        self._held = alone(self._path)
        self._held.__enter__()
        if (
            self._journal.exists()
            and (content := self._journal.read_bytes())
            and not content.endswith(b"\n")
        ):
            with self._journal.open("rb+") as handle:
                handle.truncate(content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._held.__exit__(None, None, None)


class Desk:
    """The desk of one sweep, as one worker sees it."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep, self.folder = sweep, folder
        self._optuna = import_optuna(sweep.file, "a sweep")
        self.claims = Claims(folder / "claims")
        self._seed = int(
            hashlib.sha256(json.dumps(sweep.data.get("parameters")).encode()).hexdigest()[:8], 16
        )
        (folder / "claims").mkdir(parents=True, exist_ok=True)
        with self.lock():
            self._study = self._open()

    def lock(self) -> Any:
        return alone(self.folder / ".sweep.lock")

    def _open(self) -> Any:
        """The study of the folder's journal."""
        optuna, path = self._optuna, self.folder / "journal.log"
        storages, lock = optuna.storages.journal, _Lock(self.folder / ".journal.lock", path)
        lock.acquire()
        lock.release()
        backend = storages.JournalFileBackend(str(path), lock_obj=lock)
        goal = self.sweep.metric.goal
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="sweep",
            direction=goal,
            load_if_exists=True,
        )

    def next(self) -> Trial | bool | None:
        """A trial to run; None: others are at work, ask again; False: there is nothing left to
        do.
        """
        with self.lock():
            running = self._trials("RUNNING")
            for found in running:
                if not self.claims.free(found.number):
                    continue
                if self.claims.take(found.number) < DEATHS:
                    return self._begun(self._optuna.trial.Trial(self._study, found._trial_id))
                why = f"{DEATHS} processes died at it"
                self._tell(
                    self._optuna.trial.Trial(self._study, found._trial_id), None, "failed", why
                )
            if self._made() < self.sweep.cap and not self._reached():
                return self._new()
            return None if self._trials("RUNNING") else False

    def _new(self) -> Trial:
        number = self._made()
        if self.sweep.method == "grid" and not self._trials("WAITING"):
            self._study.enqueue_trial(grid_point(self.sweep.parameters, number))
        self._study.sampler = self._sampler(number)
        made = self._study.ask()
        self.claims.take(made.number)
        return self._begun(made)

    def _begun(self, made: Any) -> Trial:
        """What is drawn for a trial: the same again where a killed worker had drawn it."""
        self._study.sampler = self._sampler(made.number)
        draws = {name: spread.latent() for name, spread in self.sweep.parameters.items()}
        drawn = {
            name: _suggest(made, name, latent)
            for name, latent in draws.items()
            if latent is not None
        }
        return Trial(made.number, self.sweep.drawn(drawn), made)

    def _sampler(self, number: int) -> Any:
        """Seeded by the trial's number: a random search is the same however many workers there
        are.
        """
        seed = (self._seed + number) % 2**32
        if self.sweep.method != "bayes":
            return self._optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # constant_liar, which keeps workers apart, calls itself experimental
            return self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def look(self, trial: Trial, count: int, value: float) -> bool:
        """Write down a look at validation tasks; whether the trial goes on."""
        states = self._study.get_trials(deepcopy=False)
        known = {one.number: one.intermediate_values for one in states}
        if math.isfinite(value) and count not in known[trial.number]:
            trial.study.report(value, count)
            known[trial.number] = {**known[trial.number], count: value}
        if self.sweep.early is None:
            return True
        sign = 1.0 if self.sweep.metric.goal == "minimize" else -1.0
        curves = {
            number: {at: sign * value for at, value in seen.items()}
            for number, seen in known.items()
        }
        return goes_on(self.sweep.early, curves, trial.number)

    def tell(self, trial: Trial, value: float | None, state: str, why: str = "") -> None:
        """Bring a result; one of a trial that was lost to another worker meanwhile is left to that
        one.
        """
        with self.lock():
            if self.claims.mine(trial.number):
                self._tell(trial.study, value, state, why)
                self._write()

    def _tell(self, made: Any, value: float | None, state: str, why: str) -> None:
        states = self._optuna.trial.TrialState
        if state == "failed":
            made.set_user_attr("failed", why)
        # To the sampler a trial that failed is one that was pruned before its first look: the worst
        # there is.
        end = states.COMPLETE if state == "complete" else states.PRUNED
        self._study.tell(made, value if state == "complete" else None, state=end)
        self.claims.drop(made.number, finished=True)

    def give_back(self, trial: Trial) -> None:
        """A stopped worker's trial is the next one's, who goes on where it was saved."""
        with self.lock():
            self.claims.drop(trial.number, finished=False)

    def finished(self) -> bool:
        """Whether nothing is left to do."""
        with self.lock():
            return not self._trials("RUNNING") and (
                self._made() >= self.sweep.cap or self._reached()
            )

    def _trials(self, state: str) -> list[Any]:
        wanted = self._optuna.trial.TrialState[state]
        return [one for one in self._study.get_trials(deepcopy=False) if one.state == wanted]

    def _made(self) -> int:
        """Trials that have begun."""
        return len(self._study.get_trials(deepcopy=False)) - len(self._trials("WAITING"))

    def _reached(self) -> bool:
        target, up = self.sweep.metric.target, self.sweep.metric.goal == "maximize"
        done = [one.value for one in self._trials("COMPLETE")]
        return target is not None and any(
            value >= target if up else value <= target for value in done
        )

    def records(self) -> list[dict[str, Any]]:
        """The trials that have ended, as sweep.json has them."""
        complete, pruned = (self._optuna.trial.TrialState[name] for name in ("COMPLETE", "PRUNED"))
        rows = []
        for one in self._study.get_trials(deepcopy=False):
            if one.state not in (complete, pruned):
                continue
            failed = "failed" in one.user_attrs
            state = "complete" if one.state == complete else "failed" if failed else "pruned"
            last = one.intermediate_values.get(max(one.intermediate_values, default=0))
            value = one.value if state == "complete" else last if state == "pruned" else None
            values = self.sweep.drawn(one.params)
            rows.append(
                {"number": one.number, "parameters": values, "value": value, "state": state}
            )
        return sorted(rows, key=lambda row: int(row["number"]))

    def write(self) -> Path:
        """sweep.json, as things stand."""
        with self.lock():
            return self._write()

    def _write(self) -> Path:
        rows = self.records()
        sign = 1.0 if self.sweep.metric.goal == "minimize" else -1.0
        done = [row for row in rows if row["state"] == "complete"]
        best = (
            min(done, key=lambda row: (sign * row["value"], row["number"]))["number"]
            if done
            else None
        )
        metric = {"name": self.sweep.metric.name, "goal": self.sweep.metric.goal}
        path = self.folder / "sweep.json"
        write_json(path, {"schema": 1, "metric": metric, "best": best, "trials": rows})
        return path

    def failures(self) -> dict[int, str]:
        """Why trials failed, by their number."""
        found = self._study.get_trials(deepcopy=False)
        return {one.number: one.user_attrs["failed"] for one in found if "failed" in one.user_attrs}


def _suggest(made: Any, name: str, latent: Latent) -> Any:
    if latent.place:
        return made.suggest_categorical(name, list(range(int(latent.high) + 1)))
    if latent.whole:
        return made.suggest_int(name, int(latent.low), int(latent.high))
    return made.suggest_float(name, latent.low, latent.high, log=latent.log)


def claim_folder(sweep: Sweep, folder: Path) -> None:
    """Make a folder this sweep's, or find that it is; ConfigError where it holds something else."""
    asked = plain({"sweep": sweep.data, "experiment": sweep.experiment.hash()})
    path = folder / REQUEST
    if folder.exists() and not folder.is_dir():
        raise ConfigError((str(folder), "is a file: give another --out"))
    if path.exists():
        check_request(read_json(path), asked, folder)
        if read_json(path) == asked:
            return
    elif folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise ConfigError((str(folder), "holds something that is no sweep: give another --out"))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def check_request(held: Any, asked: dict[str, Any], folder: Path) -> None:
    """The same sweep but for its name and number of trials; else ConfigError with what differs."""
    free = ("run_cap", "name", "description")
    old, new = (
        {k: v for k, v in dict(one.get("sweep") or {}).items() if k not in free}
        for one in (held, asked)
    )
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if not changed and held.get("experiment") != asked["experiment"]:
        changed = ["the experiment file that it runs"]
    if changed:
        text = (
            f"holds a sweep that differs in {', '.join(changed)}: give another --out "
            f"(run_cap alone may change)"
        )
        raise ConfigError((str(folder), text))
