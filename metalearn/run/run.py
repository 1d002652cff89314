"""One method and one seed, from config.yaml to result.json: a list of stages.

Each stage writes its files to the run directory. Running the list again continues from there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from metalearn.clock import startup_seconds
from metalearn.config.build import Parts, build, make_records, rebuild
from metalearn.config.experiment import Experiment, parse
from metalearn.distributed.ranks import ALONE, Ranks
from metalearn.errors import Diverged, Stopped
from metalearn.evaluate.ledger import CostLedger
from metalearn.executors.timings import ExecutorChoice
from metalearn.logger import log
from metalearn.machine import device_of
from metalearn.report.run_figures import figures
from metalearn.run.checkpoints import save, select_checkpoint
from metalearn.run.directory import (
    START_HASH,
    check_weights,
    request,
    require_same_data,
    require_same_statistics,
    status,
    stored_experiment,
    write_start,
)
from metalearn.run.extra_tests.along import test_along
from metalearn.run.features import record_validation_features
from metalearn.run.final_test import test
from metalearn.run.job import Job
from metalearn.run.loop import train, validate
from metalearn.run.plan import (
    ExecutionPlan,
    build_execution,
    check_ranks,
    plan_execution,
    store_timing,
)
from metalearn.run.shared_search import search
from metalearn.run.signals import signals, stop
from metalearn.run.tuning.choice import (
    copy_earlier_choice,
    record_trials,
    split_fields,
    store_choice,
    stored_choice,
    with_choice,
)
from metalearn.run.tuning.trials import (
    measure_cost,
    run_trials,
    score_in_training,
    trial_folder,
    tune_on_new_tasks,
    validation_score,
)
from metalearn.run.warm_start import find_start_run, initial_state, warm_start
from metalearn.storage.environment import describe
from metalearn.storage.files import cut_lines, read_json, write_json
from metalearn.storage.lock import lock_folder
from metalearn.storage.schema import read_result
from metalearn.tracking.tracker import open_tracker
from metalearn.tree import leaves
from metalearn.types import MetaState

Result = dict[str, Any]
OnValidation = Callable[[Path], None]


def run_one(
    experiment: Experiment,
    folder: Path,
    parts: Parts | None = None,
    *,
    ranks: Ranks = ALONE,
    on_validation: OnValidation | None = None,
    allow_change: bool = False,
) -> Result:
    """Start or continue the run of one seed in `folder`; return the data of result.json.

    `on_validation` is called with metrics.jsonl after every validation; what it raises ends the
    run there. Raises ConfigError while another process is working on the folder, and if the data
    of the run have changed, unless `allow_change`."""
    with lock_run(folder, ranks):
        finished = ranks.on_rank0(lambda: _read_finished(folder))
        if finished is not None:  # another process finished it in the meantime
            return finished
        return run_locked(
            experiment,
            folder,
            parts,
            ranks=ranks,
            on_validation=on_validation,
            allow_change=allow_change,
        )


def run_locked(
    experiment: Experiment,
    folder: Path,
    parts: Parts | None = None,
    *,
    ranks: Ranks = ALONE,
    on_validation: OnValidation | None = None,
    allow_change: bool = False,
) -> Result:
    """Run `run_one` on an unfinished directory that these processes have locked (`lock_run`)."""
    ledger = _ledger(experiment, ranks)
    ledger.add("setup", startup_seconds())
    # All other time is set-up: files, sampling and scoring test tasks, counting FLOPs.
    with signals(lambda: stop(folder), ranks), ledger.span("setup"):
        job = begin(experiment, folder, parts, ledger, ranks, allow_change=allow_change)
        return run(replace(job, on_validation=on_validation))


def run(job: Job) -> Result:
    """Run all stages; return the data of result.json."""
    job = search(job)
    job, state = warm_start(job)
    job, plan = plan_execution(job, state)
    record_validation_features(job)
    with _resume_hint(job.folder), open_tracker(job.folder, job.experiment, figures) as tracker:
        job = replace(job, tracker=tracker)
        copy_earlier_choice(job)
        job, plan, state = tune_training(job, plan, state)
        job, last = meta_train(job, plan, state)
        states, step = tested_states(job, last)
        job = tune_on_new_tasks(job, states[0].meta, step)
        validate_once(job, last, states[0])
        shorter = test_along(job, last)
        return tracker.result(test(job, [state.meta for state in states], step, shorter))


def begin(
    experiment: Experiment,
    folder: Path,
    parts: Parts | None,
    ledger: CostLedger,
    ranks: Ranks,
    start_folder: Path | None = None,
    allow_change: bool = False,
) -> Job:
    """Return the job of a run directory, whose config.yaml takes precedence if it exists.

    Errors are raised before anything is written. `method.start` is searched for next to
    `start_folder`, default the run's own."""
    stored = ranks.on_rank0(lambda: _stored_config(folder))
    experiment = experiment if stored is None else parse(stored).experiments[0]
    parts = build(experiment, to_train=True) if parts is None else parts
    check_ranks(ranks, experiment, parts)
    requested = dict[str, Any]()
    if stored is not None and start_folder is None:  # a trial has the data of its run
        ranks.on_rank0(lambda: require_same_data(folder, parts, allow_change))
    if parts.learner.normalisation == "running" and parts.method.step is not None:
        ranks.on_rank0(lambda: require_same_statistics(folder))
    if experiment.start:
        start_run = find_start_run(
            experiment.start, start_folder or folder, experiment.run.seeds[0]
        )
        check_weights(start_run, experiment)
        requested[START_HASH] = str(read_result(start_run).get("config_hash"))
    requested |= ranks.on_rank0(lambda: request(experiment, folder))
    has_search, has_executor = parts.method.prepare is not None, experiment.run.executor != "auto"
    planned = stored is not None and not has_search and (has_executor or parts.method.step is None)
    recorded = ranks.on_rank0((folder / "environment.json").exists)
    if (has_search and stored is None) or (planned and not recorded):
        facts = {**describe(parts.device), **requested, "devices": ranks.size}
        facts["tasks"] = make_records(parts)
        ranks.on_rank0(lambda: write_start(folder, experiment, facts))
    return Job(experiment, folder, parts, ledger, ranks, planned, requested)


def meta_train(job: Job, plan: ExecutionPlan, state: MetaState) -> tuple[Job, MetaState]:
    """Train; return the job and the state after the last step."""
    if job.parts.method.step is None:  # the same files as of any other run
        job.ranks.on_rank0(job.metrics.touch)
        save(job, 0, state, ())
        return job, state
    execution = build_execution(job, plan)
    job, last = train(job, execution, state)
    store_timing(job, execution)
    return job, last


def tested_states(job: Job, last: MetaState) -> tuple[list[MetaState], int | None]:
    """Return (states, step of the first) that are tested: several are an ensemble."""
    if job.parts.method.step is None:
        return [last], 0 if leaves(last.meta) else None  # a meta that came from another run
    return select_checkpoint(job.experiment, job.folder, last, job.ranks)


def validate_once(job: Job, last: MetaState, tested: MetaState) -> None:
    """Score a run without training once on training and validation tasks."""
    run, stored = job.experiment.run, job.folder / "look.json"
    if run.validate.every is None or (job.parts.method.step and run.meta_steps):
        return
    recorded = job.ranks.on_rank0(lambda: read_json(stored) if stored.exists() else None)
    if recorded is not None:
        record_trials(job, [recorded])
        return
    job.ranks.on_rank0(lambda: cut_lines(job.metrics, -1))  # lines of an interrupted validation
    _, cost = measure_cost(job, lambda: validate(job, int(last.step), tested))
    job.ranks.on_rank0(lambda: write_json(stored, {"cost": cost}))


# tuning of fields that act in training


def tune_training(
    job: Job, plan: ExecutionPlan, state: MetaState
) -> tuple[Job, ExecutionPlan, MetaState]:
    """Tune the fields that act in training: a trial is a training, scored on validation tasks."""
    early, _ = split_fields(job.experiment)
    if not early:
        return job, plan, state
    choice = stored_choice(job, "training")
    if choice is None:
        choice = run_trials(job, early, lambda values, number: _trial(job, values, number))
        store_choice(job, "training", choice)
    job = job.with_experiment(with_choice(job.experiment, choice))
    # A trial compiled another method, and a tuned field may change the initial state.
    run = job.experiment.run
    plan = ExecutionPlan(ExecutorChoice(run.executor, run.chunk))
    return job, plan, initial_state(job.experiment, job.parts, job.folder)


def _trial(job: Job, values: dict[str, Any], number: int) -> tuple[float, int, float]:
    """Train once with `values` in tune/<number>/; return (validation score, step, spread), the
    worst if it diverges. The trial has its own ledger, which is then added as tuning."""
    experiment = with_choice(job.experiment, {"parameters": values}).replace(tune={})
    folder, ledger = trial_folder(job.folder, number), _ledger(experiment, job.ranks)
    parts = rebuild(job.parts, experiment)
    job.ranks.on_rank0(lambda: _clear_other(folder, experiment))
    try:
        with job.ledger.paused(), ledger.span("setup"):
            trial = begin(experiment, folder, parts, ledger, job.ranks, job.folder)
            # the run that the trial belongs to has recorded the cost of its start
            state = initial_state(trial.experiment, parts, job.folder)
            trial, plan = plan_execution(replace(trial, trial=True), state)
            trial, last = meta_train(trial, plan, state)
            states, step = tested_states(trial, last)
            return score_in_training(trial, step) or validation_score(trial, states[0].meta, {})
    except Diverged as error:
        log.info(f"trial {number} failed and gets the worst score: {error}")
        return -math.inf, experiment.evaluate.steps[0], math.nan
    except Stopped:
        stop(job.folder, f" in trial {number}")
        raise
    finally:
        for entry in ledger.totals().values():
            job.ledger.add("tune", **{"seconds": 0.0, **entry})


def _clear_other(folder: Path, experiment: Experiment) -> None:
    """Remove a trial with other values, which an older version stored under this number."""
    if status(folder, experiment) == "other":
        shutil.rmtree(folder)


# the run directory


def _ledger(experiment: Experiment, ranks: Ranks) -> CostLedger:
    """Return the ledger of a run; only that of rank 0 counts FLOPs."""
    device = device_of(experiment.run.device)
    return CostLedger(device, counting=ranks.is_first, waiting=True)


@contextmanager
def lock_run(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Lock the directory for these processes."""
    with ExitStack() as stack:
        ranks.on_rank0(lambda: stack.enter_context(lock_folder(folder)))
        yield


def _read_finished(folder: Path) -> Result | None:
    return read_result(folder) if (folder / "result.json").exists() else None


def _stored_config(folder: Path) -> dict[str, Any] | None:
    """Return the config of an interrupted run; None without one."""
    if not (folder / "config.yaml").exists():
        return None
    experiment = stored_experiment(folder)
    if experiment.run.on_nan == "rollback":
        log.warning(f"{folder}: run.on_nan=rollback no longer exists; continuing with raise")
        experiment = experiment.replace(run=experiment.run.model_copy(update={"on_nan": "raise"}))
    return experiment.resolved()


@contextmanager
def _resume_hint(folder: Path) -> Iterator[None]:
    """Add to system errors, such as a full disk, how to continue the run."""
    try:
        yield
    except OSError as error:
        text = (
            f"{error.strerror or error}: the run is intact up to its newest checkpoint; once "
            f"the cause is fixed, continue with metalearn resume {folder}"
        )
        raise OSError(error.errno, text, error.filename) from error
