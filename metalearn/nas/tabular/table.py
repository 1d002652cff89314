"""The table of a benchmark whose truth is known, stored as one file.

The file has every loss as measured, also those of diverged trainings, up to infinity. The value
of a network caps losses at `Table.largest_loss`, as otherwise one loss of 1e30 would decide every
mean and every regret."""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metalearn.errors import DataError
from metalearn.nas.per_task import PerTaskNAS
from metalearn.nas.spaces.space import Genotype, Space, classes
from metalearn.storage.files import UNREADABLE

Array = NDArray[Any]
SCHEMA = 1
# As in a learning curve (evaluate/curves), but in units of the first point: a table has no step 0.
DIVERGED_FACTOR = 10.0
# Letters of this file: G networks, T tasks, R training seeds, P points.


class Row(NamedTuple):
    """One network on all tasks."""

    accuracy: Array  # [T, R, P] of the query set; NaN for regression
    loss: Array  # [T, R, P] of the query set
    score: Array  # [T, P] from the support set alone, as in per-task search: higher is better
    error: Array  # [T, P] its standard error


@dataclass(frozen=True)
class Table:
    """Truth and scores of all networks of a space; rows not yet trained are NaN."""

    # Plain data: space, spec, points, tasks, seeds, and how the networks were trained.
    header: dict[str, Any]
    genotypes: Array  # [G, places], representatives in order
    params: Array  # [G]
    flops: Array  # [G], forward, one example
    done: Array  # [G] bool
    rows: Row  # each with a leading G

    @property
    def points(self) -> tuple[int, ...]:
        """Training steps at which networks were measured."""
        return tuple(self.header["points"])

    @property
    def complete(self) -> bool:
        return bool(self.done.all())

    @property
    def classification(self) -> bool:
        return bool(self.header["spec"]["kind"] == "classification")

    def index(self, space: Space, genotype: Genotype) -> int:
        """Return the row of a genotype's representative."""
        representative = np.asarray(space.canonical(genotype))
        return int((self.genotypes == representative).all(1).nonzero()[0][0])

    @functools.cached_property
    def largest_loss(self) -> Array:
        """Return the cap of the losses, [1, T, 1, 1]: ten times the median loss at the first point.

        The median is over the trained networks. Infinity for classes, whose accuracy has a floor,
        and on a task where half of the networks diverge at once."""
        first = self.rows.loss[self.done][..., :1].astype(np.float64)
        if self.classification or not len(first):
            return np.full((1, self.rows.loss.shape[1], 1, 1), np.inf)
        return np.asarray(DIVERGED_FACTOR * np.median(_infinite(first), axis=(0, 2), keepdims=True))

    @property
    def unbounded(self) -> bool:
        """Return whether losses of a regression task have no cap: regrets may be infinite."""
        trained = not self.classification and bool(self.done.any())
        return trained and not bool(np.isfinite(self.largest_loss).all())

    @property
    def diverged(self) -> float:
        """Return the fraction of trainings with a last loss not finite or above `largest_loss`."""
        last = _infinite(self.rows.loss[self.done][..., -1:])
        return float((~np.isfinite(last) | (last > self.largest_loss)).mean()) if len(last) else 0.0

    def quality(self) -> Array:
        """Return the value of each training at each point, higher is better: [G, T, R, P].

        Accuracy for classes; for regression minus the loss, capped at `largest_loss`. Minus
        infinity for rows that are not trained."""
        if self.classification:
            quality = np.nan_to_num(self.rows.accuracy.astype(np.float64), nan=0.0)
        else:
            quality = -np.minimum(_infinite(self.rows.loss.astype(np.float64)), self.largest_loss)
        return np.where(self.done[:, None, None, None], quality, -np.inf)

    def truth(self) -> Array:
        """Return the value of each network: mean `quality` at the last point over seeds: [G, T]."""
        truth: Array = self.quality()[..., -1].mean(-1)
        return truth

    def values(self, task: int | None) -> Array:
        """Return the truth of one task, or the mean over all: [G]."""
        truth = self.truth()
        values: Array = truth.mean(1) if task is None else truth[:, task]
        return values

    def scores(self, task: int | None, share: float = 1.0) -> tuple[Array, Array]:
        """Return (score, standard error), [G] each, after a fraction `share` of the training.

        Of all tasks together: the mean over tasks, and the standard error of that mean. A network
        that diverged on one task has standard error 0, as on that task alone."""
        target_steps = max(1, round(share * self.points[-1]))
        index = max((i for i, point in enumerate(self.points) if point <= target_steps), default=0)
        score = self.rows.score[..., index].astype(np.float64)
        if task is not None:
            return score[:, task], self.rows.error[:, task, index].astype(np.float64)
        finite_score = np.where(np.isfinite(score).all(1, keepdims=True), score, 0)
        return score.mean(1), finite_score.std(1, ddof=1) / math.sqrt(score.shape[1])

    def save(self) -> bytes:
        """Return the file's bytes: npz without pickles, the header as JSON text."""
        buffer = io.BytesIO()
        arrays = {name: getattr(self, name) for name in ("genotypes", "params", "flops", "done")}
        header = np.array(json.dumps(self.header))
        np.savez_compressed(buffer, header=header, **arrays, **self.rows._asdict())
        return buffer.getvalue()


def _infinite(losses: Array) -> Array:
    """Return losses with NaN replaced by infinity."""
    return np.where(np.isnan(losses), np.inf, losses)


def load(path: Path) -> Table:
    """Read a table from its file; raises DataError if the file is damaged or not a table."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            if header.get("schema") != SCHEMA:
                raise ValueError(f"schema {header.get('schema')}, but only {SCHEMA} is supported")
            rows = Row(*(file[name] for name in Row._fields))
            return Table(
                header, file["genotypes"], file["params"], file["flops"], file["done"], rows
            )
    except (*UNREADABLE, AttributeError) as error:
        text = f"is not a table of metalearn nas tabulate, or is damaged: {error}"
        raise DataError((str(path), text)) from error


def empty(
    space: Space,
    options: PerTaskNAS,
    points: Sequence[int],
    tasks: int,
    seeds: int,
    facts: dict[str, Any],
) -> Table:
    """Return a table without trained rows; `facts` are plain data for the header."""
    genotypes, spec = classes(space), space.spec
    fields = {"space", "search_steps", "inner_lr", "inner_momentum", "folds", "repeats"}
    training = options.model_dump(mode="json", include=fields)
    header = {
        "schema": SCHEMA,
        "space": space.name,
        "size": space.size,
        "classes": len(genotypes),
        "spec": {name: getattr(spec, name) for name in ("kind", "ways", "shots", "x_shape")},
        "normalisation": space.supernet.normalisation,
        "points": list(points),
        "tasks": tasks,
        "seeds": seeds,
        "training": {**training, "search_steps": points[-1]},
        **facts,
    }
    cost = [space.cost(genotype) for genotype in genotypes]
    seed_axes: list[tuple[int, ...]] = [(seeds,), (seeds,), (), ()]
    shapes = [(len(genotypes), tasks, *axes, len(points)) for axes in seed_axes]
    return Table(
        json.loads(json.dumps(header)),
        np.asarray(genotypes, np.int16),
        np.asarray([network.params for network in cost]),
        np.asarray([network.flops for network in cost]),
        np.zeros(len(genotypes), bool),
        Row(*(np.full(shape, np.nan, np.float32) for shape in shapes)),
    )


def with_row(table: Table, number: int, row: Row) -> Table:
    """Return the table with one more trained network."""

    def with_value(column: Array, value: Array) -> Array:
        updated = column.copy()
        updated[number] = value
        return updated

    rows = Row(*(with_value(array, part) for array, part in zip(table.rows, row)))
    return replace(table, done=with_value(table.done, np.asarray(True)), rows=rows)
