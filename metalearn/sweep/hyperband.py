"""Which trials go on: hyperband (Li et al. 2018, arXiv:1603.06560) as W&B's sweeps apply it,
without rounds.

At look b of a band a trial goes on if its value is among the best 1/eta of all the trials that have
come so far: value <= sorted(values at b)[floor(n / eta)]. It is judged by its best value so far,
or, `strict`, by the one at b."""

from __future__ import annotations

from collections.abc import Mapping

from metalearn.sweep.file import EarlyTerminate

Curve = Mapping[int, float]  # look, from 1 on -> value, smaller is better


def goes_on(rule: EarlyTerminate, curves: Mapping[int, Curve], number: int) -> bool:
    """Whether trial `number` goes on beyond its last look."""
    mine = curves[number]
    looks = max(mine, default=0)
    passed = [band for band in rule.bands(looks) if band <= looks and band in mine]
    if not passed:
        return True
    band = passed[-1]
    values = sorted(curve[band] for curve in curves.values() if band in curve)
    threshold = values[int(len(values) / rule.eta)]
    judged = mine[band] if rule.strict else min(mine.values())
    return judged <= threshold
