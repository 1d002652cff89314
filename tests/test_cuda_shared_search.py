"""A shared search on CUDA trains its candidates by captured graphs: the same search.

Run on a real card, or on an emulated one (test_cuda_emulated.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metalearn.algorithms import MAML
from metalearn.evaluate.ledger import CostLedger
from metalearn.executors import cuda_graphs
from metalearn.models import MLP
from metalearn.nas import MLPReg, SharedNAS
from metalearn.rng import fold_in
from metalearn.run import shared_search
from metalearn.scopes.search_steps import steps_made_by
from metalearn.storage.files import read_lines
from metalearn.tasks import Sinusoid

pytestmark = pytest.mark.gpu


def rows(folder: Path) -> list[dict[str, Any]]:
    source = Sinusoid(shots=5, queries=3).build(device="cuda")
    sizes = {"candidates": 2, "search_steps": 4, "search_tasks": 2, "score_tasks": 4}
    search = SharedNAS(space=MLPReg(), adapt_steps=1, **sizes)
    learner = MLP(sizes=(4,)).build(source.spec)
    method = search.build(learner, source.spec, contained=MAML(inner_steps=1))
    assert method.prepare is not None
    method.prepare(source, fold_in(3), CostLedger("cuda"), folder)
    return read_lines(folder / "search.jsonl")


@pytest.mark.parametrize("fails", [False, True])
def test_captured_candidates_get_the_scores_of_eager_ones(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(tmp_path / "eager")
    monkeypatch.setattr(shared_search, "MIN_CAPTURED", 2)
    captures, capture = list[Any](), cuda_graphs._capture

    def counted(*args: Any, **options: Any) -> Any:
        captures.append(args)
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        return capture(*args, **options)

    monkeypatch.setattr(cuda_graphs, "_capture", counted)
    with steps_made_by(shared_search.captured_steps):
        found = rows(tmp_path / "captured")
    assert len(captures) == 2
    for one, other in zip(found, expected, strict=True):
        assert one["genotype"] == other["genotype"]
        assert one["value"] == pytest.approx(other["value"], rel=1e-5)
        left_out = ("seconds", "peak_bytes")
        costs = [{k: v for k, v in r["cost"].items() if k not in left_out} for r in (one, other)]
        assert costs[0] == pytest.approx(costs[1])
