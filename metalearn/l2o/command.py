"""`metalearn l2o`: train an update rule and compare it with tuned hand-designed optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metalearn.config.build import Parts, build
from metalearn.config.experiment import Experiment, Plan, load
from metalearn.errors import ConfigError
from metalearn.inner.baselines import BASELINES
from metalearn.l2o import tuning
from metalearn.l2o.measure import Losses, over_rates, over_tasks, overhead, problems
from metalearn.l2o.rows import Row, RuleRuns, differences, row
from metalearn.l2o.table import markdown, picture
from metalearn.learned_optimizers import LearnOptimizer
from metalearn.learned_optimizers.inner_run import Optimizee, Problem, optimizee
from metalearn.learned_optimizers.rules.learned_rule import bind_theta
from metalearn.logger import log
from metalearn.rng import fold_in
from metalearn.run.directory import run_folders, status
from metalearn.run.run import run_one
from metalearn.run.trained.load import load_run
from metalearn.storage.files import write_atomic, write_json
from metalearn.tree import trainable, tree_map
from metalearn.types import Meta

SCHEDULES = ("constant", "cosine")
FEW = 64  # problems on which the cost of a step is measured
AHEAD = 10  # Adam has this many times the headline step to reach a learned rule's loss


@dataclass(frozen=True)
class L2OOptions:
    """The options of `metalearn l2o`."""

    experiment: str
    overrides: tuple[str, ...]
    out: Path | None
    also: tuple[str, ...]  # other problems: overrides of task and model, separated by spaces
    inner_seeds: int
    tuning_tasks: int


def run(options: L2OOptions) -> Path:
    """Train, tune and measure; return the folder with optimizers.json, .md and .svg.

    Finished seeds are reused."""
    plan, tests = _check_plan(options)
    experiment, train_parts = plan.experiments[0], tests["as trained"][1]
    out = options.out or Path("runs") / plan.name
    # before any training: an edge of the grid is an error
    baselines = _tune_baselines(experiment, train_parts, options)
    metas = _train(experiment, out / "seeds")
    measurements = []
    for name, (other, parts) in tests.items():
        log.info(f"{experiment.label}: measuring {name}")
        measurements.append(
            {"name": name, **_measure_problem(other, parts, metas, baselines, options)}
        )
    result = {
        "schema": 1,
        "experiment": plan.name,
        "points": list(experiment.evaluate.steps),
        "headline": experiment.evaluate.headline,
        "tasks": experiment.evaluate.episodes,
        "inner_seeds": options.inner_seeds,
        "seeds": list(experiment.run.seeds),
        "tuning_tasks": options.tuning_tasks,
        "grid": list(tuning.GRID),
        "problems": measurements,
    }
    write_json(out / "optimizers.json", result)
    write_atomic(out / "optimizers.md", markdown(result).encode())
    write_atomic(out / "optimizers.svg", picture(result).encode())
    return out


def _check_plan(options: L2OOptions) -> tuple[Plan, dict[str, tuple[Experiment, Parts]]]:
    """Return the plan, and every problem to test on with its parts; raises ConfigError."""
    plan = load(options.experiment, options.overrides)
    if plan.comparison or not isinstance(plan.experiments[0].method, LearnOptimizer):
        raise ConfigError((plan.file, "must have a single `method`, learn_optimizer"))
    experiment, errors = plan.experiments[0], []
    steps, headline = experiment.evaluate.steps, experiment.evaluate.headline
    if steps[0] != 0 or len(steps) < 2 or not isinstance(headline, int) or headline == 0:
        text = "must start with 0 and contain evaluate.headline_step, a later step"
        errors.append(("evaluate.steps", text))
    tests = {}
    for text in ("as trained", *options.also):
        try:
            other = experiment if text == "as trained" else _other(options, text)
            tests[text] = (other, build(other))
            _check_same_rule(tests["as trained"], tests[text])
        except ConfigError as error:
            errors += error.problems if text == "as trained" else [(f"--also {text}", str(error))]
            if text == "as trained":
                break
    if errors:
        raise ConfigError(*errors)
    return plan, tests


def _other(options: L2OOptions, text: str) -> Experiment:
    """Return the experiment on another problem, with the same learned rule."""
    changes = text.split()
    if not changes or any(
        not override.startswith(("task.", "model.", "evaluate.task.")) for override in changes
    ):
        raise ConfigError(("", "must be overrides of task and model, separated by spaces"))
    return load(options.experiment, [*options.overrides, *changes]).experiments[0]


def _check_same_rule(home: tuple[Experiment, Parts], other: tuple[Experiment, Parts]) -> None:
    """Raises ConfigError if what was learned for one network does not fit another."""
    shapes, other_shapes = (
        {name: value.shape for name, value in parts.method.init(fold_in(0, "like")).meta.items()}
        for _, parts in (home, other)
    )
    if shapes != other_shapes:
        text = f"has separate parameters for every network: {home[0].method.rule.name}"
        raise ConfigError(("method.rule", f"{text} cannot be tested on another"))


def _train(experiment: Experiment, out: Path) -> list[Meta]:
    """Return theta of every seed, trained if it is not there yet."""
    several = len(experiment.run.seeds) > 1
    metas = []
    for seed, folder in (
        run_folders(experiment, out) if several else [(experiment.run.seeds[0], out / "seed-0")]
    ):
        seed_experiment = experiment.with_seed(seed)
        if status(folder, seed_experiment) == "other":
            text = "contains a run of another config: choose another --out, or remove it"
            raise ConfigError((str(folder), text))
        if status(folder, seed_experiment) != "finished":
            run_one(seed_experiment, folder)
        metas.append(load_run(folder).state.meta)
    return metas


def _target(experiment: Experiment, parts: Parts) -> Optimizee:
    """Return the objective of the tested problem, in its own units."""
    return optimizee(parts.learner, parts.test.spec, experiment.method.batch)


def _nonzero_points(experiment: Experiment) -> tuple[int, ...]:
    return tuple(point for point in experiment.evaluate.steps if point)


def _tune_baselines(
    experiment: Experiment, parts: Parts, options: L2OOptions
) -> list[tuning.Baseline]:
    """Tune every hand-designed rule with every schedule on training tasks."""
    target, points = _target(experiment, parts), _nonzero_points(experiment)
    tuning_problems = problems(
        parts.train_in_test_form, fold_in(0, "tuning"), options.tuning_tasks, 0, points[-1], 0
    )
    baselines = []
    for name in BASELINES:
        for shape in SCHEDULES:
            log.info(f"{experiment.label}: tuning {name}, {shape}")
            baselines.append(tuning.tune(target, tuning_problems, name, shape, points))
    return baselines


def _measure_problem(
    experiment: Experiment,
    parts: Parts,
    metas: Sequence[Meta],
    baselines: Sequence[tuning.Baseline],
    options: L2OOptions,
) -> Row:
    """Return the rows of one problem: the learned rule, baselines, and Adam tuned per task."""
    points, target = experiment.evaluate.steps, _target(experiment, parts)
    index, inner = points.index(experiment.evaluate.headline), options.inner_seeds
    chunks = _test_problems(experiment, parts, options)
    learned = _measure_learned(experiment, parts, metas, chunks, inner)
    measured_baselines = [
        _measure_baseline(target, base, chunks, points, inner) for base in baselines
    ]
    starts = [tree_map(lambda leaf: leaf[: len(leaf) // inner], chunk) for chunk in chunks]
    adam = next(rule for rule in measured_baselines if rule.label == "adam")
    upper, levels = _measure_adam(experiment, target, starts, adam)
    rows = []
    for rule in (learned, *measured_baselines, upper):
        # the initializations that Adam's levels were computed on
        seed_losses = torch.stack([run.train[0, :, index] for run in rule.runs])
        steps = levels.steps_to(float(seed_losses.mean()))
        rows.append(
            {**row(rule, points), "adam_steps": {"steps": steps, "within": levels.points[-1]}}
        )
    return {"rows": rows, "paired": differences(learned, measured_baselines, index)}


def _measure_learned(
    experiment: Experiment,
    parts: Parts,
    metas: Sequence[Meta],
    chunks: Sequence[Problem],
    inner: int,
) -> RuleRuns:
    """Measure the learned rule of every seed."""
    points, target = experiment.evaluate.steps, _target(experiment, parts)
    like = trainable(parts.learner.init(fold_in(0, "like")))[0]
    learned = experiment.method.rule.build(parts.test.spec.dtype, like=like)
    device_metas = [tree_map(lambda leaf: leaf.to(chunks[0].key.device), meta) for meta in metas]
    rules = [bind_theta(learned, meta, points[-1]) for meta in device_metas]
    runs = [
        _measure_chunks(chunks, lambda chunk, r=rule: over_tasks(target, r, chunk, points), inner)
        for rule in rules
    ]
    cost = overhead(target, rules[0], tree_map(lambda leaf: leaf[:FEW], chunks[0]))
    return RuleRuns(experiment.method.rule.name, "learned", runs, cost, {})


def _measure_baseline(
    target: Optimizee,
    base: tuning.Baseline,
    chunks: Sequence[Problem],
    points: tuple[int, ...],
    inner: int,
) -> RuleRuns:
    """Measure a hand-designed rule at its tuned rates."""
    losses = _measure_chunks(
        chunks, lambda chunk: tuning.measure_baseline(target, chunk, base, points), inner
    )
    rule = tuning.make_rule(base.name, base.schedule, points[-1])(1e-3)
    cost = overhead(target, rule, tree_map(lambda leaf: leaf[:FEW], chunks[0]))
    rates = {str(point): rate for point, rate in base.rates.items()}
    return RuleRuns(base.label, "baseline", [losses], cost, {"rates": rates})


def _test_problems(experiment: Experiment, parts: Parts, options: L2OOptions) -> list[Problem]:
    """Return test problems in chunks [I * T]: the same tasks for every inner seed, one seed after
    another."""
    evaluate, last = experiment.evaluate, experiment.evaluate.steps[-1]
    key, chunks = fold_in(evaluate.seed, "episodes"), []
    for start in range(0, evaluate.episodes, evaluate.chunk):
        tasks = min(evaluate.chunk, evaluate.episodes - start)
        seeds = [
            problems(parts.test, key, tasks, start, last, inner)
            for inner in range(options.inner_seeds)
        ]
        chunks.append(tree_map(lambda *leaves: torch.cat(leaves), *seeds))
    return chunks


def _measure_chunks(chunks: Sequence[Problem], measure: Any, inner: int) -> Losses:
    """Measure chunk by chunk and concatenate along the tasks: [..., I, T, P], without paths."""
    losses = [measure(chunk) for chunk in chunks]
    train, held_out = (
        torch.cat(
            [getattr(chunk_losses, part).unflatten(-2, (inner, -1)) for chunk_losses in losses], -2
        )
        for part in ("train", "held_out")
    )
    return Losses(train, held_out, torch.zeros(0))


def _measure_adam(
    experiment: Experiment, target: Optimizee, chunks: Sequence[Problem], adam: RuleRuns
) -> tuple[RuleRuns, tuning.Levels]:
    """Return (Adam at the best rate of each task, the least mean loss that some rate has reached
    by each step)."""
    points, headline = experiment.evaluate.steps, int(experiment.evaluate.headline)
    rates = tuning.grid(chunks[0])
    rule = tuning.make_rule("adam", "constant", points[-1])
    upper = _measure_chunks(
        chunks, lambda chunk: tuning.best_of_each(over_rates(target, rule, rates, chunk, points)), 1
    )
    length = max(AHEAD * headline, points[-1])
    steps = tuple(range(0, length + 1, max(1, headline // 10)))
    train, held_out, path = _measure_chunks(
        chunks, lambda chunk: over_rates(target, rule, rates, chunk, steps), 1
    )
    levels = tuning.levels(Losses(train[:, 0], held_out[:, 0], path), steps)
    return RuleRuns("adam, per task", "per_task", [upper], adam.overhead, {}), levels
