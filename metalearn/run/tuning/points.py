"""Candidates of tuning: scrambled Sobol points over the ranges, without repetition.

Owen 1998, "Scrambling Sobol' and Niederreiter-Xing points"; the sequence is that of scipy. The
first 2^m points have one in each of 2^m equal parts of every range."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from metalearn.component import Component
from metalearn.config.sections import TuneRange
from metalearn.config.tuning import numbers_of, value_at, with_values
from metalearn.rng import MASK
from metalearn.types import Key

Values = dict[str, Any]
DIGITS = 4  # of a number that is tried
MOST_REPEATS = 1000  # in a row, of a range so narrow that its numbers are used up


def trial_points(own: Component, ranges: Mapping[str, TuneRange], key: Key) -> Iterator[Values]:
    """Values of all tuned fields, one trial after another.

    First those of `own`, where they lie inside the ranges, then Sobol points. No values come twice.
    The iterator ends where every combination of finite ranges was given. The first n values do not
    depend on how many follow."""
    whole = {name: numbers_of(own, name) == {int} for name in ranges}
    default = {name: _default(own, name, span) for name, span in ranges.items()}
    total = math.prod(_size(span, whole[name]) for name, span in ranges.items())
    given: set[str] = set()
    if all(value is not None for value in default.values()):
        first = {name: value[0] for name, value in default.items() if value is not None}
        given.add(_mark(first))
        yield first
    repeats = 0
    for point in _sobol(len(ranges), key):
        if len(given) >= total or (repeats > MOST_REPEATS and total == math.inf):
            return
        pairs = zip(ranges.items(), point)
        values = {name: _value(span, float(u), whole[name]) for (name, span), u in pairs}
        repeats = repeats + 1 if (mark := _mark(values)) in given else 0
        if not repeats:
            given.add(mark)
            yield values


def _mark(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _sobol(dimensions: int, key: Key) -> Iterator[np.ndarray[Any, Any]]:
    """Points [dimensions] in [0, 1), without an end."""
    from scipy.stats import qmc

    generator = np.random.default_rng(int(key) & MASK)
    sampler = qmc.Sobol(dimensions, rng=generator)
    yield from sampler.random(8)  # blocks of powers of two, so that scipy does not warn
    for power in itertools.count(3):
        yield from sampler.random(2**power)


def _size(span: TuneRange, whole: bool) -> float:
    """How many values a range has."""
    if span.values is not None:
        return len({json.dumps(value, sort_keys=True) for value in span.values})
    if not _is_whole(span, whole):
        return math.inf
    return 1 + int(span.max or 0) - int(span.min or 0)


def _is_whole(span: TuneRange, whole: bool) -> bool:
    return whole or span.distribution == "int_uniform"


def _value(span: TuneRange, u: float, whole: bool) -> Any:
    """The value at place u in [0, 1) of a range."""
    if span.values is not None:
        return span.values[int(u * len(span.values))]
    low, high = float(span.min or 0), float(span.max or 0)
    end = high + 1 if _is_whole(span, whole) else high
    if span.distribution == "log_uniform":
        found = low * (end / low) ** u
    else:
        found = low + (end - low) * u
    if _is_whole(span, whole):
        return min(int(found), int(high))
    return min(max(float(f"{found:.{DIGITS}g}"), low), high)


def _default(own: Component, name: str, span: TuneRange) -> tuple[Any] | None:
    """What a component has in a field, as a range writes it; None where it lies outside."""
    now = value_at(own, name)
    if span.values is not None:
        same = [value for value in span.values if _equals(own, name, value)]
        return (same[0],) if same else None
    inside = isinstance(now, (int, float)) and span.min is not None and span.max is not None
    return (now,) if inside and span.min <= now <= span.max else None


def _equals(own: Component, name: str, value: Any) -> bool:
    """Whether a field would be what it is now."""
    return bool(value_at(with_values(own, {name: value}), name) == value_at(own, name))
