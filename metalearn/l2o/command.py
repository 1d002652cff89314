"""`metalearn l2o`: train an update rule and compare it with tuned hand-made optimizers."""

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
from metalearn.l2o.rows import Measured, Row, differences, row
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
AHEAD = 10  # times the headline step that Adam gets to reach a learned rule's loss


@dataclass(frozen=True)
class L2OOptions:
    """The options of `metalearn l2o`."""

    experiment: str
    overrides: tuple[str, ...]
    out: Path | None
    also: tuple[str, ...]  # other problems: overrides of task and model, with spaces between
    inner_seeds: int
    tuning_tasks: int


def run(options: L2OOptions) -> Path:
    """Everything; returns the folder with optimizers.json, .md and .svg.

    Finished seeds are left alone."""
    plan, others = _checked_plan(options)
    experiment, home = plan.experiments[0], others["as trained"][1]
    out = options.out or Path("runs") / plan.name
    # before any training: an edge of the grid is an error
    baselines = _baselines(experiment, home, options)
    metas = _trained(experiment, out / "seeds")
    found = []
    for name, (other, parts) in others.items():
        log.info(f"{experiment.label}: measuring {name}")
        found.append({"name": name, **_measured(other, parts, metas, baselines, options)})
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
        "problems": found,
    }
    write_json(out / "optimizers.json", result)
    write_atomic(out / "optimizers.md", markdown(result).encode())
    write_atomic(out / "optimizers.svg", picture(result).encode())
    return out


def _checked_plan(options: L2OOptions) -> tuple[Plan, dict[str, tuple[Experiment, Parts]]]:
    """The plan, and every problem to test on with its parts; ConfigError with all that is wrong."""
    plan = load(options.experiment, options.overrides)
    if plan.comparison or not isinstance(plan.experiments[0].method, LearnOptimizer):
        raise ConfigError((plan.file, "must have a single `method`, learn_optimizer"))
    experiment, wrong = plan.experiments[0], []
    steps, headline = experiment.evaluate.steps, experiment.evaluate.headline
    if steps[0] != 0 or len(steps) < 2 or not isinstance(headline, int) or headline == 0:
        text = "must start with 0 and contain evaluate.headline_step, a later step"
        wrong.append(("evaluate.steps", text))
    found = {}
    for text in ("as trained", *options.also):
        try:
            other = experiment if text == "as trained" else _other(options, text)
            found[text] = (other, build(other))
            _same_rule(found["as trained"], found[text])
        except ConfigError as error:
            wrong += error.problems if text == "as trained" else [(f"--also {text}", str(error))]
            if text == "as trained":
                break
    if wrong:
        raise ConfigError(*wrong)
    return plan, found


def _other(options: L2OOptions, text: str) -> Experiment:
    """The experiment on another problem: the learned rule stays what it is."""
    changes = text.split()
    if not changes or any(
        not part.startswith(("task.", "model.", "evaluate.task.")) for part in changes
    ):
        raise ConfigError(("", "must be overrides of task and model, separated by spaces"))
    return load(options.experiment, [*options.overrides, *changes]).experiments[0]


def _same_rule(home: tuple[Experiment, Parts], other: tuple[Experiment, Parts]) -> None:
    """ConfigError where what was learned for one network does not fit another."""
    one, two = (
        {name: value.shape for name, value in parts.method.init(fold_in(0, "like")).meta.items()}
        for _, parts in (home, other)
    )
    if one != two:
        text = f"has separate parameters for every network: {home[0].method.rule.name}"
        raise ConfigError(("method.rule", f"{text} cannot be tested on another"))


def _trained(experiment: Experiment, out: Path) -> list[Meta]:
    """Theta of every seed, trained where it is not there yet."""
    many = len(experiment.run.seeds) > 1
    metas = []
    for seed, folder in (
        run_folders(experiment, out) if many else [(experiment.run.seeds[0], out / "seed-0")]
    ):
        one = experiment.with_seed(seed)
        if status(folder, one) == "other":
            text = "contains a run of another config: choose another --out, or remove it"
            raise ConfigError((str(folder), text))
        if status(folder, one) != "finished":
            run_one(one, folder)
        metas.append(load_run(folder).state.meta)
    return metas


def _target(experiment: Experiment, parts: Parts) -> Optimizee:
    """The objective of the tested problem, in its own units."""
    return optimizee(parts.learner, parts.test.spec, experiment.method.batch)


def _points(experiment: Experiment) -> tuple[int, ...]:
    return tuple(point for point in experiment.evaluate.steps if point)


def _baselines(experiment: Experiment, parts: Parts, options: L2OOptions) -> list[tuning.Baseline]:
    """Every hand-made rule under every schedule, its rates chosen on training tasks."""
    target, points = _target(experiment, parts), _points(experiment)
    given = problems(
        parts.train_in_test_form, fold_in(0, "tuning"), options.tuning_tasks, 0, points[-1], 0
    )
    found = []
    for name in BASELINES:
        for shape in SCHEDULES:
            log.info(f"{experiment.label}: tuning {name}, {shape}")
            found.append(tuning.tuned(target, given, name, shape, points))
    return found


def _measured(
    experiment: Experiment,
    parts: Parts,
    metas: Sequence[Meta],
    baselines: Sequence[tuning.Baseline],
    options: L2OOptions,
) -> Row:
    """The rows of one problem: the learned rule, the baselines, and Adam tuned for every task."""
    points, target = experiment.evaluate.steps, _target(experiment, parts)
    place, inner = points.index(experiment.evaluate.headline), options.inner_seeds
    given = _given(experiment, parts, options)
    learned = _learned(experiment, parts, metas, given, inner)
    theirs = [_baseline(target, base, given, points, inner) for base in baselines]
    starts = [tree_map(lambda leaf: leaf[: len(leaf) // inner], part) for part in given]
    adam = next(one for one in theirs if one.label == "adam")
    upper, levels = _adam(experiment, target, starts, adam)
    rows = []
    for one in (learned, *theirs, upper):
        # the starts that Adam's levels were computed on
        first = torch.stack([run.train[0, :, place] for run in one.runs])
        steps = levels.steps_to(float(first.mean()))
        rows.append(
            {**row(one, points), "adam_steps": {"steps": steps, "within": levels.points[-1]}}
        )
    return {"rows": rows, "paired": differences(learned, theirs, place)}


def _learned(
    experiment: Experiment,
    parts: Parts,
    metas: Sequence[Meta],
    given: Sequence[Problem],
    inner: int,
) -> Measured:
    """The learned rule of every seed."""
    points, target = experiment.evaluate.steps, _target(experiment, parts)
    like = trainable(parts.learner.init(fold_in(0, "like")))[0]
    learned = experiment.method.rule.build(parts.test.spec.dtype, like=like)
    here = [tree_map(lambda leaf: leaf.to(given[0].key.device), meta) for meta in metas]
    rules = [bind_theta(learned, meta, points[-1]) for meta in here]
    runs = [
        _over(given, lambda part, r=rule: over_tasks(target, r, part, points), inner)
        for rule in rules
    ]
    cost = overhead(target, rules[0], tree_map(lambda leaf: leaf[:FEW], given[0]))
    return Measured(experiment.method.rule.name, "learned", runs, cost, {})


def _baseline(
    target: Optimizee,
    base: tuning.Baseline,
    given: Sequence[Problem],
    points: tuple[int, ...],
    inner: int,
) -> Measured:
    """A hand-made rule at its tuned rates."""
    found = _over(given, lambda part: tuning.measured(target, part, base, points), inner)
    rule = tuning.rule_of(base.name, base.schedule, points[-1])(1e-3)
    cost = overhead(target, rule, tree_map(lambda leaf: leaf[:FEW], given[0]))
    rates = {str(point): rate for point, rate in base.rates.items()}
    return Measured(base.label, "baseline", [found], cost, {"rates": rates})


def _given(experiment: Experiment, parts: Parts, options: L2OOptions) -> list[Problem]:
    """Test problems in chunks [I * T]: the same tasks once for every inner seed, one seed after
    another."""
    evaluate, last = experiment.evaluate, experiment.evaluate.steps[-1]
    key, chunks = fold_in(evaluate.seed, "episodes"), []
    for start in range(0, evaluate.episodes, evaluate.chunk):
        tasks = min(evaluate.chunk, evaluate.episodes - start)
        found = [
            problems(parts.test, key, tasks, start, last, inner)
            for inner in range(options.inner_seeds)
        ]
        chunks.append(tree_map(lambda *leaves: torch.cat(leaves), *found))
    return chunks


def _over(chunks: Sequence[Problem], measure: Any, inner: int) -> Losses:
    """Chunk by chunk, put together along the tasks: [..., I, T, P]; paths are not needed any
    more."""
    found = [measure(chunk) for chunk in chunks]
    train, held = (
        torch.cat([getattr(one, part).unflatten(-2, (inner, -1)) for one in found], -2)
        for part in ("train", "held_out")
    )
    return Losses(train, held, torch.zeros(0))


def _adam(
    experiment: Experiment, target: Optimizee, given: Sequence[Problem], tuned: Measured
) -> tuple[Measured, tuning.Levels]:
    """(Adam at the best rate of every single task, the least mean loss that some rate has reached
    by each step)."""
    points, headline = experiment.evaluate.steps, int(experiment.evaluate.headline)
    rates = tuning.grid(given[0])
    rule = tuning.rule_of("adam", "constant", points[-1])
    upper = _over(
        given, lambda part: tuning.best_of_each(over_rates(target, rule, rates, part, points)), 1
    )
    length = max(AHEAD * headline, points[-1])
    steps = tuple(range(0, length + 1, max(1, headline // 10)))
    train, held, path = _over(given, lambda part: over_rates(target, rule, rates, part, steps), 1)
    levels = tuning.levels(Losses(train[:, 0], held[:, 0], path), steps)
    return Measured("adam, per task", "per_task", [upper], tuned.overhead, {}), levels
