"""Triton kernels that draw episodes: SplitMix64 (rng.py), the choices of an episode, its images."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from metalearn import rng

GAMMA, SALT = tl.constexpr(rng.GAMMA_SIGNED), tl.constexpr(rng.SALT_SIGNED)
A, B = tl.constexpr(rng.A_SIGNED), tl.constexpr(rng.B_SIGNED)


@triton.jit
def _mix(z):
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * A
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * B
    return z ^ ((z >> 31) & ((1 << 33) - 1))


@triton.jit
def _fold_in(key, name):
    """rng.fold_in(key, number), the number given plus one, int64."""
    return _mix(_mix(key + name * SALT) + name * GAMMA)


@triton.jit
def _bits(key, place):
    return _mix(key + (place.to(tl.int64) + 1) * GAMMA)


@triton.jit
def _below(words, high):
    return (((words >> 33) & ((1 << 31) - 1)) * high) >> 31


@triton.jit
def _rank(word, place, key, size, PADDED: tl.constexpr):
    """How many of bits(key, (size,)) come before the words [P] at the places [P]: [P]."""
    other = tl.arange(0, PADDED)
    words = _bits(key, other)[None, :]
    smaller = (words < word[:, None]) | (
        (words == word[:, None]) & (other[None, :] < place[:, None])
    )
    return tl.sum((smaller & (other[None, :] < size)).to(tl.int32), 1)


@triton.jit
def _permuted(values, rank, count, PADDED: tl.constexpr):
    """out[rank_i] = values_i of the first `count` ranks: [P] -> [PADDED]."""
    out = tl.arange(0, PADDED)
    chosen = (rank[:, None] == out[None, :]) & (out[None, :] < count)
    return tl.sum(tl.where(chosen, values[:, None], 0), 0)


@triton.jit
def _choice(
    key, size, count, order, SORTED: tl.constexpr, ALL: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """rng.choice: `count` different numbers below `size` [PADDED] int64."""
    if SORTED:
        place = tl.arange(0, ALL)
        rank = _rank(_bits(key, place), place, key, size, ALL)
        rank = tl.where(place < size, rank, ALL + PADDED)
        found = _permuted(place.to(tl.int64), rank, count, PADDED)
    else:
        place = tl.arange(0, PADDED)
        drawn = _below(_bits(key, place), size - count + place + 1)
        chosen = tl.full([PADDED], -1, tl.int64)
        for p in range(count):
            one = tl.sum(tl.where(place == p, drawn, 0), 0)
            before = tl.sum(((chosen == one) & (place < p)).to(tl.int32), 0) > 0
            chosen = tl.where(place == p, tl.where(before, size - count + p, one), chosen)
        key = _fold_in(key, order)
        rank = _rank(_bits(key, place), place, key, count, PADDED)
        rank = tl.where(place < count, rank, 2 * PADDED)
        found = _permuted(chosen, rank, count, PADDED)
    return found


@triton.jit
def _place_part(
    rows, labels, values, place, inside, key, task, label, size, PADDED: tl.constexpr
):  # fmt: skip
    """Rows and their label to the places in which the part's permutation puts them."""
    rank = _rank(_bits(key, place), place, key, size, PADDED)
    at = task * size + rank
    tl.store(rows + at, values, mask=inside)
    tl.store(labels + at, tl.zeros_like(values) + label, mask=inside)


@triton.jit
def _place_class(
    support, support_y, query, query_y, row, n, label, of_support, of_query, task, ways, shots,
    queries, EACH: tl.constexpr, SUPPORT: tl.constexpr, QUERY: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """The rows [EACH] of class n: the first K into the support set, the others into the query."""
    example = tl.arange(0, EACH)
    _place_part(
        support, support_y, row, n * shots + example, example < shots, of_support, task, label,
        ways * shots, SUPPORT,
    )  # fmt: skip
    if QUERIES:
        inside = (example >= shots) & (example < shots + queries)
        _place_part(
            query, query_y, row, n * queries + example - shots, inside, of_query, task, label,
            ways * queries, QUERY,
        )  # fmt: skip


@triton.jit
def episode_rows(
    key, counts, starts, keys, class_ids, support, support_y, query, query_y,
    first, ways, shots, queries, classes, same, turned, order,
    CLASSES_SORTED: tl.constexpr, EXAMPLES_SORTED: tl.constexpr, CLASSES: tl.constexpr,
    EXAMPLES: tl.constexpr, WAYS: tl.constexpr, EACH: tl.constexpr, SUPPORT: tl.constexpr,
    QUERY: tl.constexpr, QUERIES: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """All choices of the episode of number first + program: what tasks/images.py chooses.

    Constants in capitals are sizes, rounded up to powers of two."""
    task = tl.program_id(0)
    number = (task + first).to(tl.int64)
    own = _fold_in(tl.load(key), number + 1)
    tl.store(keys + task, own)
    one = tl.full((), 1, tl.int64)
    ids = _choice(_fold_in(own, one), classes, ways, order, CLASSES_SORTED, CLASSES, WAYS)
    way = tl.arange(0, WAYS)
    tl.store(class_ids + task * ways + way, ids, mask=way < ways)
    of_examples, of_turns = _fold_in(own, one + 1), _fold_in(own, one + 2)
    of_support, of_query = _fold_in(own, one + 3), _fold_in(own, one + 4)
    for n in range(ways):
        class_id = tl.sum(tl.where(way == n, ids, 0), 0)
        label = (tl.zeros([1], tl.int64) + n).to(tl.int64)
        size = same
        if not EXAMPLES_SORTED:
            size = tl.load(counts + class_id)
        of_class = tl.sum(_fold_in(of_examples, label + 1), 0)
        row = _choice(of_class, size, shots + queries, order, EXAMPLES_SORTED, EXAMPLES, EACH)
        row += tl.load(starts + class_id)
        if TURNED:
            row += tl.sum(_below(_bits(of_turns, label), 4), 0) * turned
        _place_class(
            support, support_y, query, query_y, row, n, tl.sum(label, 0), of_support, of_query,
            task, ways, shots, queries, EACH, SUPPORT, QUERY, QUERIES,
        )  # fmt: skip


@triton.jit
def fold_in(key, name, out):
    """rng.fold_in of one key and one number."""
    tl.store(out, _fold_in(tl.load(key), tl.load(name) + 1))


@triton.jit
def scaled_rows(pool, rows, scale, out, width, PLACES: tl.constexpr):
    """out [rows, width] = pool[row] * scale, bytes as numbers."""
    blocks = tl.cdiv(width, PLACES)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * PLACES + tl.arange(0, PLACES)
    there = place < width
    value = tl.load(pool + tl.load(rows + row) * width + place, mask=there, other=0)
    factor = tl.load(scale)
    tl.store(out + row * width + place, value.to(factor.dtype) * factor, mask=there)
