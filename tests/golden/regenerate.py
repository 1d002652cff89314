"""Write the recorded losses again: `python tests/golden/regenerate.py [METHOD ...]`; the diff is
reviewed like code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from checks import GOLDEN, case, golden_rows

from metalearn.config.registry import METHODS

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or METHODS:
        given = case(name, METHODS[name])
        if given.method.step is not None:
            lines = [json.dumps(row) for row in golden_rows(given)]
            (GOLDEN / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
            print(f"{name}: {lines[-1]}")
