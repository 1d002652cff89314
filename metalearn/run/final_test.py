"""The test of a trained run: scores.npz, sample episodes, and result.json last."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from metalearn.config.build import Parts
from metalearn.config.experiment import Experiment
from metalearn.distributed.curve import TaskSet, curve
from metalearn.evaluate.curves import Curve, learn_keys, mean_ci95
from metalearn.evaluate.ensemble import ensemble
from metalearn.evaluate.ledger import CostLedger, known
from metalearn.rng import fold_in
from metalearn.run.cost import cost_block
from metalearn.run.directory import request_hash
from metalearn.run.extra_tests.along import Along
from metalearn.run.extra_tests.inductive import Inductive, inductive_test
from metalearn.run.extra_tests.single import single_test
from metalearn.run.features import features_once
from metalearn.run.job import Job, wall_seconds
from metalearn.run.tuning.choice import tuned_values, tuning_record
from metalearn.storage.environment import git_commit
from metalearn.storage.files import plain, write_atomic, write_json
from metalearn.types import Episode, Key, Meta, Method, TaskSource

PICTURED = 3  # test episodes kept for the report


def test(job: Job, metas: Sequence[Meta], step: int | None, along: Along) -> dict[str, Any]:
    """Test `metas` (several: their ensemble) on the frozen episodes; `along` is written as well.

    Returns the data of result.json, which is written last."""
    evaluate, spent = job.experiment.evaluate, job.ledger.aside()
    tasks = TaskSet("test", evaluate.episodes, evaluate.seed, job.seed, fingerprinted=True)
    with features_once(job.parts, tasks, evaluate.chunk, job.ledger, job.ranks):
        test_curve = curve(job.ranks, job.experiment, job.parts, metas, tasks, spent)
    extra_tests = inductive_test(job, metas), single_test(job, metas), along
    return job.ranks.on_rank0(
        lambda: _write_result(job, metas, step, test_curve, spent, extra_tests)
    )


def _write_result(
    job: Job,
    metas: Sequence[Meta],
    step: int | None,
    test_curve: Curve,
    spent: CostLedger,
    extra_tests: tuple[Inductive, dict[str, Any] | None, Along],
) -> dict[str, Any]:
    """Write the files of the test, result.json last; `spent` is the cost of the test tasks."""
    inductive, single, along = extra_tests
    experiment, parts, method = job.experiment, job.parts, job.parts.test_method
    method = method if len(metas) == 1 else ensemble(method, metas)
    write_scores(job.folder / "scores.npz", test_curve)
    write_episodes(job.folder / "episodes.npz", parts.test, experiment.evaluate.seed)
    for name, extra in (("inductive", inductive), ("along", along)):
        if extra.scores is not None:
            _write_arrays(job.folder / f"{name}.npz", scores=extra.scores)
    if test_curve.notes:
        _write_notes(job, method, test_curve.notes)
    result = describe_result(experiment, job.seed, parts, test_curve)
    result |= {
        "config_hash": request_hash(job.folder),
        "git": git_commit(),
        "validation": {**_pool(parts.valid, "pool"), **_split(parts.valid, "split")},
        "inductive": inductive.record,
        **({"single": single} if single else {}),
        **({"along": along.rows} if along.rows else {}),
        "checkpoint_step": step,
        "cost": cost_block(job.ledger, spent, method, metas[0], parts, experiment),
        "uncounted": {**job.ledger.uncounted, **spent.uncounted},  # phase -> why
        # FLOPs of the run that `method.start` names, by phase; they are in `cost` too
        "started": {phase: known(entry.get("flops")) for phase, entry in job.started.items()},
        "tuned": tuned_values(job.folder),
        "tuning": tuning_record(job.folder, experiment, test_curve.metric),
        "seconds": wall_seconds(job.ledger, spent),
        "devices": job.ranks.size,  # that were at work in those seconds
        "workers": experiment.run.workers,
    }
    write_json(job.folder / "result.json", result)
    return dict(plain(result))


def _write_notes(job: Job, method: Method, notes: dict[str, Tensor]) -> None:
    arrays = {name: value.cpu().numpy() for name, value in notes.items()}
    _write_arrays(job.folder / "notes.npz", **arrays)
    first, last = partial(_first_tasks, job), job.experiment.evaluate.steps[-1]
    candidates = job.experiment.method.selection(method, notes, first, last)
    if candidates is not None:
        _write_arrays(job.folder / "selection.npz", **candidates)


def _first_tasks(job: Job, count: int) -> tuple[Episode, Key]:
    """Return at most `count` test tasks, and the keys that they were learned with."""
    evaluate = job.experiment.evaluate
    key = fold_in(evaluate.seed, "episodes")
    episode = job.parts.test.sample(key, min(count, evaluate.episodes))
    return episode, learn_keys(episode.info["key"], job.seed)


def describe_result(
    experiment: Experiment, seed: int, parts: Parts, curve: Curve
) -> dict[str, Any]:
    """Return the part of result.json (schema 1) that follows from one curve."""
    spec, traits, evaluate = parts.test.spec, parts.test_method.traits, experiment.evaluate
    names = ("consumes", "uses_steps", "support_at_step_0", "transductive")
    return {
        "schema": 1,
        "experiment": experiment.name,
        "label": experiment.label,
        "method": experiment.method.name,
        "family": experiment.method.family,
        "place": experiment.method.palette_index,
        "acts_on_new_tasks": experiment.method.acts_on_new_tasks(),
        "seed": seed,
        "task": {
            "source": experiment.test_task.source,
            **{name: getattr(spec, name) for name in ("split", "ways", "shots", "queries")},
            "data_sha256": getattr(parts.test, "data_sha256", ""),
            **_order(parts.test),
            **_variable(parts.test),
        },
        "episodes": {
            "count": evaluate.episodes,
            "seed": evaluate.seed,
            "fingerprint": curve.fingerprint,
        },
        # what was sampled once: a split's seed and held-out classes
        "facts": {**getattr(parts.train, "facts", {}), **_pool(parts.test, "test_pool")},
        **_split(parts.test, "test_split"),
        "provenance": experiment.model.provenance,
        "normalisation": traits.normalisation,
        "transductive": traits.transductive,
        "traits": {name: getattr(traits, name) for name in names},
        "factors": experiment.base_method.factors,  # what the report cannot infer of the parts
        "checkpoint": evaluate.checkpoint,
        "test": points(curve),
        **_by_source(parts.test, curve),
        "headline": headline(experiment, curve),
    }


MOST_NAMES = 100  # of classes or groups in a record
MANY = 10**9  # sets of classes; more are not distinguished


def _pool(source: TaskSource, key: str) -> dict[str, int]:
    """Return how many different groups or sets of classes tasks are sampled from, if known."""
    class_sets = getattr(source, "class_sets", source.spec.class_sets)
    pool_size = getattr(source, "groups", None) if class_sets is None else min(class_sets, MANY)
    return {} if pool_size is None else {key: pool_size}


def _split(source: TaskSource, key: str) -> dict[str, Any]:
    """Return the classes or groups of a split of the user's data, and by what rule, if known."""
    names, rule = getattr(source, "class_names", ()), getattr(source, "split_rule", "")
    if not rule:
        return {}
    return {key: {"rule": rule, "count": len(names), "names": list(names[:MOST_NAMES])}}


def _order(source: TaskSource) -> dict[str, str]:
    """Return the column by whose order the support rows are the first ones, if there is one."""
    order = getattr(source, "support_order", None)
    return {} if order is None else {"order": order}


def _variable(source: TaskSource) -> dict[str, Any]:
    """Return ranges of ways and shots and the chance accuracy, if tasks are of variable size."""
    if not source.spec.padded:
        return {}
    ranges, chance = getattr(source, "ranges", {}), getattr(source, "chance", None)
    return {"ranges": {name: list(ends) for name, ends in ranges.items()}, "chance": chance}


def _by_source(source: TaskSource, curve: Curve) -> dict[str, Any]:
    """Return number, mean and interval [P] of the scores of each source of a mixture."""
    names, source_index = getattr(source, "names", None), curve.notes.get("source")
    if names is None or source_index is None:
        return {}
    results = {}
    for number, name in enumerate(names):
        scores = curve.scores[source_index.to(curve.scores.device) == number]
        ci95 = mean_ci95(scores).tolist() if len(scores) > 1 else None
        mean = scores.mean(0).tolist() if len(scores) else None
        results[name] = {"episodes": len(scores), curve.metric: mean, f"{curve.metric}_ci95": ci95}
    return {"by_source": results}


def points(curve: Curve) -> dict[str, Any]:
    """Return every point of the curve: means over all tasks, and over those that converged."""
    loss_ci = mean_ci95(curve.loss)
    mean, ci = curve.converged(curve.loss)
    classes = curve.metric == "accuracy"
    return {
        "steps": list(curve.steps),
        "accuracy": curve.mean.tolist() if classes else None,
        "accuracy_ci95": curve.ci95.tolist() if classes else None,
        "loss": curve.loss.mean(0).tolist(),
        "loss_ci95": loss_ci.tolist(),
        "loss_median": curve.loss.quantile(0.5, dim=0).tolist(),
        "loss_converged": mean.tolist(),
        "loss_converged_ci95": ci.tolist(),
        "diverged": curve.diverged_share.tolist(),
        **_likelihood(curve),
    }


def _likelihood(curve: Curve) -> dict[str, Any]:
    """Return `nll` with its interval, `calibration_error` and `calibration_floor` [P].

    They are None without likelihoods.

    Both leave out tasks that diverged, and `nll` those without a finite likelihood as well.
    `nll_left_out` is the fraction that `nll` leaves out."""
    names, likelihood = ("nll", "nll_ci95", "nll_left_out"), curve.likelihood()
    calibration = {
        "calibration_error": curve.calibration_error,
        "calibration_floor": curve.calibration_floor,
    }
    if likelihood is None:
        return dict.fromkeys((*names, *calibration))
    is_known = curve.metric == "accuracy"
    return {
        **{name: values.tolist() for name, values in zip(names, likelihood, strict=True)},
        **{
            name: values.tolist() if is_known and values is not None else None
            for name, values in calibration.items()
        },
    }


def headline(experiment: Experiment, curve: Curve) -> dict[str, Any]:
    """Return the headline point of the curve, with the published number."""
    step = experiment.evaluate.headline
    index = len(curve.steps) - 1 if not isinstance(step, int) else curve.steps.index(step)
    published = experiment.published
    value = None if published is None else published.curve.get(curve.steps[index], published.value)
    return {
        "metric": curve.metric,
        "step": curve.steps[index],
        "value": float(curve.mean[index]),
        "ci95": float(curve.ci95[index]),
        "published": value,
        "published_ci95": published.ci95 if published else None,
        "published_curve": {str(k): v for k, v in published.curve.items()} if published else {},
        "source": published.source if published else "",
    }


def write_scores(path: Path, curve: Curve) -> None:
    """Write `accuracy` (NaN for regression), `loss` and `nll`, each [E, P].

    `nll` is NaN without likelihoods, and for a task that diverged, which its mean leaves out."""
    loss = curve.loss.cpu().numpy().astype(np.float32)
    if curve.metric == "accuracy":
        accuracy = curve.scores.cpu().numpy().astype(np.float32)
    else:
        accuracy = np.full_like(loss, np.nan)
    nll = np.full_like(loss, np.nan)
    if curve.nll is not None:
        nll = curve.nll.masked_fill(curve.diverged, np.nan).cpu().numpy()
    _write_arrays(path, accuracy=accuracy, loss=loss, nll=nll.astype(np.float32))


def write_episodes(path: Path, source: TaskSource, seed: int) -> None:
    """Write the first test episodes, for the figures of the report."""
    episode = source.sample(fold_in(seed, "episodes"), PICTURED)
    arrays = {
        f"{part}_{leaf}": getattr(getattr(episode, part), leaf).cpu().numpy()
        for part in ("support", "query")
        for leaf in ("x", "y")
    }
    _write_arrays(path, **arrays)


def _write_arrays(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
