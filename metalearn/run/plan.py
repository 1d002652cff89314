"""The execution plan: predicted memory, executor and error of the precision; the training step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from metalearn.config.build import Parts, make_records
from metalearn.config.experiment import Experiment
from metalearn.config.signature import signature
from metalearn.distributed.ranks import ALONE, Ranks, check_cards
from metalearn.errors import ConfigError
from metalearn.executors import memory
from metalearn.executors.auto import (
    SHORT,
    Work,
    choose,
    choose_again,
    configured_choice,
    default_threads,
)
from metalearn.executors.chunks import identity, workers_on
from metalearn.executors.executor import is_chunked
from metalearn.executors.precision import FAR, gradient_error, with_precision
from metalearn.executors.step import (
    TrainStep,
    build_train_step,
    make_batch_sampler,
    with_run_options,
)
from metalearn.executors.timings import ExecutorChoice, Timing, load, save
from metalearn.executors.trials import ExecutorTrials
from metalearn.logger import log
from metalearn.machine import set_threads
from metalearn.rng import fold_in
from metalearn.run.directory import write_start
from metalearn.run.job import Job
from metalearn.storage.environment import describe
from metalearn.storage.files import write_yaml
from metalearn.tree import take
from metalearn.types import MetaState, Method

FEW = 2  # tasks whose gradient is compared with that in full precision


@dataclass(frozen=True)
class ExecutionPlan:
    """How the steps of a run are executed, and what was measured to choose it."""

    choice: ExecutorChoice
    facts: dict[str, Any] = field(default_factory=dict)  # for environment.json
    why: str = "asked for"
    messages: tuple[str, ...] = ()
    # of auto in this process: timings and compiled steps of its trials, the work that was timed,
    # and run.chunk of the config
    executor_trials: ExecutorTrials | None = None
    work: Work | None = None
    asked_chunk: int | None = None


def check_ranks(ranks: Ranks, experiment: Experiment, parts: Parts) -> None:
    """Raise ConfigError for settings that are incompatible with the number of processes."""
    check_cards(ranks, parts.device)
    run, problems = experiment.run, list[tuple[str, str]]()
    if parts.method.task_grad is not None and run.tasks_per_step < ranks.size:
        text = f"is {run.tasks_per_step}, fewer than the {ranks.size} processes of --devices"
        problems.append(("run.tasks_per_step", f"{text}: each process needs at least one task"))
    if ranks.size > 1 and run.device.startswith("cuda:"):
        text = f"is {run.device}, but every process uses its own GPU: use cuda or auto"
        problems.append(("run.device", text))
    if problems:
        raise ConfigError(*problems)


def plan_execution(job: Job, state: MetaState) -> tuple[Job, ExecutionPlan]:
    """Choose executor, chunk size and threads, unless config.yaml has them.

    They are written there and to environment.json."""
    run, ranks = job.experiment.run, job.ranks
    threads = run.threads or max(1, default_threads(state) // ranks.local_size)
    threads = set_threads(threads)
    if job.planned:
        return job, ExecutionPlan(ExecutorChoice(run.executor, run.chunk))
    with job.ledger.span("compile"):
        plan = ranks.on_rank0(lambda: decide(job.experiment, job.parts, state, ranks))
    for text in plan.messages:
        log.info(f"{job.title}: {text}")
    choices = {**plan.choice._asdict(), "threads": threads, "workers": run.workers or threads}
    experiment = job.experiment.replace(run=run.model_copy(update=choices))
    facts = {**describe(job.parts.device), **job.request, "devices": ranks.size, **plan.facts}
    facts["tasks"] = make_records(job.parts)
    ranks.on_rank0(lambda: write_start(job.folder, experiment, facts))
    return replace(job, experiment=experiment, planned=True), plan


def decide(
    experiment: Experiment, parts: Parts, state: MetaState, ranks: Ranks = ALONE
) -> ExecutionPlan:
    """Predict memory, run the trials of auto, and choose executor and chunk size of a run.

    ConfigError for what cannot be done. Of several processes rank 0 decides, by what its own tasks
    take."""
    run = experiment.run
    if parts.method.step is None or run.meta_steps == 0 or run.engine != "native":
        executor = "vmap" if run.executor == "auto" else run.executor
        return ExecutionPlan(configured_choice(executor, run.chunk, 1, 1))
    tasks = run.tasks_per_step
    if parts.method.task_grad is not None:
        state, tasks = ranks.own_state(state, tasks), ranks.share(tasks)[1]
    method, facts = _method_of(experiment, parts), dict[str, Any]()
    sample = make_batch_sampler(parts.train, parts.method, run.examples_per_step)
    key, workers = fold_in(run.seeds[0], "train"), workers_on(parts.device, run.workers)
    most = _fitting(experiment, parts, method, state, facts, sample(fold_in(key, 0), tasks, 0))
    if run.executor != "auto":
        plan = ExecutionPlan(
            configured_choice(run.executor, run.chunk, tasks, most, workers), facts
        )
    else:
        sizes = tasks, parts.device, run.meta_steps, most, workers
        work = Work(
            method,
            sample,
            key,
            state,
            *sizes,
            compiling=not run.checkpoint_inner,
            precision=run.precision,
            on_nan=run.on_nan,
        )
        trials = _auto(experiment, parts, work)
        facts["executor"] = trials.record()
        plan = ExecutionPlan(trials.choice, facts, trials.why)
        if ranks.size == 1:  # what a trial has made takes steps by itself
            plan = replace(plan, executor_trials=trials, work=work, asked_chunk=run.chunk)
    return replace(plan, messages=tuple(_messages(experiment, plan, tasks, workers)))


def _auto(experiment: Experiment, parts: Parts, work: Work) -> ExecutorTrials:
    name = signature(experiment, parts.train.spec, parts.device)
    trials = choose(work, load(name), experiment.run.chunk)
    save(name, trials.timings)
    return trials


def _method_of(experiment: Experiment, parts: Parts) -> Method:
    run = experiment.run
    return with_precision(parts.method, run.precision, run.checkpoint_inner, parts.device)


def _fitting(
    experiment: Experiment,
    parts: Parts,
    method: Method,
    state: MetaState,
    facts: dict[str, Any],
    data: Any,
) -> int:
    """The number of tasks at once that memory holds; adds what was predicted, and what a precision
    costs, to the facts."""
    run = experiment.run
    if parts.method.task_grad is None:
        return run.tasks_per_step
    few = take(data, slice(0, FEW))
    if run.precision != "float32":
        error = gradient_error(parts.method, method, state, few, run.precision)
        facts["precision"] = {"precision": run.precision, "gradient_error": error}
    if run.checkpoint_inner:
        exact = with_precision(parts.method, "float32", run.checkpoint_inner, parts.device)
        error = gradient_error(parts.method, exact, state, few, "float32")
        if error is None or not error < FAR:
            text = f"changes the gradient of {experiment.base_method.name} by {error:.0e}"
            why = "a part of the gradient bypasses `adapt`; omit it"
            raise ConfigError(("run.checkpoint_inner", f"{text}: {why}"))
    predicted, room = memory.predict(method, state, data), memory.room(parts.device)
    if predicted is None:
        return run.tasks_per_step
    facts["memory"] = {**predicted._asdict(), "room": room}
    return predicted.fits(data.support.x.shape[0], room)


def _messages(experiment: Experiment, plan: ExecutionPlan, tasks: int, workers: int) -> list[str]:
    """What a run logs before its first step: auto's choice, what a precision costs, memory that
    does not suffice."""
    messages, run = _memory_warning(plan, tasks, workers), experiment.run
    if run.executor == "auto":
        messages.append(f"executor {plan.choice} ({plan.why})")
    error = plan.facts.get("precision", {}).get("gradient_error")
    if error is not None:
        text = f"the meta-gradient in {run.precision} differs by {error:.1e} from float32"
        messages.append(text)
    return messages


def _memory_warning(plan: ExecutionPlan, tasks: int, workers: int) -> list[str]:
    facts, choice = plan.facts.get("memory"), plan.choice
    if facts is None:
        return []
    tasks_at_once = {"vmap": tasks, "traced": tasks, "loop": 1, "compiled_loop": 1}
    at_once = tasks_at_once.get(choice.executor, choice.chunk or tasks)
    at_once *= workers if is_chunked(choice.executor, choice.chunk) else 1
    peak = memory.Memory(facts["held"], facts["fixed"], facts["each"]).peak(min(tasks, at_once))
    facts["predicted_peak"] = peak
    if facts["room"] is None or peak <= facts["room"]:
        return []
    return [
        f"warning: {choice} is predicted to take {peak / 1e9:.1f} GB, and "
        f"{facts['room'] / 1e9:.1f} GB are free: use a smaller run.chunk, or "
        "run.checkpoint_inner=true"
    ]


# the training step


class StepTimes:
    """Seconds of steps: the first one, which may compile, apart; of the others the mean."""

    def __init__(self, first: float | None = None) -> None:
        self.first, self.steps, self.seconds, self._before = first, 0, 0.0, (0, 0.0)

    def add(self, seconds: float) -> None:
        if self.first is None:
            self.first = seconds
        else:
            self.steps, self.seconds = self.steps + 1, self.seconds + seconds

    def since_last_call(self) -> float | None:
        """Mean seconds of the steps since the last call; None where there were none."""
        (steps, seconds), self._before = self._before, (self.steps, self.seconds)
        return (self.seconds - seconds) / (self.steps - steps) if self.steps > steps else None


@dataclass(frozen=True)
class Execution:
    """The training step of a run, the plan that it follows, and the seconds that it takes."""

    train_step: TrainStep
    plan: ExecutionPlan
    times: StepTimes


def build_execution(job: Job, plan: ExecutionPlan) -> Execution:
    """The training step that the config of a run describes: built here, or by a trial of `auto`."""
    run, parts, ranks = job.experiment.run, job.parts, job.ranks
    trials = plan.executor_trials
    if trials is not None and plan.choice in trials.train_steps:
        timing = trials.timings.get(plan.choice)
        times = StepTimes(None if timing is None else timing.first)
        return Execution(trials.train_steps[plan.choice], plan, times)
    train_step = build_train_step(
        _method_of(job.experiment, parts),
        make_batch_sampler(parts.train, parts.method, run.examples_per_step),
        fold_in(job.seed, "train"),
        tasks=run.tasks_per_step,
        device=parts.device,
        executor=run.executor,
        chunk=run.chunk,
        workers=run.workers,
        task_slice=ranks.share(run.tasks_per_step),
        sum_over_ranks=ranks.sum if ranks.size > 1 else identity,
    )
    return Execution(with_run_options(train_step, run.precision, run.on_nan), plan, StepTimes())


def replan_if_slow(job: Job, execution: Execution, state: MetaState) -> tuple[Job, Execution]:
    """Job and execution, under another executor if steps take twice as long as in `auto`'s trial.

    For a state that was just saved."""
    seconds, plan = execution.times.since_last_call(), execution.plan
    if plan.executor_trials is None or plan.work is None or seconds is None:
        return job, execution
    work = replace(plan.work, state=state, steps=job.experiment.run.meta_steps - int(state.step))
    trials = choose_again(
        work, plan.executor_trials, execution.train_step, seconds, plan.asked_chunk
    )
    if trials is None:
        return job, execution
    log.info(f"{job.title}: from step {int(state.step)} on executor {trials.choice} ({trials.why})")
    run = job.experiment.run.model_copy(update=trials.choice._asdict())
    job = replace(job, experiment=job.experiment.replace(run=run))
    write_yaml(job.folder / "config.yaml", job.experiment.resolved())
    return job, build_execution(job, replace(plan, choice=trials.choice, executor_trials=trials))


def store_timing(job: Job, execution: Execution) -> None:
    """Store how fast a training was.

    Not on CUDA, where calls return before their work is done."""
    run, times = job.experiment.run, execution.times
    if job.ranks.size > 1 or job.parts.device != "cpu" or run.engine != "native":
        return
    if times.first is not None and times.steps >= SHORT:
        name = signature(job.experiment, job.parts.train.spec, job.parts.device)
        save(name, {execution.plan.choice: Timing(times.first, times.seconds / times.steps)})
