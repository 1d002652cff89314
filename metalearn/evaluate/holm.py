"""Several contrasts at once: p values by the method of Holm."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6(2)).

    Of m tests in order of p, `max over j <= i of min(1, (m - j + 1) p_j)`. None stays None and
    counts: a contrast that was named and could not be tested is still one of the family.
    ValueError for a p outside 0 to 1."""
    known = [(p, place) for place, p in enumerate(p_values) if p is not None]
    if any(not 0 <= p <= 1 for p, _ in known):
        raise ValueError(f"p-values must be in [0, 1]; got {list(p_values)}")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[place] = largest
    return adjusted
