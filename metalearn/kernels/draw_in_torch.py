"""The choices of image episodes in torch's operators: rows of a pool, labels, permutations."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn import rng


class Rows(NamedTuple):
    """What T episodes consist of."""

    keys: Tensor  # [T] int64
    class_ids: Tensor  # [T, N] int64
    support: Tensor  # [T, N K] int64, rows of the pool
    support_y: Tensor  # [T, N K] int64
    query: Tensor  # [T, N Q] int64
    query_y: Tensor  # [T, N Q] int64


class Sizes(NamedTuple):
    """Sizes of an episode and of the classes that it is sampled from."""

    ways: int
    shots: int
    queries: int
    classes: int
    same: int  # examples of every class; 0 where they differ
    turned: int  # rows of one quarter turn; 0 where classes are not rotated


def episode_rows(
    key: Tensor, counts: Tensor, starts: Tensor, first: int, tasks: int, *numbers: int
) -> Rows:
    """Return episodes first .. first + T - 1 of a key []; classes are `counts` rows from `starts`.

    `numbers` are the fields of `Sizes`."""
    sizes = Sizes(*numbers)
    keys = rng.fold_in(key, torch.arange(first, first + tasks, device=key.device))
    random_words = words_of(sizes, str(key.device))
    classes, class_order, examples, example_order, turns, support, query = random_words(keys)
    if class_order.shape[-1]:
        class_ids = rng.floyd(classes, class_order, sizes.classes)
    else:
        class_ids = classes.argsort(-1)[..., : sizes.ways]
    rows = _choose_rows(examples, example_order, class_ids, counts, starts, sizes)
    if sizes.turned:
        rows = rows + rng.below(turns.unsqueeze(-1), 4) * sizes.turned
    support_rows = _permuted(support, rows[..., : sizes.shots])
    query_rows = _permuted(query, rows[..., sizes.shots :])
    return Rows(*(rows.contiguous() for rows in (keys, class_ids, *support_rows, *query_rows)))


def _choose_rows(
    bits: Tensor, order: Tensor, class_ids: Tensor, counts: Tensor, starts: Tensor, sizes: Sizes
) -> Tensor:
    """Return K + Q different rows of each class, in random order: [T, N, K + Q].

    bits [T, N m] and order [T, N (K + Q)] or [T, 0] are those of `words_of`."""
    examples, tasks = sizes.shots + sizes.queries, class_ids.shape[0]
    bits = bits.reshape(tasks, sizes.ways, bits.shape[-1] // sizes.ways)
    if order.shape[-1]:
        order = order.reshape(bits.shape)
        chosen = rng.floyd(bits, order, sizes.same or counts[class_ids])
    else:
        chosen = bits.argsort(-1)[..., :examples]
    return chosen + starts[class_ids].unsqueeze(-1)


def _permuted(bits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows [T, N, R] and labels along N, permuted by bits [T, N R]: twice [T, N R]."""
    tasks, classes, examples = rows.shape
    order = bits.argsort(-1)
    labels = order // examples if examples > 1 else order
    return rows.reshape(tasks, classes * examples).gather(-1, order), labels


@functools.cache
def words_of(sizes: Sizes, device: str) -> rng.Words:
    """Return the generator of all random numbers of an episode.

    Samples and order of classes, samples and order of the examples of each class, turns,
    permutations of support and query. Call it outside of traces: the result has tensors."""
    examples, classes = sizes.shots + sizes.queries, range(sizes.ways)

    def choice(starts: Sequence[rng.Chain], size: int, count: int) -> list[list[rng.Chain]]:
        sorts_all = size > 0 and rng.sorts_all(size, count)
        draws = size if sorts_all else count
        order = [] if sorts_all else [(*start, *rng.chain("order")) for start in starts]
        return [
            [chain for start in starts for chain in rng.chains(start, draws)],
            [chain for start in order for chain in rng.chains(start, count)],
        ]

    draws = [
        *choice([rng.chain(0)], sizes.classes, sizes.ways),
        *choice([rng.chain(1, number) for number in classes], sizes.same, examples),
        rng.chains(rng.chain(2), sizes.ways),
        rng.chains(rng.chain(3), sizes.ways * sizes.shots),
        rng.chains(rng.chain(4), sizes.ways * sizes.queries),
    ]
    return rng.Words(draws, device)


def scaled_rows(pool: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """pool [images, bytes] uint8, rows [B], scale [] -> [B, bytes] of scale's type."""
    return pool.index_select(0, rows) * scale


def fold_in(key: Tensor, number: Tensor) -> Tensor:
    """rng.fold_in of a key [] and a number []."""
    return rng.fold_in(key, number)
