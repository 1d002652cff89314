"""A benchmark whose truth is known: every network of a small space trained on the same tasks,
stored as one file.

The file holds losses as they came, those of trainings that diverged too, up to infinity. What a
network is worth counts none above `Table.largest_loss`: one loss of 1e30 would be all that a mean,
or a regret, says."""

from __future__ import annotations

import functools
import io
import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metalearn.errors import DataError
from metalearn.losses import accuracy, criterion
from metalearn.nas.fit import chunks, divide, fit, lanes_of
from metalearn.nas.per_task import PerTaskNAS, rule_of
from metalearn.nas.search import Score, Searcher, choose, drive
from metalearn.nas.space import Genotype, Space, classes
from metalearn.rng import fold_in
from metalearn.tree import take, tree_map, vmap
from metalearn.types import Batch, Episode, Key

Array = NDArray[Any]
SCHEMA = 1
DIVERGED_FACTOR = (
    10.0  # as of a learning curve (evaluate/curves), but of the first point: a table has no step 0
)
FOREIGN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
)  # of reading what is no table
TORN = (zipfile.BadZipFile, zlib.error, EOFError, tokenize.TokenError, SyntaxError)
# Letters of this file: G networks, T tasks, R training seeds, P points.


class Row(NamedTuple):
    """One network on all tasks."""

    accuracy: Array  # [T, R, P] of the query set; NaN for regression
    loss: Array  # [T, R, P] of the query set
    score: Array  # [T, P] from the support set alone, as per-task search sees it: higher is better
    error: Array  # [T, P] its standard error


@dataclass(frozen=True)
class Table:
    """Truth and scores of all networks of a space; rows that are not yet trained hold NaN."""

    header: dict[
        str, Any
    ]  # plain data: space, spec, points, tasks, seeds, how networks were trained
    genotypes: Array  # [G, places], representatives in order
    params: Array  # [G]
    flops: Array  # [G], forward, one example
    done: Array  # [G] bool
    rows: Row  # each with a leading G

    @property
    def points(self) -> tuple[int, ...]:
        """Training steps at which networks were looked at."""
        return tuple(self.header["points"])

    @property
    def complete(self) -> bool:
        return bool(self.done.all())

    def index(self, space: Space, genotype: Genotype) -> int:
        """The row of a genotype, by its representative."""
        wanted = np.asarray(space.canonical(genotype))
        return int((self.genotypes == wanted).all(1).nonzero()[0][0])

    @functools.cached_property
    def largest_loss(self) -> Array:
        """The largest loss that counts, [1, T, 1, 1]: ten times the median of the trained networks
        at the first point.

        Infinity for classes, whose accuracy has a floor, and on a task where half of the networks
        diverge at once."""
        first = self.rows.loss[self.done][..., :1].astype(np.float64)
        if self.classification or not len(first):
            return np.full((1, self.rows.loss.shape[1], 1, 1), np.inf)
        return np.asarray(DIVERGED_FACTOR * np.median(_infinite(first), axis=(0, 2), keepdims=True))

    @property
    def classification(self) -> bool:
        return bool(self.header["spec"]["kind"] == "classification")

    @property
    def hopeless(self) -> bool:
        """Whether a regression has a task on which no loss is too large, so that regrets may be
        infinite.
        """
        return bool(
            not self.classification and self.done.any() and not np.isfinite(self.largest_loss).all()
        )

    @property
    def diverged(self) -> float:
        """The share of trainings whose loss at the last point is above the largest that counts, or
        not finite.
        """
        last = _infinite(self.rows.loss[self.done][..., -1:])
        return float((~np.isfinite(last) | (last > self.largest_loss)).mean()) if len(last) else 0.0

    def good(self) -> Array:
        """What each training is worth at each point, higher is better: [G, T, R, P].

        Accuracy for classes; for regression minus the loss, or minus `largest_loss` where that is
        less: what diverged is worth that little, and no less. Rows that are not trained are worth
        minus infinity."""
        if self.classification:
            worth = np.nan_to_num(self.rows.accuracy.astype(np.float64), nan=0.0)
        else:
            worth = -np.minimum(_infinite(self.rows.loss.astype(np.float64)), self.largest_loss)
        return np.where(self.done[:, None, None, None], worth, -np.inf)

    def truth(self) -> Array:
        """What a network is worth at the last point, the mean over training seeds of `good`: [G,
        T].
        """
        worth: Array = self.good()[..., -1].mean(-1)
        return worth

    def values(self, task: int | None) -> Array:
        """Truth of one task, or the mean over all: [G]."""
        truth = self.truth()
        found: Array = truth.mean(1) if task is None else truth[:, task]
        return found

    def scores(self, task: int | None, share: float = 1.0) -> tuple[Array, Array]:
        """(score, standard error) as a search sees them after a share of the full training: [G],
        [G].

        Of all tasks together: the mean over tasks, and the standard error of that mean.
        """
        wanted = max(1, round(share * self.points[-1]))
        place = max(
            (place for place, point in enumerate(self.points) if point <= wanted), default=0
        )
        score, error = (
            part[..., place].astype(np.float64) for part in (self.rows.score, self.rows.error)
        )
        if task is not None:
            return score[:, task], error[:, task]
        known = np.where(
            np.isfinite(score).all(1, keepdims=True), score, 0
        )  # what diverged errs by 0, as on one task
        return score.mean(1), known.std(1, ddof=1) / math.sqrt(score.shape[1])

    def save(self) -> bytes:
        """The file: npz without pickles, the header as JSON text."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {
            "header": np.array(json.dumps(self.header)),
            "genotypes": self.genotypes,
        }
        arrays |= {
            "params": self.params,
            "flops": self.flops,
            "done": self.done,
            **self.rows._asdict(),
        }
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()


def _infinite(losses: Array) -> Array:
    """What is not a number is infinite."""
    return np.where(np.isnan(losses), np.inf, losses)


def load(path: Path) -> Table:
    """A table from its file; DataError where the file is none, a torn one, or one of another
    schema.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            if header.get("schema") != SCHEMA:
                raise ValueError(f"schema {header.get('schema')} where {SCHEMA} is known")
            rows = Row(*(file[name] for name in Row._fields))
            return Table(
                header, file["genotypes"], file["params"], file["flops"], file["done"], rows
            )
    except TORN as error:
        raise DataError(
            (str(path), f"is no table of metalearn nas tabulate, or a torn one: {error}")
        ) from error
    except FOREIGN as error:
        raise DataError((str(path), f"is no table of metalearn nas tabulate: {error}")) from error


def empty(
    space: Space,
    options: PerTaskNAS,
    points: Sequence[int],
    tasks: int,
    seeds: int,
    facts: dict[str, Any],
) -> Table:
    """A table without a trained row; `facts` are plain data for the header, such as where the tasks
    come from.
    """
    found, spec = classes(space), space.spec
    shape = (len(found), tasks, seeds, len(points))
    truth, seen = (
        [np.full(shape, np.nan, np.float32) for _ in range(2)],
        (shape[0], tasks, len(points)),
    )
    rows = Row(*truth, *(np.full(seen, np.nan, np.float32) for _ in range(2)))
    training = options.model_dump(
        mode="json",
        include={"space", "search_steps", "inner_lr", "inner_momentum", "folds", "repeats"},
    )
    training["search_steps"] = points[-1]
    header = {
        "schema": SCHEMA,
        "space": space.name,
        "size": space.size,
        "classes": len(found),
        "spec": {
            "kind": spec.kind,
            "ways": spec.ways,
            "shots": spec.shots,
            "x_shape": list(spec.x_shape),
        },
        "normalisation": space.supernet.normalisation,
        "points": list(points),
        "tasks": tasks,
        "seeds": seeds,
        "training": training,
        **facts,
    }
    cost = [space.cost(genotype) for genotype in found]
    return Table(
        json.loads(json.dumps(header)),
        np.asarray(found, np.int16),
        np.asarray([one.params for one in cost]),
        np.asarray([one.flops for one in cost]),
        np.zeros(len(found), bool),
        rows,
    )


def with_row(table: Table, number: int, row: Row) -> Table:
    """The table with one more trained network."""

    def put(whole: Array, part: Array) -> Array:
        new = whole.copy()
        new[number] = part
        return new

    rows = Row(*(put(whole, part) for whole, part in zip(table.rows, row)))
    return replace(table, done=put(table.done, np.asarray(True)), rows=rows)


def measure(
    space: Space,
    options: PerTaskNAS,
    points: Sequence[int],
    seeds: int,
    episodes: Episode,
    keys: Key,
    genotype: Genotype,
) -> Row:
    """Train one network on every task: from `seeds` starts on the whole support set, and on its
    folds.

    keys [T] are what `learn` is given for these tasks: the first seed and the folds are then those
    of per-task search itself, number by number.
    """
    spec, tasks = space.spec, episodes.support.x.shape[0]
    learner = space.learner(genotype)
    trained = fit(learner, spec, rule_of(options), tuple(points))
    run = vmap(lambda key, train, x: trained(learner.init(key), train, x))
    retrain = fold_in(keys, "retrain")
    starts = torch.stack(
        [retrain if seed == 0 else fold_in(retrain, seed) for seed in range(seeds)], 1
    )
    lanes = tree_map(
        lambda leaf: leaf.repeat_interleave(seeds, 0), (episodes.support, episodes.query)
    )
    said, _ = _all(run, starts.flatten(), lanes[0], lanes[1].x)  # [T * R, P, M, C]
    truth = lanes[1].y.unsqueeze(1).expand(*said.shape[:2], *lanes[1].y.shape[1:])
    right = (
        accuracy(said, truth, lead=2)
        if spec.classification
        else torch.full_like(said[:, :, 0, 0], math.nan)
    )
    loss = criterion(spec)(said, truth, lead=2)
    shape = (tasks, seeds, len(points))
    return Row(
        _numbers(right, shape),
        _numbers(loss, shape),
        *_scores(space, options, points, episodes.support, keys, run),
    )


def _scores(
    space: Space,
    options: PerTaskNAS,
    points: Sequence[int],
    support: Batch,
    keys: Key,
    run: Callable[..., Any],
) -> tuple[Array, Array]:
    """(score, error), each [T, P], as `per_task.searched` makes them at one point."""
    spec, tasks = space.spec, support.x.shape[0]
    divided = vmap(lambda one, key: divide(spec, one, key, options.folds, options.repeats))
    folds = divided(support, fold_in(fold_in(keys, "search"), "folds"))
    lanes, holds = lanes_of(spec, options.folds, options.repeats)
    train, held, starts = tree_map(lambda leaf: leaf.flatten(0, 1), folds)
    said, path = _all(run, starts, train, held.x)
    if holds:
        y = held.y.unsqueeze(1).expand(*said.shape[:2], *held.y.shape[1:])
        losses = criterion(spec)(said, y, lead=2)
    else:
        losses = torch.stack([path[:, :point].mean(1) for point in points], 1)
    each = losses.reshape(tasks, lanes, len(points))
    bad = ~each.isfinite().all(1)
    error = each.std(1) / math.sqrt(lanes) if lanes > 1 else torch.zeros_like(each[:, 0])
    mean = torch.where(bad, torch.full_like(each[:, 0], math.inf), each.mean(1))
    shape = (tasks, len(points))
    return _numbers(-mean, shape), _numbers(torch.where(bad, torch.zeros_like(error), error), shape)


def _all(run: Callable[..., Any], *args: Any) -> tuple[Tensor, Tensor]:
    """`run` over all lanes, some at a time."""
    made = [
        run(*(take(arg, piece) for arg in args))
        for piece in chunks(len(args[0]), args[0].device.type)
    ]
    said, losses = zip(*made)
    return torch.cat(said), torch.cat(losses)


def _numbers(values: Tensor, shape: tuple[int, ...]) -> Array:
    return values.reshape(shape).cpu().numpy().astype(np.float32)


# what a table is for


def regret(table: Table, space: Space, genotype: Genotype, task: int | None = None) -> float:
    """How much less than the best network of the space a pick is worth, in accuracy or loss; 0 is
    the best.
    """
    values = table.values(task)
    return float(values.max() - values[table.index(space, genotype)])


def rank(table: Table, space: Space, genotype: Genotype, task: int | None = None) -> int:
    """The place of a pick among all networks: 1 is the best; what is worth the same shares the
    better place.
    """
    values = table.values(task)
    return int((values > values[table.index(space, genotype)]).sum()) + 1


def expected_pick(scores: Array, values: Array, draws: int) -> float:
    """Mean value of the best-scored of `draws` different networks out of all: [G], [G].

    With ranks i = 0 .. G-1 by score, P(pick is i) = C(i, n-1) / C(G, n); of networks with one score
    each is as likely to be the pick. With scores = values it is the expected largest of n drawn
    without replacement."""
    alike, sizes = np.unique(scores, return_inverse=True, return_counts=True)[1:]
    shared = (np.bincount(alike, np.asarray(values, np.float64)) / sizes)[alike]
    order, count = np.argsort(alike, kind="stable"), len(scores)
    draws = min(draws, count)
    ways = [math.comb(place, draws - 1) / math.comb(count, draws) for place in range(count)]
    return float(np.dot(ways, shared[order]))


def random_control(table: Table, draws: int, task: int | None = None, truth: bool = False) -> float:
    """Expected regret of random search with a budget, exactly; `truth`: with scores that do not
    err.
    """
    values = table.values(task)
    scores = values if truth else table.scores(task)[0]
    return float(values.max()) - expected_pick(scores, values, draws)


def mean_architecture(table: Table, task: int | None = None) -> float:
    """Expected regret of a network drawn at random: what any search has to beat."""
    values = table.values(task)
    return float(values.max() - values.mean())


def simulate(
    table: Table,
    space: Space,
    searcher: Searcher,
    key: Key,
    budget: int,
    task: int | None = None,
    standard_errors: float = 0.0,
    truth: bool = False,
) -> Genotype:
    """What a searcher picks when the table answers it, for one task or for all together."""

    values = table.values(task)

    def score(genotype: Genotype, share: float) -> Score:
        row = table.index(space, genotype)
        if truth:
            return Score(float(values[row]))
        scores, errors = table.scores(task, share)
        return Score(float(scores[row]), float(errors[row]))

    return choose(
        space, drive(searcher(key, budget, None), score, budget), standard_errors
    ).genotype
