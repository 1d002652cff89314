"""Peak memory in the ledger, in a separate process: one that has freed much memory reuses it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, torch
from metalearn.evaluate.ledger import CostLedger
ledger = CostLedger()
with ledger.span("setup"):
    pass
with ledger.span("adapt"):
    small = torch.zeros(8)
    with ledger.span("predict"):
        torch.ones(256 * 2**20, dtype=torch.uint8).fill_(3)
    small += 1
print(json.dumps({phase: entry["peak_bytes"] for phase, entry in ledger.cost().items()}))
"""


def test_peaks_are_the_largest_and_are_where_they_arose() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    peak = json.loads(done.stdout)
    if peak["setup"] is None:
        pytest.skip("this system does not say how much memory a process held")
    size = 256 * 2**20
    assert 0.7 * size < peak["predict"] - peak["setup"] < 2 * size
    assert peak["adapt"] < peak["predict"] - size // 2
