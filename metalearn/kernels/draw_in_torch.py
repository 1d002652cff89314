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
    """Of an episode and of the classes it is drawn from."""

    ways: int
    shots: int
    queries: int
    classes: int
    same: int  # examples of every class; 0 where they differ
    turned: int  # rows of one quarter turn; 0 where classes are not rotated


def episode_rows(
    key: Tensor, counts: Tensor, starts: Tensor, first: int, tasks: int, *sizes: int
) -> Rows:
    """Episodes first .. first + T - 1 of a key [], classes of `counts` rows from `starts` on.

    `sizes` are those of `Sizes`."""
    of = Sizes(*sizes)
    keys = rng.fold_in(key, torch.arange(first, first + tasks, device=key.device))
    words = words_of(of, str(key.device))
    classes, class_order, examples, example_order, turns, support, query = words(keys)
    if class_order.shape[-1]:
        class_ids = rng.floyd(classes, class_order, of.classes)
    else:
        class_ids = classes.argsort(-1)[..., : of.ways]
    rows = _choose_rows(examples, example_order, class_ids, counts, starts, of)
    if of.turned:
        rows = rows + rng.below(turns.unsqueeze(-1), 4) * of.turned
    support_rows = _permuted(support, rows[..., : of.shots])
    query_rows = _permuted(query, rows[..., of.shots :])
    return Rows(*(rows.contiguous() for rows in (keys, class_ids, *support_rows, *query_rows)))


def _choose_rows(
    words: Tensor, order: Tensor, class_ids: Tensor, counts: Tensor, starts: Tensor, of: Sizes
) -> Tensor:
    """K + Q different rows of each class, in random order: [T, N, K + Q].

    words [T, N m] and order [T, N (K + Q)] or [T, 0] are those of `words_of`."""
    each, tasks = of.shots + of.queries, class_ids.shape[0]
    words = words.reshape(tasks, of.ways, words.shape[-1] // of.ways)
    if order.shape[-1]:
        order = order.reshape(words.shape)
        chosen = rng.floyd(words, order, of.same or counts[class_ids])
    else:
        chosen = words.argsort(-1)[..., :each]
    return chosen + starts[class_ids].unsqueeze(-1)


def _permuted(words: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [T, N, R] and labels along N of one part, permuted by words [T, N R]: twice [T, N R]."""
    tasks, ways, each = rows.shape
    order = words.argsort(-1)
    labels = order // each if each > 1 else order
    return rows.reshape(tasks, ways * each).gather(-1, order), labels


@functools.cache
def words_of(of: Sizes, device: str) -> rng.Words:
    """All random numbers of an episode: draws and order of classes, draws and order of the examples
    of each class, turns, permutations of support and query.

    Make it outside of traces: it holds tensors."""
    each, places = of.shots + of.queries, range(of.ways)

    def choice(starts: Sequence[rng.Chain], size: int, count: int) -> list[list[rng.Chain]]:
        all_sorted = size > 0 and rng.sorts_all(size, count)
        draws = size if all_sorted else count
        order = [] if all_sorted else [(*start, *rng.chain("order")) for start in starts]
        return [
            [one for start in starts for one in rng.chains(start, draws)],
            [one for start in order for one in rng.chains(start, count)],
        ]

    draws = [
        *choice([rng.chain(0)], of.classes, of.ways),
        *choice([rng.chain(1, place) for place in places], of.same, each),
        rng.chains(rng.chain(2), of.ways),
        rng.chains(rng.chain(3), of.ways * of.shots),
        rng.chains(rng.chain(4), of.ways * of.queries),
    ]
    return rng.Words(draws, device)


def scaled_rows(pool: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """pool [images, bytes] uint8, rows [B], scale [] -> [B, bytes] of scale's type."""
    return pool.index_select(0, rows) * scale


def fold_in(key: Tensor, number: Tensor) -> Tensor:
    """rng.fold_in of a key [] and a number []."""
    return rng.fold_in(key, number)
