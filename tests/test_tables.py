"""Tables of random structural models, and scikit-learn's own tables."""

from __future__ import annotations

import pytest
import torch

from metalearn.errors import ConfigError
from metalearn.rng import fold_in
from metalearn.tasks import RealTables, Tables

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
    assert set(ways.tolist()) == {2, 3, 4, 5, 6}
    assert set(shown[shown > 0].tolist()) == {*range(1, 6)}
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
    with pytest.raises(ConfigError, match=r"15 shots . 10 queries are more than the 16 rows"):
        RealTables(shots=15, queries=10).build("test")
    with pytest.raises(ValueError, match="wine"):
        RealTables(tables=("whine",))


def test_real_tables_are_groups_with_their_own_classes() -> None:
    source = RealTables(shots=3, queries=2).build("test", dtype=F64)
    support, query, info = source.sample(KEY, 60)
    assert source.names == ["wine", "breast_cancer", "iris", "digits", "diabetes"]
    sizes = torch.tensor([3, 2, 3, 10, 2])[info["source"]]
    assert support.weight is not None and query.weight is not None
    assert torch.equal(support.weight.sum(1), 3.0 * sizes)
    assert torch.equal(query.weight.sum(1), 2.0 * sizes)
    assert torch.equal(support.weight > 0, support.y < sizes.unsqueeze(-1))
    columns = torch.tensor([13, 30, 4, 64, 10])[info["source"]]
    for task in range(60):
        own = support.x[task][support.weight[task] > 0]
        assert (own[:, columns[task] :] == 0).all()
    assert len({tuple(row) for row in info["class_ids"][:, :2].tolist()}) > 10  # labels move
    assert source.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 1 / 10 + 1 / 2) / 5)


def test_rows_of_real_tables_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_wine(return_X_y=True)
    labels = {row.tobytes(): label for row, label in zip(x, y)}
    seen: set[bytes] = set()
    for split in ("train", "valid", "test"):
        source = RealTables(tables=("wine",), ways=3, shots=2, queries=2).build(split, dtype=F64)
        assert not source.spec.padded
        support, _, info = source.sample(KEY, 40)
        rows = support.x[..., :13].numpy()
        for task in range(40):
            for row, label in zip(rows[task], support.y[task].tolist()):
                assert labels[row.tobytes()] == info["class_ids"][task, label]
        assert not seen & {row.tobytes() for row in rows.reshape(-1, 13)}
        seen |= {row.tobytes() for row in rows.reshape(-1, 13)}


def test_a_table_with_more_classes_than_ways_shows_some() -> None:
    source = RealTables(tables=("digits", "iris"), ways=3, shots=2, queries=2).build("test")
    support, _, info = source.sample(KEY, 40)
    assert support.weight is None
    digits = info["class_ids"][info["source"] == 0]
    assert len({tuple(sorted(row)) for row in digits.tolist()}) > 5


def test_tables_that_are_left_out_give_no_examples_and_no_limit() -> None:
    source = RealTables(tables=("wine",), ways=3, shots=2, queries=2).build("train")
    whole = RealTables(ways=3, shots=2, queries=2).build("train")
    assert set(source.examples(KEY, 200).y.tolist()) == {0, 1, 2}
    assert len(set(whole.examples(KEY, 400).y.tolist())) == source.spec.num_classes == 20
    with pytest.raises(ConfigError, match="more than the 16 rows"):
        RealTables(shots=30, queries=10).build("test")
    large = RealTables(tables=("digits",), ways=20, shots=30, queries=10).build("test")
    support, _, _ = large.sample(KEY, 8)
    assert support.weight is not None
    assert torch.equal(support.weight.sum(1), torch.full((8,), 300.0))
