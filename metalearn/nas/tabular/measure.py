"""Training one network of a space on every task of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.losses import accuracy, criterion
from metalearn.nas.fit import chunks, count_lanes, divide, fit
from metalearn.nas.per_task import PerTaskNAS
from metalearn.nas.spaces.space import Genotype, Space
from metalearn.nas.tabular.table import Array, Row
from metalearn.rng import fold_in
from metalearn.tree import take, tree_map, vmap
from metalearn.types import Batch, Episode, Key


def measure(
    space: Space,
    options: PerTaskNAS,
    points: Sequence[int],
    seeds: int,
    episodes: Episode,
    keys: Key,
    genotype: Genotype,
) -> Row:
    """Train one network on every task, `seeds` times on the support set and once on each fold.

    keys [T] are the keys that `learn` gets for these tasks: the first seed and the folds are then
    identical to those of per-task search."""
    spec, tasks = space.spec, episodes.support.x.shape[0]
    learner = space.learner(genotype)
    train_one = fit(learner, spec, options.inner_rule(), tuple(points))
    run = vmap(lambda key, train, x: train_one(learner.init(key), train, x))
    retrain = fold_in(keys, "retrain")
    starts = [retrain if seed == 0 else fold_in(retrain, seed) for seed in range(seeds)]
    support, query = tree_map(
        lambda leaf: leaf.repeat_interleave(seeds, 0), (episodes.support, episodes.query)
    )
    outputs, _ = _in_chunks(run, torch.stack(starts, 1).flatten(), support, query.x)
    y = query.y.unsqueeze(1).expand(*outputs.shape[:2], *query.y.shape[1:])  # [T * R, P, M, ...]
    no_accuracy = torch.full_like(outputs[:, :, 0, 0], math.nan)
    accuracies = accuracy(outputs, y, batch_dims=2) if spec.classification else no_accuracy
    loss, shape = criterion(spec)(outputs, y, batch_dims=2), (tasks, seeds, len(points))
    scores = _scores(space, options, points, episodes.support, keys, run)
    return Row(_array(accuracies, shape), _array(loss, shape), *scores)


def _scores(
    space: Space,
    options: PerTaskNAS,
    points: Sequence[int],
    support: Batch,
    keys: Key,
    run: Callable[..., Any],
) -> tuple[Array, Array]:
    """Return (score, error), each [T, P], as per-task search computes them at one point."""
    spec, tasks = space.spec, support.x.shape[0]
    divide_tasks = vmap(lambda batch, key: divide(spec, batch, key, options.folds, options.repeats))
    folds = divide_tasks(support, fold_in(fold_in(keys, "search"), "folds"))
    lanes, holds = count_lanes(spec, options.folds, options.repeats)
    train, held_out, starts = tree_map(lambda leaf: leaf.flatten(0, 1), folds)
    outputs, path = _in_chunks(run, starts, train, held_out.x)
    if holds:
        y = held_out.y.unsqueeze(1).expand(*outputs.shape[:2], *held_out.y.shape[1:])
        losses = criterion(spec)(outputs, y, batch_dims=2)
    else:
        losses = torch.stack([path[:, :point].mean(1) for point in points], 1)
    by_lane = losses.reshape(tasks, lanes, len(points))
    diverged = ~by_lane.isfinite().all(1)
    error = by_lane.std(1) / math.sqrt(lanes) if lanes > 1 else torch.zeros_like(by_lane[:, 0])
    mean = torch.where(diverged, torch.full_like(by_lane[:, 0], math.inf), by_lane.mean(1))
    shape = (tasks, len(points))
    error = torch.where(diverged, torch.zeros_like(error), error)
    return _array(-mean, shape), _array(error, shape)


def _in_chunks(run: Callable[..., Any], *args: Any) -> tuple[Tensor, Tensor]:
    """Call `run` over the leading axis of its arguments, in chunks."""
    slices = chunks(len(args[0]), args[0].device.type)
    outputs, losses = zip(*(run(*(take(arg, chunk) for arg in args)) for chunk in slices))
    return torch.cat(outputs), torch.cat(losses)


def _array(values: Tensor, shape: tuple[int, ...]) -> Array:
    return values.reshape(shape).float().cpu().numpy()
