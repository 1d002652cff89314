"""Tables of random structural models."""

from __future__ import annotations

import pytest
import torch

from metalearn.rng import fold_in
from metalearn.tasks import Tables

F64 = torch.float64
KEY = fold_in(4, "tables")


def test_columns_and_classes_vary_and_the_rest_is_padding() -> None:
    source = Tables(ways=[2, 6], shots=[1, 5], queries=2, width=12, columns=[2, 9]).build()
    support, query, info = source.sample(KEY, 300)
    used = (support.x != 0).any(1)
    counts = used.sum(-1)
    assert set(counts.tolist()) == set(range(2, 10))
    places = torch.arange(12)
    assert torch.equal(used, places < counts.unsqueeze(-1))  # zeros stand behind
    assert (query.x[~used.unsqueeze(1).expand_as(query.x)] == 0).all()
    ways = info["ways"]
    shown = torch.stack([((support.y == n) * support.weight).sum(1) for n in range(6)], 1)
    assert torch.equal(shown > 0, torch.arange(6) < ways.unsqueeze(-1))
    assert set(ways.tolist()) == {2, 3, 4, 5, 6} and set(shown[shown > 0].tolist()) == {
        *range(1, 6)
    }
    ids = info["class_ids"]
    for count, row in zip(ways.tolist(), ids.tolist()):
        assert sorted(row[:count]) == list(range(count))  # the intervals of n classes, not of N


def test_labels_of_tables_are_learned_from_columns() -> None:
    """The nearest class mean of wide tables is right more often than chance, and not always."""
    source = Tables(ways=3, shots=20, queries=20, width=20, columns=[20, 20]).build(dtype=F64)
    support, query, _ = source.sample(KEY, 100)
    mean, scale = support.x.mean(1, keepdim=True), support.x.std(1, keepdim=True)
    z, asked = ((batch.x - mean) / scale for batch in (support, query))
    sums = [(z * (support.y == n).unsqueeze(-1)).sum(1) for n in range(3)]
    nearest = torch.cdist(asked, torch.stack(sums, 1) / 20).argmin(-1)
    share = (nearest == query.y).to(F64).mean(1)
    assert 0.55 < share.mean() < 0.95 and share.std() > 0.1


def test_options_that_make_no_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="1 <= low <= high <= width 8"):
        Tables(width=8, columns=[2, 9])
