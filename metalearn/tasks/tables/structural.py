"""Small classification tables of random structural models: the prior of prior-fitted networks."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.tasks.generated import GeneratedSource, GeneratedTask
from metalearn.types import Batch, Episode, EpisodeSpec, Key
from metalearn.variable_tasks import Range, sample_ways

LAYERS = 2  # of nodes above the causes
MOST_CATEGORIES = 8
CLUSTERED = 0.7  # fraction of tasks whose classes are clusters
F64 = torch.float64


class Tables(GeneratedTask):
    """Tables sampled from random structural causal models, with classes from nodes or causes.

    Rows are independent; nodes of layer l are z_l = a(W z_{l-1}) + noise, with causes z_0, a sparse
    random W (each node has at least one parent) and an activation for each node (Hollmann et al.
    2023, arXiv:2207.01848, section 4). Of the 2 layers of nodes, f are the columns, log-uniform in
    `columns`, in random order; the others are hidden, and columns beyond f are 0. Classes are
    equally large intervals of one more node, or clusters of the causes; their labels are permuted.
    Some columns are categories or log-normal. `ways` and `shots` may be ranges; all sizes beside a
    task's own are padding.

    >>> source = ml.tasks.Tables(ways=3, shots=5).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 15, 64])
    """

    # Departures: layers of one width instead of a sampled depth; classes are equally frequent
    # but for `shots`; clusters of causes are a second kind of class, in most tasks.
    default_model: ClassVar[str] = "standardised"

    source: Literal["tables"] = option("tables", "The task source.")
    ways: int = option(10, "N, classes per task; often a range [2, 10].", ge=2, le=100)
    shots: int = option(10, "K, support rows per class; may be a range.", ge=1, le=10_000)
    queries: int = option(10, "Q, query rows per class.", ge=0, le=10_000)
    width: int = option(64, "F, columns per table, including padding.", ge=2, le=1000)
    columns: Range = option((2, 64), "Range of the number of columns that are not padding.")

    @model_validator(mode="after")
    def _check_columns(self) -> Tables:
        low, high = self.columns
        if not 1 <= low <= high <= self.width:
            text = f"columns must be [low, high] with 1 <= low <= high <= width {self.width}"
            raise ValueError(f"{text} (got {list(self.columns)})")
        return self

    def source_of(self, **where: Any) -> TableSource:
        spec = self.spec_of((self.width,), self.ways, **where)
        return TableSource(spec, self.columns, self.ranges.get("ways", (self.ways, self.ways)))


class TableSource(GeneratedSource):
    """Tables of `spec`; of the N classes, only those of the task's own number n have intervals."""

    def __init__(self, spec: EpisodeSpec, columns: Range, ways: Range) -> None:
        super().__init__(spec)
        self._columns, self._ways = columns, ways

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """support.x [T, N*K, F], query.x [T, N*Q, F]; info: key [T], step [T], class_ids [T, N].

        class_ids are the intervals or clusters in the order of their labels. Labels from n on,
        where n < N, have rows of no interval."""
        spec = self.spec
        keys, each = self.keys(key, num_tasks, start), spec.shots + spec.queries
        ways = sample_ways(keys, self._ways).unsqueeze(-1)  # [T, 1]
        row_index = torch.arange(spec.ways * each, device=keys.device)
        clustered = rng.uniform(rng.fold_in(keys, "kind"), (1,), dtype=F64) < CLUSTERED
        causes = _causes(keys, spec.ways, each, clustered)
        nodes = _nodes(keys, causes, spec.x_shape[0])
        target, table = _columns(keys, nodes, spec.x_shape[0], self._columns)
        table = table.to(spec.dtype)
        target = torch.where(row_index < ways * each, target, 1e9 + row_index)
        order = torch.where(clustered, row_index, target.argsort(-1))  # class after class
        priority = rng.uniform(rng.fold_in(keys, "labels"), (spec.ways,), dtype=F64)
        label = torch.arange(spec.ways, device=keys.device)
        ids = torch.where(label < ways, priority, 1.0 + label).argsort(-1)
        rows = order.view(num_tasks, spec.ways, each)
        rows = rows.gather(1, ids.unsqueeze(-1).expand_as(rows))
        shuffle = rng.uniform(rng.fold_in(keys, "rows"), (spec.ways, each), dtype=F64).argsort(-1)
        rows = rows.gather(-1, shuffle)
        support = _part(rng.fold_in(keys, "support"), table, rows[..., : spec.shots])
        query = _part(rng.fold_in(keys, "query"), table, rows[..., spec.shots :])
        step = torch.zeros(num_tasks, dtype=spec.dtype, device=keys.device)
        return Episode(support, query, {"key": keys, "step": step, "class_ids": ids})


def _part(keys: Tensor, table: Tensor, rows: Tensor) -> Batch:
    """Return rows [T, N, R] of a table [T, M, F] as one permuted set per task."""
    tasks, ways, each = rows.shape
    order = rng.permutation(keys, ways * each)
    indices = rows.reshape(tasks, ways * each).gather(-1, order)
    x = table.gather(1, indices.unsqueeze(-1).expand(-1, -1, table.shape[-1]))
    return Batch(x, order // each if each else order)


def _causes(keys: Tensor, ways: int, each: int, clustered: Tensor) -> Tensor:
    """Sample causes [T, M, U] of `each` rows per class, shifted by class if `clustered`.

    clustered [T, 1]; U = 16, of which a random fraction is 0."""
    count = 16
    share = rng.uniform(rng.fold_in(keys, "share"), (1,), dtype=F64)
    active = rng.uniform(rng.fold_in(keys, "active"), (count,), dtype=F64) <= share.square()
    active = active | (torch.arange(count, device=keys.device) < 2)
    u = rng.normal(rng.fold_in(keys, "causes"), (ways * each, count), F64)
    centres = rng.normal(rng.fold_in(keys, "centres"), (ways, count), F64)
    apart = _log_uniform(rng.fold_in(keys, "apart"), 0.5, 5.0) * clustered  # [T, 1]
    u = u + apart.unsqueeze(-1) * centres.repeat_interleave(each, 1)
    return u * active.unsqueeze(1)


def _nodes(keys: Tensor, causes: Tensor, columns: int) -> Tensor:
    """Nodes of all layers [T, M, 2 * W] of a random model on causes [T, M, U]; each of unit scale.

    W is large enough for the columns and a target."""
    width, z = math.ceil((columns + 1) / LAYERS), causes
    noise = _log_uniform(rng.fold_in(keys, "noise"), 0.01, 0.5).unsqueeze(-1)
    density = _log_uniform(rng.fold_in(keys, "density"), 0.1, 1.0).unsqueeze(-1)
    layers = []
    for layer in range(LAYERS):
        layer_keys = rng.fold_in(keys, "layer", layer)
        shape = (z.shape[-1], width)
        edges = rng.uniform(rng.fold_in(layer_keys, "edges"), shape, dtype=F64) < density
        parent = rng.integers(
            rng.fold_in(layer_keys, "parent"), (1, width), shape[0]
        )  # of every node
        edges = edges | (torch.arange(shape[0], device=keys.device).unsqueeze(-1) == parent)
        z = z @ (rng.normal(rng.fold_in(layer_keys, "weights"), shape, F64) * edges)
        bias = rng.normal(rng.fold_in(layer_keys, "bias"), (1, width), F64)
        z = _activated(rng.fold_in(layer_keys, "activation"), _scaled(z) + bias)
        z = _scaled(z) + noise * rng.normal(rng.fold_in(layer_keys, "noise"), z.shape[1:], F64)
        layers.append(z)
    return torch.cat(layers, -1)


def _activated(keys: Tensor, z: Tensor) -> Tensor:
    """Apply one of six activations to each node: [T, M, W] -> [T, M, W]."""
    kind = rng.integers(keys, (1, z.shape[-1]), 6)
    result = z
    for number, activated in enumerate((z.tanh(), z.relu(), z.sin(), z.abs(), (4 * z).tanh()), 1):
        result = torch.where(kind == number, activated, result)
    return result


def _scaled(z: Tensor) -> Tensor:
    """Scale nodes to mean 0 and standard deviation 1 over rows [T, M, W]; constant ones to 0."""
    z = z - z.mean(1, keepdim=True)
    return z / (z.square().mean(1, keepdim=True) + 1e-6).sqrt()


def _columns(keys: Tensor, nodes: Tensor, width: int, ends: Range) -> tuple[Tensor, Tensor]:
    """(the target node [T, M], the table [T, M, F]) of nodes [T, M, W]."""
    priority = rng.uniform(rng.fold_in(keys, "columns"), (nodes.shape[-1],), dtype=F64)
    node_order = priority.argsort(-1)[:, : width + 1].unsqueeze(1)
    z = nodes.gather(-1, node_order.expand(-1, nodes.shape[1], -1))
    target, z = z[..., -1], z[..., :-1]
    count = _log_uniform(rng.fold_in(keys, "width"), ends[0], ends[1] + 1).floor()
    index = torch.arange(width, device=keys.device)
    kind = rng.uniform(rng.fold_in(keys, "kinds"), (width,), dtype=F64)
    some = rng.uniform(rng.fold_in(keys, "mixed"), (2,), dtype=F64)  # fractions of two kinds
    share = torch.where(some < 0.5, torch.zeros_like(some), some - 0.5).unsqueeze(1)
    # The first column is a number, so that rows differ.
    category = (kind < share[..., 0]) & (index > 0)
    skewed = kind > 1 - share[..., 1]
    z = torch.where(skewed.unsqueeze(1), (0.7 * z).exp(), z)
    z = torch.where(category.unsqueeze(1), _categories(rng.fold_in(keys, "categories"), z), z)
    return target, z * (index < count).unsqueeze(1)


def _categories(keys: Tensor, z: Tensor) -> Tensor:
    """Cut columns [T, M, F] into 2 to 8 categories, whose numbers are ordered or random."""
    width = z.shape[-1]
    count = 2 + rng.integers(rng.fold_in(keys, "count"), (1, width), MOST_CATEGORIES - 1)
    quantile = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    number = (quantile * count).floor().clamp(min=0).minimum(count - 1).to(torch.int64)
    names = rng.normal(rng.fold_in(keys, "names"), (MOST_CATEGORIES, width), F64)
    ordered = rng.uniform(rng.fold_in(keys, "ordered"), (1, width), dtype=F64) < 0.5
    return torch.where(ordered, number.to(z.dtype), names.gather(1, number))


def _log_uniform(keys: Tensor, low: float, high: float) -> Tensor:
    """[T] -> [T, 1]."""
    return rng.uniform(keys, (1,), math.log(low), math.log(high), F64).exp()
