"""One method, one seed, from config.yaml to result.json; every stage can be entered again after a
kill.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metalearn.clock import unbilled
from metalearn.config.build import Parts, build
from metalearn.config.experiment import NOT_IN_HASH, Experiment, load
from metalearn.distributed.shared_work import check as check_team
from metalearn.distributed.team import ALONE, Team
from metalearn.errors import ConfigError, Diverged, Stopped
from metalearn.evaluate.ledger import CostLedger
from metalearn.executors.auto import default_threads
from metalearn.logger import log
from metalearn.machine import set_threads
from metalearn.report.run_figures import figures
from metalearn.run.final_test import test_and_write
from metalearn.run.loop import Job, look, ranking, save, signals, stopped_outside, train
from metalearn.run.plan import Decision, clock_of, decide, learn_from
from metalearn.run.shared_search import home_of, searched
from metalearn.run.tune import (
    charge,
    measured,
    score_of,
    search,
    split_fields,
    take_over,
    trial_folder,
    tuned_on_new_tasks,
    with_choice,
)
from metalearn.run.warm_start import begin_state, folder_of
from metalearn.storage import checkpoint
from metalearn.storage.environment import describe
from metalearn.storage.files import cut_lines, read_json, write_json, write_yaml
from metalearn.storage.lock import held
from metalearn.storage.schema import Choice, Environment, checked, read_result
from metalearn.tracking.tracker import tracked
from metalearn.tree import leaves
from metalearn.types import MetaState

NOT_ASKED = tuple(
    f"run.{name}" for name in NOT_IN_HASH
)  # how a run is executed: resume takes it as it is


def run_folders(experiment: Experiment, out: Path) -> list[tuple[int, Path]]:
    """(seed, run directory): DIR itself for one seed, DIR/seed-<n> for several."""
    seeds = experiment.run.seeds
    return (
        [(seeds[0], out)] if len(seeds) == 1 else [(seed, out / f"seed-{seed}") for seed in seeds]
    )


def status(folder: Path, experiment: Experiment) -> str:
    """What lies in a folder: fresh, finished or unfinished (of this config), or other."""
    if not folder.exists():
        return "fresh"
    if not folder.is_dir():
        return "other"
    if not (folder / "config.yaml").exists():
        return (
            "other"
            if any(not entry.name.startswith(".") for entry in folder.iterdir())
            else "fresh"
        )
    if request_hash(folder) != experiment.hash():
        return "other"
    return "finished" if (folder / "result.json").exists() else "unfinished"


def request_hash(folder: Path) -> str:
    """The hash of the config that a run directory was asked for (config.yaml itself gains tuned
    values later).
    """
    if (folder / "result.json").exists():
        return str(read_result(folder).get("config_hash"))
    if (environment := folder / "environment.json").exists():
        return str(checked(Environment, read_json(environment), environment).get("config_hash"))
    return as_asked(stored_experiment(folder), folder).hash()


def stored_experiment(folder: Path) -> Experiment:
    """The experiment of a run directory; ConfigError when there is none."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError((str(folder), "is no run directory: it holds no config.yaml"))
    plan = load(str(folder / "config.yaml"))
    if plan.comparison or len(plan.experiments[0].run.seeds) != 1:
        raise ConfigError((str(folder / "config.yaml"), "should hold one method and one seed"))
    return plan.experiments[0]


def run_one(
    experiment: Experiment,
    folder: Path,
    parts: Parts | None = None,
    judge: Callable[[Path], None] | None = None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Start the run of one seed in `folder`, or continue the one that lies there; returns
    result.json's data.

    `judge` is called with metrics.jsonl after every look at validation tasks; what it raises ends
    the run there.

    Raises ConfigError while another process is at work on the folder.
    """
    with held(folder):
        if (folder / "result.json").exists():  # another process finished it in the meantime
            return read_result(folder)
        with signals(lambda: _stopped_in(folder)):
            job, state = _opened(experiment, folder, parts, team)
        job.judge = judge
        # What no phase claims is set-up: files, drawing and scoring test tasks, counting FLOPs.
        with signals(lambda: stopped_outside(job)), job.ledger.span("setup"):
            take_over(job)
            with tracked(job.folder, job.experiment, figures) as job.track, _intact(folder):
                return job.track.result(_from_training_to_result(job, state))


@contextmanager
def _intact(folder: Path) -> Iterator[None]:
    """An error of the system (a full disk, a folder that became read-only) says that what was saved
    is whole.
    """
    try:
        yield
    except OSError as error:
        text = (
            f"{error.strerror or error}: the run is whole up to its newest checkpoint; when "
            f"this is mended, go on"
        )
        raise OSError(
            error.errno, f"{text} with metalearn resume {folder}", error.filename
        ) from error


def _from_training_to_result(job: Job, state: MetaState) -> dict[str, Any]:
    request = request_hash(job.folder)
    if _tune_training(job):
        state, _ = begin_state(
            job.experiment, job.parts, job.folder
        )  # a tuned field may decide the start
    last = _trained(job, state)
    states, step = chosen_states(job, last)
    job.experiment = tuned_on_new_tasks(job, states[0].meta)
    _rewrite(job)
    _look_once(job, last, states[0])
    return test_and_write(job, [found.meta for found in states], request, step)


def _look_once(job: Job, last: MetaState, tested: MetaState) -> None:
    """A run without training still shows training against validation tasks, and pays for it,
    once.
    """
    if job.experiment.run.validate.every is None or (
        job.parts.method.step and job.experiment.run.meta_steps
    ):
        return
    stored = job.folder / "look.json"
    if stored.exists():
        charge(job, [read_json(stored)])
        return
    cut_lines(job.metrics, -1)  # what a kill may have left of this look
    _, cost = measured(job, lambda: look(job, int(last.step), tested))
    write_json(stored, {"cost": cost})


def _opened(
    experiment: Experiment,
    folder: Path,
    parts: Parts | None,
    team: Team,
    trial_of: Path | None = None,
) -> tuple[Job, MetaState]:
    """Build everything, then write config.yaml (first) and environment.json, or take the ones that
    lie there.
    """
    begin = time.perf_counter()
    before = unbilled()
    old = (folder / "config.yaml").exists()
    experiment = stored_experiment(folder) if old else experiment
    parts = build(experiment, to_train=True) if parts is None else parts
    check_team(team, experiment, parts)
    ledger, asked = CostLedger(parts.device), _asked(experiment, folder)
    decided = (
        parts.method.step is None or experiment.run.executor != "auto"
    )  # else killed between search and choice
    open_ = (
        old and parts.method.prepare is None and decided
    )  # all is decided: what was spent is to be read
    if experiment.start:
        folder_of(
            experiment.start, trial_of or folder, experiment.run.seeds[0]
        )  # refused before anything is written
    if not old and parts.method.prepare is not None:
        _write_begin(folder, experiment, parts, asked, {"devices": team.size})
    experiment, parts, carried = searched(experiment, parts, folder, ledger)
    state, paid = begin_state(experiment, parts, trial_of or folder)
    paid = {} if trial_of else paid  # the run that a trial belongs to has paid for its start
    threads = set_threads(
        experiment.run.threads or max(1, default_threads(state) // team.local_size)
    )
    decision = None
    if not open_:
        decision = decide(experiment, parts, state, team)
        for text in _told(experiment, parts, decision):
            log.info(f"{experiment.label} seed {experiment.run.seeds[0]}: {text}")
        run = experiment.run.model_copy(
            update={
                **decision.way._asdict(),
                "threads": threads,
                "workers": experiment.run.workers or threads,
            }
        )
        experiment = experiment.replace(run=run)
        _write_begin(folder, experiment, parts, asked, {"devices": team.size, **decision.facts})
    elif not (folder / "environment.json").exists():
        _write_environment(folder, parts, asked, {"devices": team.size})
    for phase, entry in paid.items():
        ledger.add(phase, **{"seconds": 0.0, **entry})
    job = Job(
        experiment,
        experiment.run.seeds[0],
        folder,
        parts,
        ledger,
        team,
        begun=begin,
        imports=before,
    )
    job.decision, job.started = decision, paid
    job.carried = carried + sum(entry.get("seconds") or 0.0 for entry in paid.values())
    billed = (
        ledger.seconds("search")
        + ledger.seconds("setup")
        - (paid.get("search", {}).get("seconds") or 0.0)
    )
    ledger.add("setup", before + time.perf_counter() - begin - max(0.0, billed - carried))
    return job, state


def _asked(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """What the run was asked for, as it was first written down: its hash, and one that is the same
    for all seeds.
    """
    environment = folder / "environment.json"
    old = checked(Environment, read_json(environment), environment) if environment.exists() else {}
    first = as_asked(experiment, folder)
    fresh = {
        "config_hash": first.hash(),
        "request": first.with_seed(0).hash(),
        "config": first.resolved(),
    }
    return {name: old.get(name, value) for name, value in fresh.items()}


def changed(folder: Path, experiment: Experiment) -> list[str]:
    """What differs between the config that a run began with and the one that lies there: `key:
    before -> now`.
    """
    found = folder / "environment.json"
    before = flat(read_json(found).get("config") or {}) if found.exists() else {}
    now = flat(as_asked(experiment, folder).resolved())
    keys = [key for key in {**before, **now} if not key.startswith(NOT_ASKED)] if before else []
    return [
        f"{key}: {_word(before.get(key))} -> {_word(now.get(key))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return found


def _word(value: Any) -> str:
    return json.dumps(value)


def as_asked(experiment: Experiment, folder: Path) -> Experiment:
    """A stored experiment without what the run's own search has found."""
    return experiment.replace(found=None) if home_of(folder).exists() else experiment


def _write_begin(
    folder: Path, experiment: Experiment, parts: Parts, asked: dict[str, Any], facts: dict[str, Any]
) -> None:
    write_yaml(folder / "config.yaml", experiment.resolved())
    _write_environment(folder, parts, asked, facts)


def _write_environment(
    folder: Path, parts: Parts, asked: dict[str, Any], facts: dict[str, Any]
) -> None:
    write_json(folder / "environment.json", {**describe(parts.device), **asked, **facts})


def _stopped_in(folder: Path) -> None:
    raise Stopped(f"stopped by a signal before training; go on with: metalearn resume {folder}")


def _told(experiment: Experiment, parts: Parts, decision: Decision) -> list[str]:
    """What a run says before its first step: auto's choice, what a precision costs, memory that
    will not do.
    """
    told = list(decision.warnings)
    if experiment.run.executor == "auto" and parts.method.step is not None:
        told.append(f"executor {decision.way} ({decision.why})")
    error = decision.facts.get("precision", {}).get("gradient_error")
    if error is not None and experiment.run.precision != "float32":
        told.append(
            f"the meta-gradient in {experiment.run.precision} differs by {error:.1e} from that "
            f"in float32"
        )
    return told


def _trained(job: Job, state: MetaState) -> MetaState:
    if job.parts.method.step is None:
        job.metrics.touch()
        save(job, 0, state)  # nothing is learned across tasks: the same files as any other run
        return state
    clock = clock_of(job.experiment, job.parts, job.decision, job.team)
    state = train(job, state, clock)
    if job.team.size == 1:
        learn_from(clock, job.experiment, job.parts)
    return state


def _tune_training(job: Job) -> bool:
    """Choose the fields that act in training: one whole training a trial, scored on validation
    tasks.
    """
    early, _ = split_fields(job.experiment)
    if not early:
        return False
    stored = job.folder / "tune" / "training.json"
    if stored.exists():
        charge(job, checked(Choice, read_json(stored), stored)["trials"])
    else:
        write_json(stored, search(job, early, lambda values, number: _trial(job, values, number)))
    choice = checked(Choice, read_json(stored), stored)
    job.experiment = with_choice(job.experiment, choice)
    job.parts, job.decision = (
        build(job.experiment),
        None,
    )  # what a trial has made is of another method
    _rewrite(job)
    return True


def _trial(job: Job, values: dict[str, Any], number: int) -> tuple[float, int, float]:
    """One training with `values` in tune/<number>/; (validation score, step, spread), the worst if
    it diverges.
    """
    with job.ledger.paused():  # it keeps a book of its own, which is charged as tuning
        return _paused_trial(job, values, number)


def _paused_trial(job: Job, values: dict[str, Any], number: int) -> tuple[float, int, float]:
    experiment = with_choice(job.experiment, {"parameters": values}).replace(tune={})
    folder = trial_folder(job.folder, number)
    trial, state = _opened(experiment, folder, None, job.team, job.folder)
    try:
        with trial.ledger.span("setup"):
            last = _trained(trial, state)
            states, _ = chosen_states(trial, last)
            return score_of(trial, states[0].meta, {})
    except Diverged as error:
        log.info(f"trial {number} scores worst: {error}")
        return -math.inf, experiment.evaluate.steps[0], math.nan
    except Stopped:
        raise Stopped(
            f"stopped by a signal in trial {number}; go on with: metalearn resume {job.folder}"
        ) from None
    finally:
        job.carried += trial.carried  # what an earlier process spent on it
        for entry in trial.ledger.totals().values():
            job.ledger.add("tune", **{"seconds": 0.0, **entry})


def _rewrite(job: Job) -> None:
    """config.yaml with the chosen values, before the first test episode is drawn."""
    write_yaml(job.folder / "config.yaml", job.experiment.resolved())


def chosen_states(job: Job, last: MetaState) -> tuple[list[MetaState], int | None]:
    """(states, step of the first): the last state, the best validated one, or the
    kept best ones.
    """
    if job.parts.method.step is None:
        return [last], 0 if leaves(last.meta) else None  # a meta that came from another run
    end = int(last.step)
    how = job.experiment.evaluate.checkpoint
    if how == "last":
        return [last], end
    wanted = job.experiment.run.validate.keep if how == "ensemble" else 1
    found: list[tuple[MetaState, int]] = []
    for step in ranking(job):
        path = checkpoint.path_of(job.checkpoints, step)
        if len(found) == wanted or not path.exists():
            continue
        try:
            found.append((checkpoint.load(path, last), step))
        except ConfigError as error:
            log.warning(f"{error}; taking the next best checkpoint")
    if not found:
        return [last], end
    return [state for state, _ in found], found[0][1]
