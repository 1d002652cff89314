"""Adjustment of p-values for several contrasts with Holm's method."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for their number.

    Holm 1979, Scandinavian Journal of Statistics 6(2).

    Of m tests in order of p, `max over j <= i of min(1, (m - j + 1) p_j)`. None stays None and
    counts: a contrast that was named but could not be tested is still one of the family. Raises
    ValueError if a p is outside 0 to 1."""
    tested = [(p, index) for index, p in enumerate(p_values) if p is not None]
    if any(not 0 <= p <= 1 for p, _ in tested):
        raise ValueError(f"p-values must be in [0, 1]; got {list(p_values)}")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted(tested)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[index] = largest
    return adjusted
