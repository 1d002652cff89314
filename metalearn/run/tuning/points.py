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
from metalearn.config.tuning import number_types, value_at, with_values
from metalearn.rng import MASK
from metalearn.types import Key

Values = dict[str, Any]
DIGITS = 4  # significant digits of a trial value
MAX_REPEATS = 1000  # in a row, of a range so narrow that its numbers are exhausted


def trial_points(own: Component, ranges: Mapping[str, TuneRange], key: Key) -> Iterator[Values]:
    """Yield values of all tuned fields, one trial after another.

    First those of `own`, if they are inside the ranges, then Sobol points, without repetition. The
    iterator ends when every combination of finite ranges was yielded. The first n values do not
    depend on how many follow."""
    is_integer = {name: number_types(own, name) == {int} for name in ranges}
    defaults = {name: _default(own, name, span) for name, span in ranges.items()}
    total = math.prod(_size(span, is_integer[name]) for name, span in ranges.items())
    used: set[str] = set()
    if all(value is not None for value in defaults.values()):
        first = {name: value[0] for name, value in defaults.items() if value is not None}
        used.add(_mark(first))
        yield first
    repeats = 0
    for point in _sobol(len(ranges), key):
        if len(used) >= total or (repeats > MAX_REPEATS and total == math.inf):
            return
        pairs = zip(ranges.items(), point)
        values = {name: _value(span, float(u), is_integer[name]) for (name, span), u in pairs}
        repeats = repeats + 1 if (mark := _mark(values)) in used else 0
        if not repeats:
            used.add(mark)
            yield values


def _mark(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _sobol(dimensions: int, key: Key) -> Iterator[np.ndarray[Any, Any]]:
    """Yield points [dimensions] in [0, 1) without end."""
    from scipy.stats import qmc

    generator = np.random.default_rng(int(key) & MASK)
    sampler = qmc.Sobol(dimensions, rng=generator)
    yield from sampler.random(8)  # blocks of powers of two, so that scipy does not warn
    for power in itertools.count(3):
        yield from sampler.random(2**power)


def _size(span: TuneRange, whole: bool) -> float:
    """Return the number of values of a range."""
    if span.values is not None:
        return len({json.dumps(value, sort_keys=True) for value in span.values})
    if not _is_whole(span, whole):
        return math.inf
    return 1 + int(span.max or 0) - int(span.min or 0)


def _is_whole(span: TuneRange, whole: bool) -> bool:
    return whole or span.distribution == "int_uniform"


def _value(span: TuneRange, u: float, whole: bool) -> Any:
    """Return the value at the quantile u in [0, 1) of a range."""
    if span.values is not None:
        return span.values[int(u * len(span.values))]
    low, high = float(span.min or 0), float(span.max or 0)
    limit = high + 1 if _is_whole(span, whole) else high
    if span.distribution == "log_uniform":
        value = low * (limit / low) ** u
    else:
        value = low + (limit - low) * u
    if _is_whole(span, whole):
        return min(int(value), int(high))
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def _default(own: Component, name: str, span: TuneRange) -> tuple[Any] | None:
    """Return a component's value of a field as a range writes it; None if it is outside."""
    current = value_at(own, name)
    if span.values is not None:
        equal_values = [value for value in span.values if _equals(own, name, value)]
        return (equal_values[0],) if equal_values else None
    inside = isinstance(current, (int, float)) and span.min is not None and span.max is not None
    return (current,) if inside and span.min <= current <= span.max else None


def _equals(own: Component, name: str, value: Any) -> bool:
    """Return whether `value` is the current value of a field."""
    return bool(value_at(with_values(own, {name: value}), name) == value_at(own, name))
