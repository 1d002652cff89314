"""`metalearn predict`: learn one task from labelled files, answer unlabelled ones."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.errors import ConfigError
from metalearn.run.trained.examples import read_examples
from metalearn.run.trained.load import load_run
from metalearn.storage.files import write_atomic


def predict(
    run_dir: Path, support: Path, query: Path, steps: int | None, out: Path | None, invert: bool
) -> None:
    """Write a CSV with one row a query: its name, the answer, and each class's probability."""
    if out is not None and out.exists():
        raise ConfigError(("--out", f"{out} is there already: give another name"))
    run = load_run(run_dir)
    spec = run.method.spec
    examples = read_examples(support, spec, "--support", labelled=True, invert=invert)
    queries = read_examples(query, spec, "--query", labelled=False, invert=invert)
    task = run.adapt(examples.x, examples.y, steps)
    answers = task.predict(queries.x)
    columns: list[str] = []
    values: list[list[Any]] = [[] for _ in queries.names]
    if task.classes is None:
        columns = (
            ["prediction"]
            if answers.shape[1] == 1
            else [f"prediction_{n}" for n in range(answers.shape[1])]
        )
        values = [[f"{value:.9g}" for value in row] for row in np.asarray(answers)]
    else:
        columns = ["prediction", *(f"p({name})" for name in task.classes)]
        shares = task.predict_proba(queries.x)
        values = [[a, *(f"{p:.6f}" for p in row)] for a, row in zip(answers, shares, strict=True)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["query", *columns])
    writer.writerows([name, *row] for name, row in zip(queries.names, values, strict=True))
    if out is None:
        sys.stdout.write(text.getvalue())
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text.getvalue().encode())
        print(f"predictions: {out}")
